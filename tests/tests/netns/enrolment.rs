//! A running pod is enrolled, made strict and un-enrolled without a restart and without a failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Mode, Side, wait};

#[test]
fn enrolment_costs_no_request() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking = {
        let (client, destination) = (client.clone(), web.at(80));
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(traffic::ask(&client, destination, b"request").unwrap(), b"request");
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let more = || {
        let before = done.load(Ordering::Relaxed);
        wait::until("requests go on", || (done.load(Ordering::Relaxed) > before + 5).then_some(()));
    };
    more();
    mesh.enrol(&[&client, &web]);
    more();
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    more();
    assert!(!mesh.agents[0].records.all().is_empty(), "they are captured now");
    stop.store(true, Ordering::Relaxed);
    asking.join().unwrap();
}

#[test]
fn a_permissive_pods_open_connections_are_untouched() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    let mut exchange = || {
        std::io::Write::write_all(&mut stream, b"ping").unwrap();
        std::io::Read::read_exact(&mut stream, &mut [0; 4]).unwrap();
    };
    exchange();
    mesh.enrol(&[&client, &web]);
    exchange();
    mesh.withdraw(&[&client, &web]);
    exchange();
    assert!(mesh.agents.iter().all(|agent| agent.records.all().is_empty()));
}

#[test]
fn of_two_pods_that_claim_one_address_the_newcomer_is_not_mapped() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let thief = mesh.pod("thief", Side::B);
    let _echo = Server::echo(&web, 80);
    let stolen = web.address;
    // The newcomer even stands first in the file.
    mesh.change(|directory| {
        directory.entry(&thief).addresses = vec![stolen.into()];
        directory.entries.reverse();
    });
    let stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    drop(stream);
    mesh.agents[0].records.of_client(own).names("destination", &web);
}

#[test]
fn a_pod_whose_addresses_change_is_never_let_go() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    let mut wire = Capture::on(&client.namespace, "eth0");
    let (stop, address6) = (Arc::new(AtomicBool::new(false)), client.address6);
    let trying = {
        let (client, destination, stop) = (client.clone(), web.at(80), Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // While its listeners change, it is refused.
                let _ = traffic::ask(&client, destination, b"request");
            }
        })
    };
    for _ in 0..10 {
        mesh.change(|directory| directory.entry(&client).addresses.push(address6.into()));
        mesh.change(|directory| _ = directory.entry(&client).addresses.pop());
    }
    stop.store(true, Ordering::Relaxed);
    trying.join().unwrap();
    assert_eq!(traffic::ask(&client, web.at(80), b"served again").unwrap(), b"served again");
    assert_eq!(wire.connections_to(80), 0, "not one SYN of plaintext");
    assert!(echo.accepted() > 1);
}

#[test]
fn a_listed_pod_whose_namespace_cannot_be_seen_stays_captured() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    mesh.agent(Side::A).kill();
    mesh.change(|directory| directory.entry(&client).netns = "/run/netns/nowhere".into());
    let Mesh { agents, world, .. } = &mut mesh;
    agents[0].start(world);
    mesh.in_force();
    assert_eq!(mesh.agents[0].status().unwrap().state(&client), Some("refused"));
    let refused = client.namespace.within(|| std::net::TcpStream::connect(web.at(80))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(echo.accepted(), 0);
    // When it leaves the directory it is let go.
    mesh.change(|directory| directory.remove(&client));
    assert_eq!(traffic::ask(&client, web.at(80), b"plain").unwrap(), b"plain");
}

#[test]
fn a_strict_pod_whose_namespace_is_mistyped_stays_strict() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::A);
    let echo = Server::echo(&web, 80);
    let netns = web.namespace.path();
    let same_under_another_name = format!("/proc/self/root{}", netns.display());
    for path in [same_under_another_name.as_str(), "/run/netns/nowhere"] {
        mesh.change(|directory| directory.entry(&web).netns = path.into());
        assert!(traffic::ask(&stranger, web.at(80), b"plaintext").is_err(), "{path}");
        assert_eq!(traffic::ask(&client, web.at(80), b"served").unwrap(), b"served", "{path}");
    }
    assert_eq!(mesh.agents[1].status().unwrap().state(&web), Some("refused"));
    mesh.change(|directory| directory.entry(&web).netns = netns);
    mesh.until_serving();
    assert_eq!(echo.accepted(), 2);
}

#[test]
fn an_address_that_the_pod_does_not_have_is_no_address_of_its() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let elsewhere = mesh.world.pod("elsewhere", Side::A);
    let echo = Server::echo(&web, 80);
    let address = elsewhere.address;
    mesh.change(|directory| directory.entry(&web).addresses.push(address.into()));
    assert!(traffic::ask(&elsewhere, web.at(80), b"as if from within").is_err());
    assert_eq!(echo.accepted(), 0);
    let status = mesh.agents[1].status().unwrap();
    assert!(status.reason(&web).unwrap().contains("does not have its address"), "{status:?}");
}

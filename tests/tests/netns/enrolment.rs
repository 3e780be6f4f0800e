//! A running pod is enrolled, made strict and un-enrolled without a restart and without a failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Mode, Side, wait};

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

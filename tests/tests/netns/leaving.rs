//! A running pod leaves the mesh, and no request fails. What was captured goes on until it ends, and looks as before.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Load, Mesh, Mode, Pod, Side, TUNNEL_PORT, wait};

/// How many requests a connection that is kept alive carries.
const KEPT_FOR: usize = 40;

/// Clients of each kind in each direction: of a connection for each request, and of one for many.
const CLIENTS: usize = 2;

fn request(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"request")?;
    stream.read_exact(&mut [0; 7])
}

fn release(mesh: &mut Mesh, pod: &Pod) {
    mesh.change(|directory| directory.entry(pod).serving = false);
    mesh.change(|directory| directory.entry(pod).mode = Mode::Released);
}

fn until_none_is_captured(mesh: &mut Mesh, pod: &Pod) {
    wait::until("nothing is captured any more", || {
        (mesh.agent(pod.side).status()?.captured(pod) == Some(0)).then_some(())
    });
}

#[test]
fn no_request_fails_new_or_kept_alive() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let _servers = [Server::echo(&web, 80), Server::echo(&client, 80)];
    let load = Load::start(&[(&client, web.at(80)), (&web, client.at(80))], CLIENTS, &[1, KEPT_FOR]);
    for first in [&web, &client] {
        mesh.enrol(&[&client, &web]);
        load.goes_on();
        let second = if first.uid == web.uid { &client } else { &web };
        for pod in [first, second] {
            release(&mut mesh, pod);
            load.goes_on();
            until_none_is_captured(&mut mesh, pod);
            mesh.change(|directory| directory.remove(pod));
            load.goes_on();
        }
    }
    load.end();
    assert!(!mesh.agents[0].records.all().is_empty(), "the control: it was captured meanwhile");
    for agent in &mesh.agents {
        let odd: Vec<_> = agent.records.all().into_iter().filter(|record| record.close() != "finished").collect();
        assert!(odd.is_empty(), "{odd:#?}");
    }
}

/// A connection with both of its ends.
struct Ends {
    client: TcpStream,
    server: TcpStream,
    names: [SocketAddr; 2],
}

impl Ends {
    fn open(client: &Pod, listener: &TcpListener, to: SocketAddr) -> Self {
        let client = traffic::connect(client, to).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let names = [client.local_addr().unwrap(), to];
        assert_eq!(canonical(peer), names[0]);
        Self { client, server: traffic::patient(server).unwrap(), names }
    }

    fn are_as_ever(&mut self) {
        let Self { client, server, names } = self;
        client.write_all(b"there").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        server.write_all(b"back").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        let told = [client.local_addr(), client.peer_addr(), server.peer_addr(), server.local_addr()];
        assert_eq!(told.map(|told| canonical(told.unwrap())), [names[0], names[1], names[0], names[1]]);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn what_was_captured_goes_on_and_looks_as_before() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let listen =
        |pod: &Pod| pod.namespace.within(|| TcpListener::bind(SocketAddr::new(IpAddr::from([0_u16; 8]), 80)).unwrap());
    let (at_web, at_client) = (listen(&web), listen(&client));
    let mut ends = [
        Ends::open(&client, &at_web, web.at(80)),
        Ends::open(&client, &at_web, web.at6(80)),
        Ends::open(&web, &at_client, client.at(80)),
        Ends::open(&web, &at_client, client.at6(80)),
    ];
    let mut wire = Capture::on(&web.namespace, "eth0");
    for released in [&web, &client] {
        ends.iter_mut().for_each(Ends::are_as_ever);
        release(&mut mesh, released);
        ends.iter_mut().for_each(Ends::are_as_ever);
        wait::until("they are counted", || {
            (mesh.agent(released.side).status()?.captured(released) == Some(4)).then_some(())
        });
    }
    assert_eq!(wire.bytes_at(80), 0, "what was secured stays secured");
    assert!(wire.bytes_at(TUNNEL_PORT) > 0);
    // New ones are as they were before there was a mesh.
    let mut plain = Ends::open(&client, &at_web, web.at(80));
    plain.are_as_ever();
    assert!(wire.bytes_at(80) > 0);
    // What has not ended when the pod is removed ends by a reset, never as if it had finished.
    mesh.change(|directory| directory.remove(&web));
    for Ends { client, server, .. } in &mut ends {
        traffic::expect_reset(client);
        traffic::expect_reset(server);
    }
    plain.are_as_ever();
    for agent in &mesh.agents {
        agent.records.wait(4, |record| record.close() == "revoked");
    }
}

#[test]
fn tunnels_are_served_until_the_pod_is_removed() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    // The client's agent has not heard of it yet.
    let uid = web.uid.clone();
    mesh.directory.publish_differing(|reader, entries| {
        let there = reader == agent_tests::Reader::Agent(Side::B);
        let web = entries.iter_mut().filter(|entry| there && entry.uid == uid);
        web.for_each(|entry| (entry.serving, entry.mode) = (false, Mode::Released));
    });
    mesh.in_force();
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    request(&mut stream).unwrap();
    let own = stream.local_addr().unwrap();
    drop(stream);
    mesh.agents[1].records.of_client(own).names("destination", &web);
    assert_eq!(traffic::ask(&mesh.world.pod("stranger", Side::A), web.at(80), b"plain").unwrap(), b"plain");
}

#[test]
fn no_connect_is_refused_while_a_pod_is_removed_without_warning() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let _echo = Server::echo(&web, 80);
    for round in 0..6 {
        let client = mesh.pod(&format!("client{round}"), Side::A);
        let stop = Arc::new(AtomicBool::new(false));
        let connecting: Vec<_> = (0..4)
            .map(|_| {
                let (client, to, stop) = (client.clone(), web.at(80), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut refused = 0;
                    while !stop.load(Ordering::Relaxed) {
                        match traffic::connect(&client, to) {
                            // What has begun to be carried ends with its pod.
                            Ok(mut stream) => _ = request(&mut stream),
                            Err(error) => refused += usize::from(error.kind() == ErrorKind::ConnectionRefused),
                        }
                    }
                    refused
                })
            })
            .collect();
        mesh.agents[0].records.wait(20 * (round + 1), |_| true);
        mesh.change(|directory| directory.remove(&client));
        stop.store(true, Ordering::Relaxed);
        let refused: usize = connecting.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(refused, 0, "in round {round}");
    }
}

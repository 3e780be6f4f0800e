//! When a table is full, or descriptors have run out, the agent refuses, says so, and serves again when there is room.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use agent_common::{Addr, Endpoint, Flow, FlowKey, MAX_PODS, Mesh as Destination, NO_POD, Netns, STATE_KNOWN, Watch};
use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Pod, Side, wait};
use aya::Pod as Plain;
use aya::maps::{HashMap, Map, MapData};

const SECRET: &[u8] = b"must-never-be-seen";

type Table<K, V> = HashMap<MapData, K, V>;

fn table<K: Plain, V: Plain>(mesh: &Mesh, side: Side, name: &str) -> Table<K, V> {
    let agent = &mesh.agents[if side == Side::A { 0 } else { 1 }];
    let map = MapData::from_pin(agent.layout().join(name)).unwrap();
    HashMap::try_from(Map::HashMap(map)).unwrap()
}

/// Puts entries of nobody's into the table until it takes no more. Returns their keys.
fn fill<K: Plain, V: Plain>(table: &mut Table<K, V>, key: impl Fn(u32) -> K, value: impl Fn(u32) -> V) -> Vec<K> {
    let mut keys = Vec::new();
    for number in 0.. {
        if table.insert(key(number), value(number), 0).is_err() {
            break;
        }
        keys.push(key(number));
    }
    keys
}

/// An address of 240.0.0.0/4, which is nobody's.
fn nobody(number: u32) -> Addr {
    agent_common::v4_mapped((0xf000_0000 | number).to_be())
}

fn connection(number: u32) -> FlowKey {
    FlowKey { cookie: u64::MAX, client: nobody(number), server: nobody(0), client_port: 1, server_port: 1, pad: 0 }
}

fn namespace(index: u32) -> Netns {
    Netns {
        state: STATE_KNOWN,
        mode: 0,
        flags: 0,
        pod_index: index,
        thread: 0,
        addresses: [[0; 4]; 4],
        primary4: [0; 4],
        primary6: [0; 4],
        uid: [b'x'; 64],
        plaintext_ports: [0; 16],
    }
}

/// No namespace's cookie.
fn cookie(number: u32) -> u64 {
    u64::MAX - u64::from(number)
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
}

#[track_caller]
fn until_served(client: &Pod, web: &Pod) {
    wait::until("it is served", || {
        traffic::ask(client, web.at(80), SECRET).is_ok_and(|answer| answer == SECRET).then_some(())
    });
}

#[test]
fn connections_on_their_way_to_the_agent() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut open = traffic::connect(&client, web.at(80)).unwrap();
    exchange(&mut open);
    let mut flows: Table<FlowKey, Flow> = table(&mesh, Side::A, "FLOWS");
    let original = Endpoint { addr: nobody(0), port: 1, pad: [0; 6] };
    let watch = Watch { user_timeout: 0, idle: 0, interval: 0, probes: 0 };
    let keys = fill(&mut flows, connection, |_| Flow { cookie: u64::MAX, original, watch });
    let mut wire = Capture::on(&client.namespace, "eth0");
    for _ in 0..3 {
        let refused = client.namespace.within(|| TcpStream::connect(web.at(80))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
    exchange(&mut open);
    // The watchdog's own probes find no room either.
    wait::until("it is counted", || {
        mesh.agents[0].status().filter(|status| status.refusals("flows_full") >= 3).map(drop)
    });
    flows.remove(&keys[0]).unwrap();
    until_served(&client, &web);
    assert!(!wire.shows(SECRET));
}

#[test]
fn the_agents_dials_to_applications() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    let mut dials: Table<FlowKey, Endpoint> = table(&mesh, Side::B, "DIALS");
    let keys = fill(&mut dials, connection, |_| Endpoint { addr: nobody(0), port: 1, pad: [0; 6] });
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    traffic::expect_reset(&mut stream);
    assert_eq!(echo.accepted(), 0, "nobody is dialled who would not be told the true client");
    let record = mesh.agents[1].records.of_client(own);
    assert_eq!((record.close(), record.blame()), ("agent_failed", "ours"), "{record:#?}");
    dials.remove(&keys[0]).unwrap();
    until_served(&client, &web);
}

#[test]
fn destinations_of_the_mesh() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let late = mesh.world.pod("late", Side::B);
    let _echoes = [&web, &late].map(|pod| Server::echo(pod, 80));
    mesh.change(|directory| _ = directory.list(&late));
    mesh.until_serving();
    let mut destinations: Table<Endpoint, Destination> = table(&mesh, Side::A, "MESH");
    let key = |number| Endpoint { addr: nobody(number), port: 0, pad: [0; 6] };
    let keys = fill(&mut destinations, key, |_| Destination { flags: 0 });
    mesh.directory.entry(&late).serving = true;
    mesh.directory.publish();
    let revision = mesh.directory.revision();
    // Its author waits for this revision before anybody relies on it.
    let told = wait::until("the agent says that it is not in force", || {
        mesh.agents[0].status().filter(|status| status.problem().is_some())
    });
    assert!(told.problem().unwrap().contains("the mesh's destinations"), "{told:?}");
    assert!(told.revision() < revision);
    let mut wire = Capture::on(&client.namespace, "eth0");
    until_served(&client, &web);
    assert_eq!(wire.connections_to(80), 0, "what was in force stays");
    destinations.remove(&keys[0]).unwrap();
    wait::until("it is in force", || mesh.agents[0].status().filter(|status| status.revision() == revision).map(drop));
    mesh.in_force();
    until_served(&client, &late);
    assert!(!wire.shows(SECRET));
    assert_eq!(wire.connections_to(80), 0);
}

#[test]
fn namespaces_and_pods() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let _echo = Server::echo(&web, 80);
    let mut namespaces: Table<u64, Netns> = table(&mesh, Side::A, "NETNS");
    // Once no entry is left, once no pod's index.
    for (name, why) in [("first", "the kernel was not told of pod"), ("second", "this instance already holds")] {
        let keys = if name == "first" {
            fill(&mut namespaces, cookie, |_| namespace(NO_POD))
        } else {
            (0..MAX_PODS).for_each(|index| namespaces.insert(cookie(index), namespace(index), 0).unwrap());
            (0..MAX_PODS).map(cookie).collect()
        };
        let client = mesh.world.pod(name, Side::A);
        mesh.directory.list(&client);
        mesh.directory.publish();
        wait::until("the agent says why", || {
            let status = mesh.agents[0].status()?;
            status.reason(&client).filter(|reason| reason.contains(why)).map(drop)
        });
        assert_eq!(mesh.agents[0].status().unwrap().state(&client), Some("refused"));
        keys.iter().for_each(|key| namespaces.remove(key).unwrap());
        wait::until("it is served", || (mesh.agents[0].status()?.state(&client) == Some("serving")).then_some(()));
        mesh.change(|directory| directory.entry(&client).serving = true);
        let mut wire = Capture::on(&client.namespace, "eth0");
        until_served(&client, &web);
        assert_eq!(wire.connections_to(80), 0);
    }
}

#[test]
fn descriptors() {
    for side in [Side::A, Side::B] {
        let mut mesh = Mesh::start();
        let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
        let echo = Server::echo(&web, 80);
        let mut open = traffic::connect(&client, web.at(80)).unwrap();
        exchange(&mut open);
        let mut wire = Capture::on(&client.namespace, "eth0");
        mesh.agent(side).limit_files(3);
        let waiting: Vec<TcpStream> = (0..32)
            .map(|_| {
                let mut stream = traffic::connect(&client, web.at(80)).unwrap();
                stream.write_all(SECRET).unwrap();
                stream
            })
            .collect();
        // In vain attempts to accept are logged; each listener waits 10 ms after one.
        let (cpu, tries) = (mesh.agent(side).cpu_time(), mesh.agent(side).said().matches("did not accept").count());
        let begun = Instant::now();
        assert_eq!(wait::within(Duration::from_secs(1), || None::<()>), None);
        let tries = mesh.agent(side).said().matches("did not accept").count() - tries;
        let (cpu, wall) = (mesh.agent(side).cpu_time() - cpu, begun.elapsed());
        let bound = 4 * usize::try_from(wall.as_millis() / 10).unwrap();
        assert!(tries < bound && cpu < wall / 2, "a busy loop: {tries} tries and {cpu:?} in {wall:?}");
        exchange(&mut open);
        assert_eq!(echo.accepted(), 1, "nobody is served who cannot be");
        mesh.agent(side).limit_files(1 << 10);
        for mut stream in waiting {
            let mut answer = [0; SECRET.len()];
            match stream.read_exact(&mut answer) {
                Ok(()) => assert_eq!(answer, SECRET),
                Err(error) => assert_eq!((side, error.kind()), (Side::B, ErrorKind::ConnectionReset)),
            }
        }
        until_served(&client, &web);
        exchange(&mut open);
        assert!(!wire.shows(SECRET));
        assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
        assert!(!mesh.agent(side).said().contains("panicked"));
    }
}

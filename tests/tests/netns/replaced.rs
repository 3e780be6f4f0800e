//! A pod that is replaced under the same name and address, by the same service account even, is another pod: nothing that its
//! predecessor had in the kernel or in a pool is its own.

use std::io::ErrorKind;
use std::net::TcpStream;

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Mode, Pod, Record, Side, TUNNEL_PORT, wait};

/// Takes a pod away and gives another one its name and place. The directory knows the old one still.
fn replace(mesh: &Mesh, pod: Pod) -> Pod {
    let (name, side, address) = (pod.name.clone(), pod.side, pod.address);
    pod.remove();
    mesh.world.pod_at(&name, side, address)
}

/// What the directory's author does when a pod has been replaced.
fn list_instead(mesh: &mut Mesh, uid: &str, successor: &Pod) {
    mesh.change(|directory| {
        directory.entries.retain(|entry| entry.uid != uid);
        directory.list(successor);
    });
    mesh.until_serving();
    mesh.change(|directory| directory.entry(successor).serving = true);
}

fn asked(mesh: &Mesh, client: &Pod, web: &Pod) -> [Record; 2] {
    let stream = traffic::connect(client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    drop(stream);
    [0, 1].map(|side| mesh.agents[side].records.of_client(own))
}

fn pinned_pods(mesh: &Mesh, side: usize) -> usize {
    let pins = std::fs::read_dir(mesh.agents[side].layout()).unwrap();
    pins.filter(|pin| pin.as_ref().unwrap().file_name().to_str().unwrap().starts_with("pod_")).count()
}

fn refused(pod: &Pod, to: &Pod, port: u16) -> bool {
    let connected = pod.namespace.within(|| TcpStream::connect(to.at(port)));
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_client_has_neither_its_predecessors_tunnels_nor_its_refusals() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    for number in [1, 2] {
        let records = asked(&mesh, &client, &web);
        assert_eq!(records.map(|record| record.number("/tunnel/use")), [number, number], "the control: it is pooled");
    }
    // Nobody listens there: the kernel refuses the next connect itself.
    wait::until("the predecessor is refused in connect()", || refused(&client, &web, 81).then_some(()));
    let uid = client.uid.clone();
    let client = replace(&mesh, client);
    list_instead(&mut mesh, &uid, &client);
    let mut wire = Capture::on(&client.namespace, "eth0");
    let connected = traffic::connect(&client, web.at(81));
    let records = asked(&mesh, &client, &web);
    assert!(connected.is_ok(), "it is to ask for itself: {connected:?}");
    for record in &records {
        record.names("source", &client);
    }
    assert!(wire.connections_to(TUNNEL_PORT) >= 1, "a tunnel of its own");
    let serials = |pod: &str| {
        let all = mesh.agents[1].records.all().into_iter().filter(|record| record.text("/source/uid") == pod);
        all.map(|record| record.text("/certificate/peer").to_owned()).collect::<Vec<_>>()
    };
    assert!(serials(&uid).iter().all(|serial| !serials(&client.uid).contains(serial)), "a certificate of its own");
    assert_eq!(pinned_pods(&mesh, 0), 1);
}

#[test]
fn a_server_has_neither_its_predecessors_tunnels_nor_its_mode() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let stranger = mesh.world.pod("stranger", Side::A);
    let echo = Server::echo(&web, 80);
    asked(&mesh, &client, &web);
    assert!(refused(&stranger, &web, 80), "the control: the predecessor is strict");
    drop(echo);
    let uid = web.uid.clone();
    let web = replace(&mesh, web);
    let echo = Server::echo(&web, 80);
    // Until the directory knows, a connection is for the predecessor, and there is none.
    let lost = traffic::ask(&client, web.at(80), b"for the predecessor");
    assert!(lost.is_err(), "{lost:?}");
    assert_eq!(echo.accepted(), 0);
    list_instead(&mut mesh, &uid, &web);
    wait::until("what was refused is tried again", || traffic::ask(&client, web.at(80), b"hello").ok());
    let [outbound, inbound] = asked(&mesh, &client, &web);
    for record in [&outbound, &inbound] {
        record.names("destination", &web);
    }
    let to_successor = mesh.agents[0].records.wait(1, |record| record.text("/destination/uid") == web.uid);
    assert_eq!(to_successor[0].number("/tunnel/use"), 1, "{:#?}", to_successor[0]);
    assert!(!refused(&stranger, &web, 80), "permissive, as it is listed");
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    assert!(refused(&stranger, &web, 80));
    assert_eq!(pinned_pods(&mesh, 1), 1);
}

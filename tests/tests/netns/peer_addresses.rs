//! The application sees its real peer: `accept`, `getpeername` and `getsockname` tell what they told without Mantle.

use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::mpsc;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Side};

/// What one end of a connection knows: from `accept` (servers), `getpeername` and `getsockname`.
type Seen = (Option<SocketAddr>, SocketAddr, SocketAddr);

/// Both ends' view of one connection.
fn look(client: &Pod, web: &Pod, listen: SocketAddr) -> (Seen, Seen) {
    let (tell, told) = mpsc::channel();
    let server = Server::start(web, listen, move |stream: TcpStream, accepted| {
        let seen = (Some(accepted), stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        tell.send(seen).unwrap();
        traffic::echo(stream);
    });
    let stream = traffic::connect(client, web.at(listen.port())).unwrap();
    let ours = (None, stream.peer_addr().unwrap(), stream.local_addr().unwrap());
    let theirs = told.recv().unwrap();
    drop((stream, server));
    (ours, theirs)
}

fn check(mesh: &Mesh, client: &Pod, web: &Pod, listen: SocketAddr, captured: bool) {
    let ((_, peer, own), (accepted, client_seen, web_seen)) = look(client, web, listen);
    assert_eq!(peer, web.at(listen.port()));
    assert_eq!(own.ip(), client.address);
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    assert_eq!(accepted.map(canonical), Some(own));
    assert_eq!(canonical(client_seen), own);
    assert_eq!(canonical(web_seen), web.at(listen.port()));
    assert_eq!(client_seen.is_ipv6(), listen.is_ipv6(), "a dual-stack listener has IPv6 addresses");
    let records = mesh.agents[1].records.all().len();
    if captured {
        mesh.agents[1].records.of_client(own);
    } else {
        assert_eq!(records, 0);
    }
}

#[test]
fn both_applications_see_what_they_saw_without_mantle() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let v4: SocketAddr = "0.0.0.0:80".parse().unwrap();
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 81));
    for listen in [v4, dual] {
        check(&mesh, &client, &web, listen, false);
    }
    mesh.enrol(&[&client, &web]);
    for listen in [v4, dual] {
        check(&mesh, &client, &web, listen, true);
    }
}

#[test]
fn pods_of_one_node_see_each_other_as_well() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::B), mesh.strict_pod("web", Side::B));
    let ((_, peer, own), (accepted, ..)) = look(&client, &web, "0.0.0.0:80".parse().unwrap());
    assert_eq!((peer, accepted), (web.at(80), Some(own)));
    assert_eq!(mesh.agents[1].records.wait(2, |record| record.text("/source/address") == own.to_string()).len(), 2);
}

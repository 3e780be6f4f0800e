//! No plaintext enters a strict pod.

use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV6, TcpStream};
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Mode, Namespace, Pod, Side, wait};
use socket2::{Domain, Socket, Type};

fn dial(pod: &Pod, destination: SocketAddr) -> Result<(), ErrorKind> {
    let connected = pod.namespace.within(|| TcpStream::connect_timeout(&destination, Duration::from_secs(20)));
    connected.map(drop).map_err(|error| error.kind())
}

#[test]
fn a_strangers_plaintext_is_refused_on_every_address_and_inside_the_pod_all_is_as_ever() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let (far, near) = (mesh.world.pod("far", Side::A), mesh.world.pod("near", Side::B));
    let echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    let v6 = SocketAddr::from((web.address6, 80));
    for stranger in [&far, &near] {
        assert_eq!(dial(stranger, web.at(80)), Ok(()), "the control: permissive lets plaintext pass");
        assert_eq!(dial(stranger, v6), Ok(()), "the control, over IPv6");
    }
    let before = 4;
    wait::until("the controls are accepted", || (echo.accepted() == before).then_some(()));
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    for stranger in [&far, &near] {
        assert_eq!(dial(stranger, web.at(80)), Err(ErrorKind::ConnectionRefused));
        assert_eq!(dial(stranger, v6), Err(ErrorKind::ConnectionRefused));
    }
    assert_eq!(echo.accepted(), before, "none of it reached the application");
    let inside = [web.at(80), v6, "127.0.0.1:80".parse().unwrap(), "[::1]:80".parse().unwrap()];
    for address in inside {
        assert_eq!(traffic::ask(&web, address, b"mine").unwrap(), b"mine", "{address}");
    }
}

/// The directory knows neither of these addresses.
#[test]
fn link_local_and_secondary_addresses_are_refused_too() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let node = mesh.world.node(Side::B).namespace.clone();
    let echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    web.namespace.ip("address add 192.0.2.9/32 dev eth0");
    web.namespace.ip("-6 address add 2001:db8::9/128 dev eth0 nodad");
    web.namespace.ip("-6 address add fe80::99/64 dev eth0 nodad");
    node.ip(&format!("route add 192.0.2.9/32 dev {}", web.interface));
    node.ip(&format!("-6 route add 2001:db8::9/128 dev {}", web.interface));
    let link_local = |namespace: &Namespace, interface: &str| {
        let scope = namespace.within(|| nix::net::if_::if_nametoindex(interface)).unwrap();
        SocketAddr::from(SocketAddrV6::new("fe80::99".parse().unwrap(), 80, 0, scope))
    };
    let others = ["192.0.2.9:80", "[2001:db8::9]:80"].map(|address| address.parse().unwrap());
    let from_node = [others[0], others[1], link_local(&node, &web.interface)];
    let dial = |to: SocketAddr| node.within(|| TcpStream::connect(to)).map(drop).map_err(|error| error.kind());
    for to in from_node {
        assert_eq!(dial(to), Ok(()), "the control: permissive lets plaintext pass to {to}");
    }
    wait::until("the controls are accepted", || (echo.accepted() == 3).then_some(()));
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    for to in from_node {
        assert_eq!(dial(to), Err(ErrorKind::ConnectionRefused), "{to}");
    }
    assert_eq!(echo.accepted(), 3);
    for to in [others[0], others[1], link_local(&web.namespace, "eth0")] {
        assert_eq!(traffic::ask(&web, to, b"mine").unwrap(), b"mine", "{to}");
    }
    // From an address that the directory knows to one that it does not: the kernel chooses so within one subnet.
    let known = web.namespace.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((web.address, 0)).into())?;
        socket.connect(&others[0].into())
    });
    assert_eq!(known.map_err(|error| error.kind()), Ok(()));
}

#[test]
fn an_enrolled_pod_is_served_where_a_stranger_is_not() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    assert_eq!(traffic::ask(&client, web.at(80), b"hello").unwrap(), b"hello");
    // The tunnel's port speaks TLS with our certificates, or not at all.
    let stranger = mesh.world.pod("stranger", Side::A);
    let mut stream = traffic::connect(&stranger, web.at(15008)).unwrap();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let ended = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(ended.is_err() || answer.first() == Some(&21), "at most a TLS alert: {ended:?} {answer:?}");
}

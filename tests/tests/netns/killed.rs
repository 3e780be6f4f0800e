//! An agent that is killed in the middle of a transfer never looks like a clean end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};

/// Kills the agent of `side` while the server sends without end; says how the client's and the server's streams ended.
fn kill_in_the_middle(side: Side) -> (ErrorKind, ErrorKind) {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let (tell, told) = mpsc::channel();
    let _server = Server::start(&web, "0.0.0.0:80".parse().unwrap(), move |mut stream: TcpStream, _| {
        let block = vec![7; 64 << 10];
        let ended = std::iter::repeat_with(|| stream.write_all(&block)).find_map(Result::err);
        tell.send(ended.unwrap().kind()).unwrap();
    });
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    let mut buffer = vec![0; 256 << 10];
    stream.read_exact(&mut buffer).unwrap();
    mesh.agent(side).kill();
    let ended = loop {
        match traffic::read(&mut stream, &mut buffer) {
            Ok(0) => panic!("a clean end of a stream that nobody ended"),
            Ok(_) => {}
            Err(error) => break error.kind(),
        }
    };
    (ended, told.recv().unwrap())
}

#[test]
fn the_dialling_agents_death_is_a_reset() {
    let (client, server) = kill_in_the_middle(Side::A);
    assert_eq!(client, ErrorKind::ConnectionReset);
    assert!(matches!(server, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{server:?}");
}

#[test]
fn the_accepting_agents_death_is_a_reset() {
    let (client, server) = kill_in_the_middle(Side::B);
    assert_eq!(client, ErrorKind::ConnectionReset);
    assert!(matches!(server, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{server:?}");
}

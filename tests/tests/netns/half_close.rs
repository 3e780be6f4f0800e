//! Half-close is half-close, in both directions.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};

#[test]
fn each_side_may_end_first_and_still_be_answered() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    // The client ends first; the server answers when it has read the end.
    let _late = Server::start(&web, "0.0.0.0:80".parse().unwrap(), |mut stream, _| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(b"you said: ").unwrap();
        stream.write_all(&question).unwrap();
    });
    assert_eq!(traffic::ask(&client, web.at(80), b"hello").unwrap(), b"you said: hello");
    // The server speaks first and ends first; the client answers when it has read the end.
    let (tell, told) = std::sync::mpsc::channel();
    let _first = Server::start(&web, "0.0.0.0:81".parse().unwrap(), move |mut stream, _| {
        stream.write_all(b"banner").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        tell.send(answer).unwrap();
    });
    let mut stream = traffic::connect(&client, web.at(81)).unwrap();
    let mut banner = Vec::new();
    stream.read_to_end(&mut banner).unwrap();
    assert_eq!(banner, b"banner");
    stream.write_all(b"after the end").unwrap();
    drop(stream);
    assert_eq!(told.recv().unwrap(), b"after the end");
    let ended = mesh.agents[0].records.wait(2, |record| record.close() == "finished");
    assert_eq!(ended.len(), 2);
}

#[test]
fn an_end_without_a_byte_is_an_end() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    assert_eq!(traffic::ask(&client, web.at(80), b"").unwrap(), b"");
}

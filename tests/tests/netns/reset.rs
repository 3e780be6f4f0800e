//! A reset is a reset: never a clean end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::mpsc;

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};

#[test]
fn the_clients_reset_reaches_the_server() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let (tell, told) = mpsc::channel();
    let _server = Server::start(&web, "0.0.0.0:80".parse().unwrap(), move |mut stream, _| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
        tell.send(traffic::read(&mut stream, &mut byte).map_err(|error| error.kind())).unwrap();
    });
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    traffic::reset(stream);
    assert_eq!(told.recv().unwrap(), Err(ErrorKind::ConnectionReset));
    for agent in &mesh.agents {
        let record = agent.records.of_client(own);
        assert_eq!((record.close(), record.blame()), ("reset_by_source", "application"));
    }
}

#[test]
fn the_servers_reset_reaches_the_client_also_while_nobody_reads() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let _server = Server::start(&web, "0.0.0.0:80".parse().unwrap(), move |mut stream, _| {
        // The client has ended its direction, so its agent does not read it any more.
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        gone.lock().unwrap().recv().unwrap();
        traffic::reset(stream);
    });
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"question").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    go.send(()).unwrap();
    traffic::expect_reset(&mut stream);
    for agent in &mesh.agents {
        let record = agent.records.of_client(own);
        assert_eq!((record.close(), record.blame()), ("reset_by_destination", "application"));
    }
}

#[test]
fn a_port_that_nobody_listens_on_ends_in_a_reset_and_says_so() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    // The reset may be there before the connect has returned.
    match traffic::connect(&client, web.at(9)) {
        Ok(mut stream) => traffic::expect_reset(&mut stream),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    for agent in &mesh.agents {
        let records = agent.records.wait(1, |record| record.text("/destination/address") == web.at(9).to_string());
        assert_eq!(records.len(), 1, "{records:#?}");
        assert_eq!((records[0].close(), records[0].blame()), ("connection_refused", "application"));
    }
    // The tunnel is as good as before.
    let _echo = Server::echo(&web, 80);
    let stream = traffic::connect(&client, web.at(80)).unwrap();
    let own = stream.local_addr().unwrap();
    drop(stream);
    assert_eq!(mesh.agents[0].records.of_client(own).number("/tunnel/use"), 2);
}

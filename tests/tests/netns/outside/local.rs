//! What `mantle connect` makes of its local end: of one that goes, that is slow, or that the system has no room for.

use std::io::{BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Side, wait};
use nix::fcntl::{FcntlArg, fcntl};

use super::{Robot, allows, failed};

/// A pod, the client that it lets in, and the application's ends of what is connected.
struct Stage {
    robot: Robot,
    web: Pod,
    accepted: Receiver<TcpStream>,
    _server: Server,
    mesh: Mesh,
}

impl Stage {
    fn made() -> Self {
        let mut mesh = Mesh::start();
        let web = mesh.strict_pod("web", Side::B);
        mesh.change(|directory| directory.policies = vec![allows()]);
        let (tell, accepted) = mpsc::channel();
        let server = Server::start(&web, web.at(80), move |stream, _| {
            // The test may be over.
            let _ = tell.send(stream);
        });
        Self { robot: Robot::made(&mesh), web, accepted, _server: server, mesh }
    }

    /// The application's end, once it has heard the first word.
    fn heard(&self) -> TcpStream {
        let mut stream = self.accepted.recv_timeout(wait::SOON).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream
    }
}

#[track_caller]
fn ends_in_order(stream: &mut TcpStream) {
    assert_eq!(traffic::read(stream, &mut [0; 8]).unwrap(), 0);
}

/// Without another word from the application.
#[track_caller]
fn is_reset(stream: &TcpStream) {
    let error = wait::until("the application's connection is reset", || stream.take_error().unwrap());
    // What a reset is called by the kernel once the peer's direction has ended.
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn a_local_client_that_goes_is_a_reset_to_the_application_whatever_it_has_said() {
    let stage = Stage::made();
    let forwarder = stage.robot.forward(stage.web.at(80));
    let begin = || {
        let mut client = traffic::connect(&stage.robot.host, forwarder.at).unwrap();
        client.write_all(b"ping").unwrap();
        (client, stage.heard())
    };
    let (client, application) = begin();
    traffic::reset(client);
    is_reset(&application);

    let (client, mut application) = begin();
    client.shutdown(Shutdown::Write).unwrap();
    ends_in_order(&mut application);
    traffic::reset(client);
    is_reset(&application);

    // One that closes has said no more than that it says nothing. The first byte that it does not take tells.
    let (client, mut application) = begin();
    client.shutdown(Shutdown::Write).unwrap();
    ends_in_order(&mut application);
    drop(client);
    application.write_all(b"x").unwrap();
    is_reset(&application);
}

#[test]
fn an_output_that_nobody_reads_is_a_reset_to_the_application_also_after_the_inputs_end() {
    let stage = Stage::made();
    let mut session = stage.robot.reach(stage.web.at(80));
    session.child().stdin.take().unwrap().write_all(b"ping").unwrap();
    let mut application = stage.heard();
    ends_in_order(&mut application);
    drop(session.child().stdout.take());
    application.write_all(b"x").unwrap();
    is_reset(&application);
    failed(&session.end(), "standard output");
}

#[test]
fn what_had_arrived_before_a_reset_is_there_also_for_who_reads_late() {
    const LENGTH: usize = 48 << 10;
    let stage = Stage::made();
    let mut session = stage.robot.reach(stage.web.at(80));
    let output = session.child().stdout.as_ref().unwrap();
    fcntl(output, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    session.child().stdin.as_mut().unwrap().write_all(b"ping").unwrap();
    let mut application = stage.heard();
    let mut said = Vec::new();
    traffic::Pattern::new(3).send(&mut said, LENGTH).unwrap();
    application.write_all(&said).unwrap();
    traffic::reset(application);
    stage.mesh.agents[1].records.wait(1, |record| record.close() == "reset_by_destination");
    let mut output = session.child().stdout.take().unwrap();
    let mut heard = Vec::new();
    output.read_to_end(&mut heard).unwrap();
    assert!(heard == said, "{} bytes", heard.len());
    failed(&session.end(), "was reset");
}

#[test]
fn a_forwarder_that_cannot_accept_goes_on_when_it_can() {
    let stage = Stage::made();
    let mut forwarder = stage.robot.forward(stage.web.at(80));
    let pid = forwarder.session.child().id().to_string();
    let limit = |most: u32| {
        let limit = format!("--nofile={most}:");
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    };
    limit(1);
    let mut client = traffic::connect(&stage.robot.host, forwarder.at).unwrap();
    client.write_all(b"ping").unwrap();
    let mut line = String::new();
    forwarder.said.read_line(&mut line).unwrap();
    assert!(line.contains("cannot accept: Too many open files"), "{line}");
    limit(64);
    let mut application = stage.heard();
    application.write_all(b"pong").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
}

//! An agent that is killed at any stage of a connection leaves a reset, never plaintext and never an end that nobody sent.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Capture, Mesh, Pod, Settings, Side, TUNNEL_PORT, wait};
use nix::sys::signal::Signal;

const SECRET: &[u8] = b"must-never-be-seen";

const SIDES: [Side; 2] = [Side::A, Side::B];

/// Two pods, eyes on the client's wire, and the server's ends of its connections.
struct Stage {
    client: Pod,
    web: Pod,
    accepted: Receiver<TcpStream>,
    wire: Capture,
    _server: Server,
    mesh: Mesh,
}

impl Stage {
    fn set() -> Self {
        Self::with_uses(0)
    }

    /// With so many connections for each tunnel.
    fn with_uses(max_uses: u32) -> Self {
        let agent = AgentSettings { max_uses, drain: "60s", ..AgentSettings::default() };
        let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
        let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
        let (tell, accepted) = mpsc::channel();
        let server = Server::start(&web, web.at(80), move |stream, _| {
            // The test may have ended.
            let _ = tell.send(stream);
        });
        let wire = Capture::on(&client.namespace, "eth0");
        Self { client, web, accepted, wire, _server: server, mesh }
    }

    /// A connection that has said the secret; whether it has been heard is another matter.
    #[track_caller]
    fn begin(&self) -> TcpStream {
        let mut stream = traffic::connect(&self.client, self.web.at(80)).unwrap();
        stream.write_all(SECRET).unwrap();
        stream
    }

    /// Both ends of a connection over which the secret has been said.
    #[track_caller]
    fn open(&self) -> (TcpStream, TcpStream) {
        let near = self.begin();
        (near, self.heard())
    }

    /// The server's end of the next connection, when it has heard the secret.
    #[track_caller]
    fn heard(&self) -> TcpStream {
        let mut far = self.accepted.recv_timeout(wait::SOON).unwrap();
        far.read_exact(&mut [0; SECRET.len()]).unwrap();
        far
    }

    /// Leaves an idle tunnel behind.
    #[track_caller]
    fn warm_up(&self) {
        let (mut near, far) = self.open();
        drop(far);
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(traffic::read(&mut near, &mut [0; 8]).unwrap(), 0);
        let finished = |record: &agent_tests::Record| record.close() == "finished";
        self.mesh.agents[0].records.wait(1, finished);
    }

    /// Stops an agent where it is: whatever comes waits before it.
    fn freeze(&mut self, side: Side) {
        self.mesh.agent(side).signal(Signal::SIGSTOP);
    }

    /// How much has gone to the tunnel's far end.
    fn said_to_tunnel(&mut self) -> usize {
        let to_tunnel = self.wire.segments().iter().filter(|segment| segment.destination.port() == TUNNEL_PORT);
        to_tunnel.map(|segment| segment.payload.len()).sum()
    }

    /// Waits until more has gone there.
    fn until_said(&mut self, before: usize) {
        wait::until("something is sent to the other agent", || (self.said_to_tunnel() > before).then_some(()));
    }

    /// Nobody is served without this side's agent, and all are when it is back; the wire has shown nothing all the while.
    #[track_caller]
    fn check(&mut self, side: Side) {
        let _ = self.accepted.try_iter().count();
        for _ in 0..2 {
            let refused = traffic::ask(&self.client, self.web.at(80), SECRET);
            assert!(refused.is_err(), "a connection without node {side:?}'s agent");
        }
        assert_eq!(self.accepted.try_iter().count(), 0);
        self.mesh.restart(side);
        let mut near = wait::until("it is served again", || {
            let mut stream = traffic::connect(&self.client, self.web.at(80)).ok()?;
            stream.write_all(SECRET).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            // It is reset if it is not served; the server itself says nothing.
            let answer = traffic::read(&mut stream, &mut [0; 1]).unwrap_err();
            (answer.kind() == std::io::ErrorKind::WouldBlock).then_some(stream)
        });
        let mut far = self.heard();
        far.write_all(b"!").unwrap();
        near.read_exact(&mut [0; 1]).unwrap();
        assert!(!self.wire.shows(SECRET), "plaintext on the pod's wire");
        assert_eq!((self.wire.bytes_at(80), self.wire.connections_to(80)), (0, 0));
    }
}

/// The stream ends, and not cleanly; what comes before its end does not matter.
#[track_caller]
fn breaks(mut stream: TcpStream) {
    loop {
        match traffic::read(&mut stream, &mut [0; 4096]) {
            Ok(0) => panic!("a clean end that nobody sent"),
            Ok(_) => {}
            Err(error) => {
                assert!(
                    ![std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&error.kind()),
                    "{error}"
                );
                return;
            }
        }
    }
}

#[test]
fn before_the_connection_is_accepted() {
    let mut stage = Stage::set();
    stage.freeze(Side::A);
    // The kernel does not take it for hung yet, and completes the handshake for it.
    let near = stage.begin();
    stage.mesh.agent(Side::A).kill();
    breaks(near);
    stage.check(Side::A);
}

#[test]
fn during_the_handshake() {
    let mut stage = Stage::set();
    for side in SIDES {
        // A tunnel from before would need no handshake.
        stage.mesh.agent(Side::B).kill();
        stage.mesh.restart(Side::B);
        stage.freeze(Side::B);
        let before = stage.said_to_tunnel();
        let near = stage.begin();
        stage.until_said(before);
        stage.mesh.agent(side).kill();
        breaks(near);
        if side == Side::A {
            stage.mesh.agent(Side::B).signal(Signal::SIGCONT);
        }
        stage.check(side);
    }
}

#[test]
fn while_an_open_is_unanswered() {
    let mut stage = Stage::set();
    for side in SIDES {
        stage.warm_up();
        stage.freeze(Side::B);
        let before = stage.said_to_tunnel();
        let near = stage.begin();
        stage.until_said(before);
        stage.mesh.agent(side).kill();
        breaks(near);
        if side == Side::A {
            stage.mesh.agent(Side::B).signal(Signal::SIGCONT);
        }
        stage.check(side);
    }
}

#[test]
fn while_data_flows() {
    let mut stage = Stage::set();
    for side in SIDES {
        let (near, far) = stage.open();
        stage.mesh.agent(side).kill();
        breaks(near);
        breaks(far);
        stage.check(side);
    }
}

#[test]
fn half_closed_by_the_client() {
    let mut stage = Stage::set();
    for side in SIDES {
        let (near, mut far) = stage.open();
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(traffic::read(&mut far, &mut [0; 8]).unwrap(), 0, "an end that the client sent");
        stage.mesh.agent(side).kill();
        breaks(near);
        stage.check(side);
    }
}

#[test]
fn half_closed_by_the_server() {
    let mut stage = Stage::set();
    for side in SIDES {
        let (mut near, far) = stage.open();
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(traffic::read(&mut near, &mut [0; 8]).unwrap(), 0, "an end that the server sent");
        stage.mesh.agent(side).kill();
        breaks(far);
        stage.check(side);
    }
}

/// What was said last, and the end of it, wait at the agent that is killed.
#[test]
fn while_the_last_words_are_on_the_way() {
    let mut stage = Stage::set();
    for side in SIDES {
        let (near, far) = stage.open();
        stage.freeze(side);
        let (mut speaker, listener) = if side == Side::A { (far, near) } else { (near, far) };
        speaker.write_all(b"the last words").unwrap();
        speaker.shutdown(Shutdown::Write).unwrap();
        stage.mesh.agent(side).kill();
        breaks(listener);
        stage.check(side);
    }
}

#[test]
fn while_a_tunnel_is_idle() {
    let mut stage = Stage::set();
    for side in SIDES {
        stage.warm_up();
        stage.mesh.agent(side).kill();
        stage.check(side);
    }
}

#[test]
fn while_it_drains() {
    let mut stage = Stage::set();
    for side in SIDES {
        let (near, far) = stage.open();
        stage.mesh.agent(side).signal(Signal::SIGTERM);
        wait::until("it drains", || traffic::ask(&stage.client, stage.web.at(80), SECRET).err());
        stage.mesh.agent(side).kill();
        breaks(near);
        breaks(far);
        stage.check(side);
    }
}

#[test]
fn while_it_hands_over() {
    // An idle tunnel could still be the old agent's.
    let mut stage = Stage::with_uses(1);
    for (side, at) in SIDES.into_iter().zip([0, 1]) {
        let (near, far) = stage.open();
        let Mesh { agents, world, .. } = &mut stage.mesh;
        let old = agents[at].take_over(world);
        let (kept, served) = stage.open();
        // The old one's connections end with it, the new one's with that one.
        old.kill();
        breaks(near);
        breaks(far);
        let mut goes_on = (&kept, &served);
        goes_on.0.write_all(b"!").unwrap();
        goes_on.1.read_exact(&mut [0; 1]).unwrap();
        stage.mesh.agent(side).kill();
        breaks(kept);
        breaks(served);
        stage.check(side);
    }
}

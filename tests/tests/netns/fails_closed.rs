//! No agent, no connection: never plaintext.

use std::net::TcpStream;
use std::time::Duration;

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Fail, Mesh, Pod, Side, wait};

const SECRET: &[u8] = b"must-never-be-seen";

/// Tries to send the secret, and says whether anything could be sent at all.
fn try_to_send(pod: &Pod, to: &Pod) -> bool {
    let connected = pod.namespace.within(|| TcpStream::connect_timeout(&to.at(80), Duration::from_secs(5)));
    let Ok(mut stream) = connected.and_then(traffic::patient) else { return false };
    let sent = std::io::Write::write_all(&mut stream, SECRET);
    sent.and_then(|()| std::io::Read::read_exact(&mut stream, &mut [0; 1])).is_ok()
}

fn check_refused(mesh: &mut Mesh, client: &Pod, web: &Pod, echo: &Server, gone: Side) {
    let mut wire = Capture::on(&client.namespace, "eth0");
    let before = echo.accepted();
    for _ in 0..5 {
        assert!(!try_to_send(client, web), "a connection without node {gone:?}'s agent");
    }
    assert_eq!((wire.bytes_at(80), wire.shows(SECRET)), (0, false));
    assert_eq!(wire.connections_to(80), 0, "not even a SYN to the application's port");
    let stranger = mesh.world.pod(&format!("stranger-{}", gone.letter()), Side::A);
    assert!(!try_to_send(&stranger, web), "a strict pod refuses plaintext with and without its agent");
    assert_eq!(echo.accepted(), before);
    stranger.remove();
}

/// What refused a moment ago is not tried at once.
fn comes_back(client: &Pod, web: &Pod) {
    wait::until("it is served again", || try_to_send(client, web).then_some(()));
}

#[test]
fn an_agent_that_is_killed_or_stopped_fails_closed_and_recovers() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let echo = Server::echo(&web, 80);
    assert!(try_to_send(&client, &web), "the control: without Mantle it is sent");
    mesh.enrol(&[&client, &web]);
    mesh.change(|directory| directory.entry(&web).mode = agent_tests::Mode::Strict);
    assert!(try_to_send(&client, &web));
    for side in [Side::A, Side::B] {
        mesh.agent(side).kill();
        check_refused(&mut mesh, &client, &web, &echo, side);
        mesh.restart(side);
        comes_back(&client, &web);
        assert!(mesh.agent(side).stop().success());
        check_refused(&mut mesh, &client, &web, &echo, side);
        mesh.restart(side);
        comes_back(&client, &web);
    }
}

#[test]
fn a_pod_that_may_fail_open_does() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    mesh.change(|directory| directory.entry(&client).fail = Fail::Open);
    mesh.agent(Side::A).kill();
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert!(try_to_send(&client, &web));
    assert!(wire.shows(SECRET), "in the clear: that is what the waiver means");
}

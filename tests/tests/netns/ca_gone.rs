//! While the CA is away, who has a certificate goes on, and who has none gets no connection.

use std::io::ErrorKind;
use std::net::TcpStream;

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Mode, Pod, Side, wait};

const SECRET: &[u8] = b"must-never-be-seen";

fn refused(pod: &Pod, to: &Pod) -> bool {
    pod.namespace.within(|| TcpStream::connect(to.at(80))).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_pod_that_starts_without_a_ca_is_refused_and_served_when_it_is_back() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let served = |pod: &Pod| traffic::ask(pod, web.at(80), SECRET).is_ok_and(|answer| answer == SECRET).then_some(());
    assert!(served(&client).is_some());
    mesh.ca.kill();
    let (guarded, published, running) =
        ["guarded", "published", "running"].map(|name| mesh.world.pod(name, Side::A)).into();
    let mine = Server::echo(&guarded, 80);
    mesh.change(|directory| {
        directory.list(&guarded).mode = Mode::Strict;
        directory.list(&published).serving = true;
        directory.list(&running);
    });
    let mut wires = [&guarded, &published].map(|pod| Capture::on(&pod.namespace, "eth0"));
    for pod in [&guarded, &published] {
        assert!(refused(pod, &web), "from the first moment");
    }
    let stranger = mesh.world.pod("stranger", Side::B);
    assert!(refused(&stranger, &guarded) && mine.accepted() == 0, "strict from the first moment");
    wait::until("a running pod is left alone for some seconds only", || refused(&running, &web).then_some(()));
    let mut wire = Capture::on(&running.namespace, "eth0");
    assert!(refused(&running, &web), "and it stays so");
    assert!(served(&client).is_some(), "who has a certificate goes on");
    let Mesh { ca, world, .. } = &mut mesh;
    ca.start(world);
    for pod in [&guarded, &published, &running] {
        wait::until("it is served", || served(pod));
    }
    for wire in wires.iter_mut().chain([&mut wire]) {
        assert!(!wire.shows(SECRET));
        assert_eq!(wire.bytes_at(80), 0);
    }
}

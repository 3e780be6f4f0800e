//! An agent that starts over pins keeps what is still true and drops what is not.

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Side};

#[test]
fn pods_that_left_came_or_were_replaced_meanwhile_are_told_apart() {
    let mut mesh = Mesh::start();
    let stays = mesh.pod("stays", Side::A);
    let leaves = mesh.pod("leaves", Side::A);
    let replaced = mesh.pod("replaced", Side::A);
    let web = mesh.strict_pod("web", Side::B);
    let _echo = Server::echo(&web, 80);
    for pod in [&stays, &leaves, &replaced] {
        assert_eq!(traffic::ask(pod, web.at(80), b"before").unwrap(), b"before");
    }
    mesh.agent(Side::A).kill();
    // One pod goes, one is replaced under its name and address, one peer comes.
    mesh.directory.remove(&leaves);
    mesh.directory.remove(&replaced);
    leaves.remove();
    let address = replaced.address;
    replaced.remove();
    let successor = mesh.world.pod_at("replaced", Side::A, address);
    mesh.directory.list(&successor);
    mesh.directory.publish();
    let fresh = mesh.pod("fresh", Side::B);
    let _fresh_echo = Server::echo(&fresh, 80);
    mesh.restart(Side::A);
    mesh.change(|directory| directory.entry(&successor).serving = true);

    for pod in [&stays, &successor] {
        for (to, port) in [(&web, 80), (&fresh, 80)] {
            let stream = traffic::connect(pod, to.at(port)).unwrap();
            let own = stream.local_addr().unwrap();
            drop(stream);
            mesh.agents[1].records.wait(1, |record| record.text("/source/address") == own.to_string())[0]
                .names("source", pod);
        }
    }
    let pins = std::fs::read_dir(mesh.agents[0].layout()).unwrap();
    let pods = pins.filter(|pin| pin.as_ref().unwrap().file_name().to_str().unwrap().starts_with("pod_")).count();
    assert_eq!(pods, 2, "the two pods that are there, and nothing of the others");
}

#[test]
fn a_second_agent_of_the_same_instance_refuses_to_start() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let second = mesh.agents[0].run(&[]);
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another agent runs as this instance"), "{said}");
    assert_eq!(traffic::ask(&client, web.at(80), b"undisturbed").unwrap(), b"undisturbed");
}

#[test]
fn a_pod_that_was_captured_is_not_let_go_while_a_new_agent_waits_for_its_certificate() {
    let mut mesh = Mesh::start();
    let web = mesh.pod("web", Side::B);
    let echo = Server::echo(&web, 80);
    // Enrolled and serving, but not published yet: a first enrolment would leave it alone for some seconds.
    let client = mesh.world.pod("client", Side::A);
    mesh.change(|directory| {
        directory.list(&client);
    });
    mesh.until_serving();
    assert_eq!(traffic::ask(&client, web.at(80), b"before").unwrap(), b"before");
    mesh.agent(Side::A).kill();
    mesh.ca.kill();
    let before = echo.accepted();
    let Mesh { agents, world, .. } = &mut mesh;
    agents[0].start(world);
    mesh.in_force();
    let refused = client.namespace.within(|| std::net::TcpStream::connect(web.at(80))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(echo.accepted(), before);
}

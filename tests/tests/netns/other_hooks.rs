//! Another program's connect hook, which rewrites a service's address as a replacement of kube-proxy does, beside ours.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_tests::tamper::Rewriter;
use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Mode, Pod, Record, Service, Settings, Side};

/// A service's address, and which of a pod's addresses the hook turns it into.
type Family = (&'static str, fn(&Pod, u16) -> SocketAddr);

/// Addresses of nobody's (RFC 5737, RFC 3849), so that a hook at the root meets these tests' connections alone.
const FAMILIES: [Family; 2] = [("198.51.100.77:80", Pod::at), ("[2001:db8::77]:80", Pod::at6)];

/// Two of these tests at once would meet each other's hooks.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn echo(pod: &Pod) -> Server {
    Server::start(pod, "[::]:8080".parse().unwrap(), |stream, _| traffic::echo(stream))
}

/// Asks the service, and shows that what went to `web` was captured.
#[track_caller]
fn is_captured(mesh: &Mesh, client: &Pod, service: SocketAddr, web: SocketAddr) {
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(traffic::ask(client, service, b"question").unwrap(), b"question");
    let of_these =
        |record: &Record| record.close() == "finished" && record.text("/destination/address") == web.to_string();
    mesh.agents[0].records.wait(1, of_these);
    assert_eq!((wire.bytes_at(8080), wire.connections_to(8080)), (0, 0));
}

#[test]
fn what_a_hook_before_ours_has_rewritten_is_captured_where_it_goes() {
    let _alone = alone();
    let mut mesh = Mesh::prepare(&Settings::default());
    let web = mesh.world.pod("web", Side::B);
    let services = FAMILIES.map(|(service, at)| (service.parse().unwrap(), at(&web, 8080)));
    let _links = services.map(|(service, to)| Rewriter::attach(None, service, to));
    for agent in &mut mesh.agents {
        agent.start(&mesh.world);
    }
    let client = mesh.pod("client", Side::A);
    mesh.enrol(&[&web]);
    mesh.dual_stack(&[&client, &web]);
    let _echo = echo(&web);
    for (service, to) in services {
        is_captured(&mesh, &client, service, to);
    }
}

#[test]
fn a_service_that_the_directory_lists_is_captured_before_a_hook_after_ours_sees_it() {
    let _alone = alone();
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let services = FAMILIES.map(|(service, at)| (service.parse().unwrap(), at(&web, 8080)));
    let _links = services.map(|(service, to)| Rewriter::attach(None, service, to));
    let _echo = echo(&web);
    let ask = |service: SocketAddr| traffic::ask(&client, service, b"question");
    for (service, _) in services {
        let mut wire = Capture::on(&client.namespace, "eth0");
        // That service is none of Mantle's, and so is what becomes of it behind its back; the receiver can refuse it.
        assert_eq!(ask(service).unwrap(), b"question");
        assert!(wire.shows(b"question"));
    }
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    for (service, _) in services {
        assert_eq!(ask(service).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    let listed = services.iter().fold(Service::new("web"), |listed, (service, _)| listed.at(*service, 8080));
    mesh.change(|directory| directory.services.push(listed.with(&web)));
    for (service, to) in services {
        is_captured(&mesh, &client, service, to);
        mesh.agents[0].records.wait(1, |record| record.text("/service/frontend") == service.to_string());
    }
}

#[test]
fn a_hook_at_a_containers_cgroup_comes_before_ours() {
    let _alone = alone();
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let group = mesh.world.cgroup("container");
    let _reached = Server::start(&web, "[::]:8080".parse().unwrap(), |mut stream, _| {
        io::Write::write_all(&mut stream, b"reached\n").unwrap();
    });
    for (service, at) in FAMILIES {
        let (service, to) = (service.parse::<SocketAddr>().unwrap(), at(&web, 8080));
        let _link = Rewriter::attach(Some(&group), service, to);
        let connect = format!("exec 3<>/dev/tcp/{}/{} && head -1 <&3", service.ip(), service.port());
        let mut bash = group.command(&client.namespace, "bash");
        let output = bash.args(["-c", &connect]).output().unwrap();
        assert_eq!(output.stdout, b"reached\n", "{output:?}");
        mesh.agents[0].records.wait(1, |record| record.text("/destination/address") == to.to_string());
    }
}

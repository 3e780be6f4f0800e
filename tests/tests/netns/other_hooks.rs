//! Another program's connect hook, which rewrites a service's address as a replacement of kube-proxy does, beside ours.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_tests::tamper::Rewriter;
use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Cgroup, Mesh, Pod, Service, Settings, Side};

/// An address of nobody's (RFC 5737), so that a hook at the root meets these tests' connections alone.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 77), 80);

/// Turns connects to [`SERVICE`] into connects to the pod, for the tasks of a cgroup or of all, as long as it lives.
fn rewrite(cgroup: Option<&Cgroup>, to: &Pod, port: u16) -> Rewriter {
    Rewriter::attach(cgroup, SERVICE, SocketAddrV4::new(to.address, port))
}

/// Two of these tests at once would meet each other's hooks.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer of whoever is behind the service.
fn ask(client: &Pod) -> io::Result<Vec<u8>> {
    traffic::ask(client, SocketAddr::V4(SERVICE), b"question")
}

#[test]
fn what_a_hook_before_ours_has_rewritten_is_captured_where_it_goes() {
    let _alone = alone();
    let mut mesh = Mesh::prepare(&Settings::default());
    let web = mesh.world.pod("web", Side::B);
    let _link = rewrite(None, &web, 8080);
    for agent in &mut mesh.agents {
        agent.start(&mesh.world);
    }
    let client = mesh.pod("client", Side::A);
    mesh.enrol(&[&web]);
    let _echo = Server::echo(&web, 8080);
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(ask(&client).unwrap(), b"question");
    let record = mesh.agents[0].records.wait(1, |record| record.close() == "finished").remove(0);
    assert_eq!(record.text("/destination/address"), web.at(8080).to_string());
    assert_eq!((wire.bytes_at(8080), wire.connections_to(8080)), (0, 0));
}

#[test]
fn a_service_that_the_directory_lists_is_captured_before_a_hook_after_ours_sees_it() {
    let _alone = alone();
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let _link = rewrite(None, &web, 8080);
    let _echo = Server::echo(&web, 8080);
    let mut wire = Capture::on(&client.namespace, "eth0");
    // That service is none of Mantle's, and so is what becomes of it behind its back; the receiver can refuse it.
    assert_eq!(ask(&client).unwrap(), b"question");
    assert!(wire.shows(b"question"));
    mesh.change(|directory| directory.entry(&web).mode = agent_tests::Mode::Strict);
    assert_eq!(ask(&client).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let service = Service::new("web").at(SocketAddr::V4(SERVICE), 8080).with(&web);
    mesh.change(|directory| directory.services.push(service));
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(ask(&client).unwrap(), b"question");
    assert_eq!((wire.bytes_at(8080), wire.connections_to(8080)), (0, 0));
    let record = mesh.agents[0].records.wait(1, |record| record.close() == "finished").remove(0);
    assert_eq!(record.text("/service/frontend"), SERVICE.to_string());
}

#[test]
fn a_hook_at_a_containers_cgroup_comes_before_ours() {
    let _alone = alone();
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let group = mesh.world.cgroup("container");
    let _link = rewrite(Some(&group), &web, 8080);
    let _echo = Server::start(&web, "0.0.0.0:8080".parse().unwrap(), |mut stream, _| {
        io::Write::write_all(&mut stream, b"reached\n").unwrap();
    });
    let connect = format!("exec 3<>/dev/tcp/{}/{} && head -1 <&3", SERVICE.ip(), SERVICE.port());
    let mut bash = group.command(&client.namespace, "bash");
    let output = bash.args(["-c", &connect]).output().unwrap();
    assert_eq!(output.stdout, b"reached\n", "{output:?}");
    let record = mesh.agents[0].records.wait(1, |_| true).remove(0);
    assert_eq!(record.text("/destination/address"), web.at(8080).to_string());
}

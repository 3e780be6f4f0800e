//! Port-forward is as without Mantle. A container runtime serves it as this does: outside the pod's control group and
//! namespace, it enters the namespace for the moment of the dial, and uses the connection from where it came.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use agent_tests::traffic::Server;
use agent_tests::{AgentSettings, Capture, Mesh, Mode, Pod, Settings, Side};

/// Dials from within a namespace, and says what it and the application saw.
const RUNTIME: &str = "import ctypes, os, socket, sys
def enter(namespace):
    if ctypes.CDLL(None).setns(namespace, 0x40000000) != 0: raise OSError('setns')
home, pod = [os.open(path, os.O_RDONLY) for path in ('/proc/self/ns/net', sys.argv[1])]
enter(pod)
try: connection = socket.create_connection((sys.argv[2], int(sys.argv[3])), 20)
except ConnectionRefusedError: sys.exit('refused')
enter(home)
seen = connection.getsockname()[0], connection.getpeername()[:2]
connection.sendall(b'question')
connection.shutdown(socket.SHUT_WR)
answer = b''
while more := connection.recv(100): answer += more
print(*seen, answer)";

/// A runtime's dial within `pod`; `None` if it was refused.
#[track_caller]
fn forward(mesh: &Mesh, pod: &Pod, to: SocketAddr) -> Option<String> {
    let runtime = mesh.world.cgroup("system/containerd");
    let mut python = runtime.command(&mesh.world.node(pod.side).namespace, "python3");
    let (namespace, ip, port) = (pod.namespace.path(), to.ip().to_string(), to.port().to_string());
    let output = python.args(["-c", RUNTIME]).arg(namespace).args([ip, port]).output().unwrap();
    if output.stderr == b"refused\n" {
        return None;
    }
    assert!(output.status.success(), "to {to}: {output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Two nodes whose agents know the pods' cgroup and the node's namespace, so that neither takes the other's part.
fn mesh() -> Mesh {
    let mut mesh = Mesh::prepare(&Settings::default());
    assert!(!mesh.world.cgroup("pods").is_inhabited());
    for agent in &mut mesh.agents {
        let node = agent.node.namespace.path();
        let more = format!("pods_cgroup: /{}-pods\nnode_netns: {}\n", mesh.world.name(), node.display());
        agent.configure(&mesh.world, &AgentSettings { more, ..AgentSettings::default() });
        agent.start(&mesh.world);
    }
    mesh
}

/// Answers with what it hears, and from whom.
fn serve(pod: &Pod, address: &str) -> Server {
    Server::start(pod, address.parse().unwrap(), |mut stream, from| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        let own = stream.local_addr().unwrap().ip();
        write!(stream, "{question} from {} to {own}", from.ip()).unwrap();
    })
}

#[test]
fn it_reaches_an_application_in_a_strict_pod_with_and_without_its_agent() {
    let mut mesh = mesh();
    let web = mesh.world.pod("web", Side::B);
    let _servers = ["[::]:80", "127.0.0.1:81", "[::1]:82"].map(|address| serve(&web, address));
    let loopback = ["127.0.0.1:80", "[::1]:80", "127.0.0.1:81", "[::1]:82"].map(|to| to.parse().unwrap());
    let all = |mesh: &Mesh| {
        let places = loopback.into_iter().chain([web.at(80), web.at6(80), web.at(81)]);
        places.map(|to| forward(mesh, &web, to)).collect::<Vec<_>>()
    };
    let plain = all(&mesh);
    assert_eq!(plain.iter().filter(|seen| seen.is_some()).count(), 6, "all but the private one: {plain:?}");
    mesh.enrol(&[&web]);
    mesh.dual_stack(&[&web]);
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    assert_eq!(all(&mesh), plain);
    mesh.agent(Side::B).kill();
    assert_eq!(all(&mesh), plain);
    assert!(mesh.agents[1].records.all().is_empty(), "nothing of it was carried");
}

#[test]
fn what_it_dials_in_the_mesh_from_there_is_captured() {
    let mut mesh = mesh();
    let (client, web) = (mesh.world.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let _server = serve(&web, "[::]:80");
    let places = [web.at(80), web.at6(80)];
    let plain = places.map(|to| forward(&mesh, &client, to));
    assert!(plain.iter().all(Option::is_some), "{plain:?}");
    mesh.enrol(&[&client, &web]);
    mesh.dual_stack(&[&client, &web]);
    mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(places.map(|to| forward(&mesh, &client, to)), plain);
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
    for record in mesh.agents[0].records.wait(2, |record| record.close() == "finished") {
        record.names("source", &client);
    }
    mesh.agent(Side::A).kill();
    assert_eq!(places.map(|to| forward(&mesh, &client, to)), [None, None], "and refused without its agent");
    assert_eq!((wire.bytes_at(80), wire.connections_to(80)), (0, 0));
}

//! A node's probes reach its strict pods, and nobody else's connection passes for one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Output};

use agent_common::FlowKey;
use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Cgroup, Mesh, Mode, Namespace, Pod, Settings, Side, wait};
use aya::maps::{HashMap, Map, MapData};
use socket2::{Domain, Socket, Type};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

/// A mesh in which node b's agent knows the node's namespace and the pods' cgroup, and a strict pod there that serves HTTP
/// at port 80 of both families.
struct Probed {
    web: Pod,
    server: Server,
    node: Namespace,
    mesh: Mesh,
}

impl Probed {
    fn start() -> Self {
        let mut mesh = Mesh::prepare(&Settings::default());
        assert!(!mesh.world.cgroup("pods").is_inhabited());
        let node = mesh.agents[1].node.namespace.clone();
        // What is older than strict ends at once, so that what stays is what was let in.
        let name = mesh.world.name();
        let more =
            format!("pods_cgroup: /{name}-pods\nnode_netns: {}\nlegacy: {{strict_grace: 0s}}\n", node.path().display());
        mesh.agents[1].configure(&mesh.world, &AgentSettings { more, ..AgentSettings::default() });
        for agent in &mut mesh.agents {
            agent.start(&mesh.world);
        }
        let web = mesh.strict_pod("web", Side::B);
        mesh.dual_stack(&[&web]);
        let server = Server::start(&web, "[::]:80".parse().unwrap(), serve);
        Self { web, server, node, mesh }
    }

    /// A cgroup that a pod's tasks are in.
    fn container(&self) -> Cgroup {
        self.mesh.world.cgroup("pods/besteffort/podx/c")
    }

    /// A cgroup as kubelet is in.
    fn service(&self) -> Cgroup {
        self.mesh.world.cgroup("system/kubelet")
    }

    /// The pod's port 80, by each of its addresses.
    fn places(&self) -> [SocketAddr; 2] {
        [self.web.at(80), self.web.at6(80)]
    }

    /// How many connections the kernel takes for probes.
    fn under_way(&self) -> usize {
        probes(&self.mesh).keys().count()
    }
}

fn probes(mesh: &Mesh) -> HashMap<MapData, FlowKey, u64> {
    Map::HashMap(pinned(mesh, "PROBES")).try_into().unwrap()
}

fn pinned(mesh: &Mesh, name: &str) -> MapData {
    MapData::from_pin(mesh.agents[1].layout().join(name)).unwrap()
}

/// Answers a request with 200, and anything else with itself.
fn serve(mut stream: TcpStream, _: SocketAddr) {
    let mut request = [0; 4096];
    while let Ok(length @ 1..) = traffic::read(&mut stream, &mut request) {
        let is_request = request.starts_with(b"GET ");
        let answer = if is_request { ANSWER } else { &request[..length] };
        if stream.write_all(answer).is_err() || is_request {
            return;
        }
    }
}

fn curl(place: SocketAddr) -> Vec<String> {
    ["--silent", "--fail", "--noproxy", "*", "--max-time", "20", "--globoff"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("http://{place}/healthz")])
        .collect()
}

/// What came of an HTTP probe: whether it succeeded, or was refused.
#[track_caller]
fn succeeded(output: &Output) -> bool {
    const REFUSED: i32 = 7;
    assert!([Some(0), Some(REFUSED)].contains(&output.status.code()), "{output:?}");
    output.status.success() && output.stdout == b"ok"
}

#[track_caller]
fn http(cgroup: &Cgroup, namespace: &Namespace, place: SocketAddr) -> bool {
    succeeded(&cgroup.command(namespace, "curl").args(curl(place)).output().unwrap())
}

#[track_caller]
fn tcp(namespace: &Namespace, place: SocketAddr) -> bool {
    reached(namespace.within(|| TcpStream::connect(place)))
}

#[track_caller]
fn reached(connected: std::io::Result<TcpStream>) -> bool {
    match connected {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("neither reached nor refused: {error}"),
    }
}

#[track_caller]
fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[track_caller]
fn all_probes_succeed(probed: &Probed) {
    let Probed { web, node, .. } = probed;
    let (kubelet, container) = (probed.service(), probed.container());
    for place in probed.places() {
        assert!(http(&kubelet, node, place), "HTTP to {place}");
        assert!(tcp(node, place), "TCP to {place}");
    }
    let mapped = SocketAddr::from((web.address.to_ipv6_mapped(), 80));
    let socket = node.within(|| Socket::new(Domain::IPV6, Type::STREAM, None)).unwrap();
    assert!(socket.connect(&mapped.into()).is_ok(), "TCP over an IPv4-mapped address");
    // What runs in the pod's namespace, from wherever it came there, is the pod's own.
    let loopback = ["127.0.0.1:80", "[::1]:80"].map(|place| place.parse().unwrap());
    for place in probed.places().into_iter().chain(loopback) {
        for cgroup in [&kubelet, &container] {
            assert!(http(cgroup, &web.namespace, place), "exec in the pod, to {place}");
        }
    }
}

#[test]
fn http_tcp_and_exec_probes_reach_a_strict_pod_with_and_without_its_agent() {
    let mut probed = Probed::start();
    let stranger = probed.mesh.world.pod("stranger", Side::B);
    all_probes_succeed(&probed);
    for place in probed.places() {
        assert!(!tcp(&stranger.namespace, place), "and it is strict");
    }
    // Every handshake's last ACK is judged as a SYN is.
    probed.web.set("net/ipv4/tcp_syncookies", "2");
    all_probes_succeed(&probed);
    let agent = probed.mesh.agent(Side::B);
    wait::until("probes are counted", || agent.status().filter(|status| status.waivers("probe") >= 5).map(drop));
    probed.mesh.agent(Side::B).kill();
    all_probes_succeed(&probed);
    for place in probed.places() {
        assert!(!tcp(&stranger.namespace, place));
    }
    wait::until("no probe is under way", || (probed.under_way() == 0).then_some(()));
}

#[test]
fn a_pod_in_the_nodes_namespace_is_not_the_node() {
    let mut probed = Probed::start();
    let (kubelet, container, node) = (probed.service(), probed.container(), probed.node.clone());
    let far = probed.mesh.agents[0].node.namespace.clone();
    let accepted = probed.server.accepted();
    for place in probed.places() {
        assert!(!http(&container, &node, place), "a task of a pod's in the node's namespace, to {place}");
        assert!(!tcp(&far, place), "another node, to {place}");
    }
    assert_eq!(probed.server.accepted(), accepted);
    for place in probed.places() {
        assert!(http(&kubelet, &node, place), "the control: the same from outside the pods' cgroup");
    }
    let web = probed.web.clone();
    probed.mesh.change(|directory| directory.entry(&web).mode = Mode::Permissive);
    for place in probed.places() {
        assert!(http(&container, &node, place) && tcp(&far, place), "the control: permissive");
    }
}

#[test]
fn a_pod_is_not_the_node_either_once_the_pods_cgroup_was_made_anew() {
    let probed = Probed::start();
    let place = probed.web.at(80);
    probed.mesh.world.cgroup("pods").remove();
    let container = probed.container();
    wait::until("the kernel knows the new one", || (!http(&container, &probed.node, place)).then_some(()));
    assert!(http(&probed.service(), &probed.node, place), "and the node by it");
    // While there is none, nobody can be told from a pod.
    probed.mesh.world.cgroup("pods").remove();
    wait::until("the kernel knows of none", || (!http(&probed.service(), &probed.node, place)).then_some(()));
}

/// Connects a socket that it was given.
const CONNECT: &str = "import socket, sys
s = socket.socket(fileno=0)
try: s.connect((sys.argv[1], int(sys.argv[2])))
except ConnectionRefusedError: print('refused')
else: print('reached')";

#[track_caller]
fn connects(mut command: Command, socket: Socket, place: SocketAddr) -> bool {
    let command = command.args(["-c", CONNECT, &place.ip().to_string(), &place.port().to_string()]);
    let output = command.stdin(OwnedFd::from(socket)).output().unwrap();
    match output.stdout.as_slice() {
        b"reached\n" => true,
        b"refused\n" => false,
        _ => panic!("{output:?}"),
    }
}

#[test]
fn a_socket_of_the_nodes_in_a_pods_hands_is_the_pods() {
    let probed = Probed::start();
    let (kubelet, container, node) = (probed.service(), probed.container(), &probed.node);
    let socket = || node.within(|| Socket::new(Domain::IPV4, Type::STREAM, None)).unwrap();
    let python = |cgroup: &Cgroup| cgroup.command(node, "python3");
    let place = probed.web.at(80);
    assert!(connects(python(&kubelet), socket(), place), "the control: handed on outside the pods");
    assert!(!connects(python(&container), socket(), place));
    // Nor is it the node's for having been so before.
    let used = || {
        let (socket, later) = (socket(), probed.web.at(81));
        let refused = socket.connect(&later.into()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "nobody listens");
        socket
    };
    let (by_kubelet, by_pod) = (used(), used());
    let server = Server::start(&probed.web, "0.0.0.0:81".parse().unwrap(), serve);
    assert!(connects(python(&kubelet), by_kubelet, probed.web.at(81)), "the control");
    assert!(!connects(python(&container), by_pod, probed.web.at(81)));
    wait::until("the control is accepted", || (server.accepted() == 1).then_some(()));
}

/// A second way between a stranger and the pod, as on a shared link. The pod's end of it has no address of the pod's.
fn join(stranger: &Pod, web: &Pod) {
    let (a, b) = (&stranger.namespace, &web.namespace);
    a.ip(&format!("link add side type veth peer name side netns {}", b.name()));
    for (end, link_local) in [(a, "fe80::a"), (b, "fe80::b")] {
        end.ip("link set side up");
        end.ip(&format!("-6 address add {link_local}/64 dev side nodad"));
        for interface in ["all", "side"] {
            end.set(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        }
    }
}

/// On that way the stranger sends with an address of the node's, and if `answered`, the pod's answers go to it.
fn claim(stranger: &Pod, web: &Pod, address: IpAddr, answered: bool) {
    let (claims, answers) = (&stranger.namespace, &web.namespace);
    if address.is_ipv4() {
        claims.ip(&format!("address add {address}/32 dev lo"));
        claims.ip(&format!("route replace {}/32 dev side src {address}", web.address));
    } else {
        claims.ip(&format!("-6 address add {address}/128 dev lo nodad"));
        claims.ip(&format!("-6 route replace {}/128 via fe80::b dev side src {address}", web.address6));
    }
    match address {
        _ if !answered => {}
        IpAddr::V4(address) => answers.ip(&format!("route replace {address}/32 dev side")),
        IpAddr::V6(address) => answers.ip(&format!("-6 route replace {address}/128 via fe80::a dev side")),
    }
}

fn from(namespace: &Namespace, source: SocketAddr, place: SocketAddr) -> std::io::Result<Socket> {
    let socket = namespace.within(|| Socket::new(Domain::for_address(source), Type::STREAM, None))?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&place.into()) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(socket),
        other => other.map(|()| socket),
    }
}

#[test]
fn a_nodes_address_does_not_make_a_node() {
    let mut probed = Probed::start();
    let (web, stranger) = (probed.web.clone(), probed.mesh.world.pod("stranger", Side::B));
    join(&stranger, &web);
    let node = probed.mesh.agents[1].node.clone();
    let node6 = "fd78::1:0:0:0:2".parse().unwrap();
    for (address, place) in [(node.address.into(), web.at(80)), (node6, web.at6(80))] {
        let probe = from(&probed.node, (address, 0).into(), place).unwrap();
        wait::until("the node's own probe from there is under way", || probe.peer_addr().ok());
        assert_eq!(probed.under_way(), 1);
        claim(&stranger, &web, address, true);
        let accepted = probed.server.accepted();
        assert!(!tcp(&stranger.namespace, place), "from {address}");
        assert_eq!(probed.server.accepted(), accepted);
        traffic::reset(probe.into());
        probed.mesh.change(|directory| directory.entry(&web).mode = Mode::Permissive);
        assert!(tcp(&stranger.namespace, place), "the control: permissive, it would get in");
        probed.mesh.change(|directory| directory.entry(&web).mode = Mode::Strict);
    }
}

#[test]
fn a_probes_own_4_tuple_in_a_strangers_packets_gets_nowhere() {
    let mut probed = Probed::start();
    let (web, stranger) = (probed.web.clone(), probed.mesh.world.pod("stranger", Side::B));
    let mut probe = probed.node.within(|| TcpStream::connect(web.at(80))).unwrap();
    exchange(&mut probe);
    join(&stranger, &web);
    let source = probe.local_addr().unwrap();
    claim(&stranger, &web, source.ip(), false);
    let accepted = probed.server.accepted();
    // The same: it meets the connection that is there. Another port: it is no probe.
    let same = from(&stranger.namespace, source, web.at(80)).unwrap();
    let other = from(&stranger.namespace, (source.ip(), 0).into(), web.at(80)).unwrap();
    let agent = probed.mesh.agent(Side::B);
    wait::until("the later one is refused", || agent.status().filter(|status| status.refusals("strict") > 0).map(drop));
    for socket in [same, other] {
        assert!(socket.peer_addr().is_err(), "it is not connected");
    }
    exchange(&mut probe);
    assert_eq!(probed.server.accepted(), accepted);
}

#[test]
fn a_probe_leaves_nothing_behind_however_it_ends() {
    let mut probed = Probed::start();
    let (web, node) = (probed.web.clone(), probed.node.clone());
    let _closes = Server::start(&web, "0.0.0.0:82".parse().unwrap(), |stream, _| drop(stream));
    let open: Vec<TcpStream> = (0..10).map(|_| node.within(|| TcpStream::connect(web.at(80))).unwrap()).collect();
    assert_eq!(probed.under_way(), open.len(), "each is known by its own 4-tuple");
    for (number, stream) in open.into_iter().enumerate() {
        if number % 2 == 0 {
            traffic::reset(stream);
        }
    }
    for _ in 0..5 {
        assert!(!tcp(&node, web.at(83)), "nobody listens");
        let mut stream = node.within(|| TcpStream::connect(web.at(82))).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    // One that is given up before anybody has answered.
    node.ip(&format!("link set {} down", web.interface));
    node.ip(&format!("link set {} up", web.interface));
    node.ip(&format!("route replace {} dev {}", web.address, web.interface));
    web.namespace.ip("link set eth0 down");
    let given_up = from(&node, (Ipv4Addr::UNSPECIFIED, 0).into(), web.at(80)).unwrap();
    assert_eq!(probed.under_way(), 1);
    drop(given_up);
    wait::until("no probe is under way", || (probed.under_way() == 0).then_some(()));
    // One whose end nobody told, and one that began a moment ago.
    let key = |port| FlowKey { cookie: 1, client: [0; 4], server: [0; 4], client_port: port, server_port: 80, pad: 0 };
    let mut map = probes(&probed.mesh);
    map.insert(key(1), 0, 0).unwrap();
    map.insert(key(2), u64::MAX, 0).unwrap();
    wait::until("the agent forgets the old one", || map.get(&key(1), 0).is_err().then_some(()));
    assert!(map.get(&key(2), 0).is_ok());
    map.remove(&key(2)).unwrap();
    // Whose the addresses are is forgotten with the pod.
    let hosted: HashMap<_, [u32; 4], u64> = Map::HashMap(pinned(&probed.mesh, "HOSTED")).try_into().unwrap();
    assert_eq!(hosted.keys().count(), 2);
    probed.mesh.withdraw(&[&web]);
    assert_eq!(hosted.keys().count(), 0);
}

#[test]
fn a_pods_successor_at_its_address_is_probed_as_it_was() {
    let Probed { web, server, node, mut mesh } = Probed::start();
    drop(server);
    let address = web.address;
    let old = web.clone();
    web.remove();
    let new = mesh.world.pod_at("web", Side::B, address);
    mesh.change(|directory| {
        directory.remove(&old);
        directory.list(&new).mode = Mode::Strict;
    });
    mesh.until_serving();
    let _server = Server::start(&new, "[::]:80".parse().unwrap(), serve);
    assert!(tcp(&node, new.at(80)));
    assert!(!tcp(&node, new.at6(80)), "an address that is not listed is not known as the pod's");
}

#[test]
fn a_probe_that_finds_no_room_is_refused_and_counted() {
    let mut probed = Probed::start();
    let mut map = probes(&probed.mesh);
    let key =
        |port: u32| FlowKey { cookie: 1, client: [port; 4], server: [0; 4], client_port: 1, server_port: 80, pad: 0 };
    let last = (0..1_u32 << 20).find(|number| map.insert(key(*number), u64::MAX, 0).is_err()).unwrap();
    let place = probed.web.at(80);
    assert!(!tcp(&probed.node, place));
    map.remove(&key(last - 1)).unwrap();
    assert!(tcp(&probed.node, place));
    let agent = probed.mesh.agent(Side::B);
    wait::until("it is counted", || agent.status().filter(|status| status.refusals("probes_full") == 1).map(drop));
}

#[test]
fn without_the_pods_cgroup_nothing_tells_a_probe_and_the_agent_says_so() {
    let mut mesh = Mesh::prepare(&Settings::default());
    let node = mesh.agents[1].node.namespace.clone();
    let more = format!("node_netns: {}\n", node.path().display());
    mesh.agents[1].configure(&mesh.world, &AgentSettings { more, ..AgentSettings::default() });
    for agent in &mut mesh.agents {
        agent.start(&mesh.world);
    }
    let web = mesh.strict_pod("web", Side::B);
    let _server = Server::start(&web, "[::]:80".parse().unwrap(), serve);
    assert!(!tcp(&node, web.at(80)));
    assert_eq!(mesh.agents[1].said().matches("strict pods refuse them").count(), 1);
}

#[test]
fn a_probe_that_stays_outlives_the_agent_that_let_it_in() {
    let mut probed = Probed::start();
    let mut open: Vec<_> = probed
        .places()
        .map(|place| probed.node.within(|| traffic::patient(TcpStream::connect(place).unwrap()).unwrap()))
        .into();
    let mut all_go_on = || {
        for stream in &mut open {
            stream.write_all(b"?").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
    };
    all_go_on();
    for _ in 0..2 {
        probed.mesh.agent(Side::B).kill();
        probed.mesh.restart(Side::B);
        probed.mesh.change(|_| {});
        all_go_on();
    }
    assert_eq!(probed.mesh.agents[1].status().unwrap().destroyed(&probed.web), 0);
}

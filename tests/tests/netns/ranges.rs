//! The ranges that captured connections go to are local to the pod. Whoever takes that away gets no connection out of the pod
//! with it, and the agent notices and puts it back.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Capture, Mesh, Pod, Settings, Side, Status, wait};
use socket2::{Domain, Socket, Type};

const SECRET: &[u8] = b"must-not-leave-the-pod";

fn start(watchdog: &str) -> (Mesh, Pod, Pod) {
    let agent = AgentSettings { more: format!("watchdog: {watchdog}\n"), ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    (mesh, client, web)
}

fn serve(web: &Pod) -> Server {
    Server::start(web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream))
}

fn in_ranges(address: SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(address) => address.octets()[..2] == [0, 109],
        IpAddr::V6(address) => address.octets()[..8] == [0xfd, 0x6d, 0x61, 0x6e, 0x74, 0x6c, 0x65, 0],
    }
}

/// How many segments went to the ranges.
fn seen(wire: &mut Capture) -> usize {
    wire.segments().iter().filter(|segment| in_ranges(segment.destination)).count()
}

/// One whose connection is led to a range: of IPv6, or of IPv4 and bound to a port alone.
fn prepare(client: &Pod, to: SocketAddr) -> Socket {
    client.namespace.within(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        if to.is_ipv4() {
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
        }
        socket
    })
}

fn connect(client: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = prepare(client, to);
    socket.connect(&to.into())?;
    traffic::patient(socket.into())
}

fn served(client: &Pod, web: &Pod) {
    for to in [web.at(80), web.at6(80)] {
        echoes(&mut connect(client, to).unwrap());
    }
}

#[track_caller]
fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// IPv4's route stays when loopback goes down, IPv6's does not.
fn take_away(client: &Pod) {
    client.namespace.ip("link set lo down");
    client.namespace.ip("link set lo up");
    client.namespace.ip("route del local 0.109.0.0/16 table local");
}

/// What `ip` shows of the pod.
fn shown(pod: &Pod) -> String {
    let words = ["rule", "-6 rule", "-4 route show table all", "-6 route show table all"];
    let show = |words: &str| {
        let output = Command::new("ip").args(["-n", pod.namespace.name()]).args(words.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    words.map(show).concat()
}

#[test]
fn a_range_that_is_not_local_any_more_leads_nowhere() {
    let (_mesh, client, web) = start("1h");
    let _echo = serve(&web);
    served(&client, &web);
    let mut open = [web.at(80), web.at6(80)].map(|to| connect(&client, to).unwrap());
    open.iter_mut().for_each(echoes);
    let mut wire = Capture::on(&client.namespace, "eth0");
    take_away(&client);
    for (stream, to) in open.iter_mut().zip([web.at(80), web.at6(80)]) {
        assert!(connect(&client, to).is_err(), "{to} is reached by nothing");
        // Whether the kernel takes it or not, it has tried to send it by then.
        let _ = stream.write_all(SECRET);
    }
    assert_eq!(seen(&mut wire), 0);
    assert!(!wire.shows(SECRET));

    client.namespace.ip("route del unreachable 0.109.0.0/16");
    client.namespace.ip("-6 rule del to fd6d:616e:746c:6500::/64 unreachable");
    for to in [web.at(80), web.at6(80)] {
        let socket = prepare(&client, to);
        socket.set_nonblocking(true).unwrap();
        assert!(socket.connect(&to.into()).is_err(), "it is under way");
    }
    wait::until("the control: without the guard it leaves the pod", || (seen(&mut wire) >= 2).then_some(()));
}

#[test]
fn a_range_that_is_taken_away_is_noticed_and_put_back() {
    let (mut mesh, client, web) = start("200ms");
    let _echo = serve(&web);
    served(&client, &web);
    let mut wire = Capture::on(&client.namespace, "eth0");
    let before = shown(&client);
    let attacks: [&dyn Fn(); 3] = [
        &|| take_away(&client),
        &|| client.namespace.ip("-6 route del local fd6d:616e:746c:6500::/64 table local"),
        &|| client.namespace.ip("route del unreachable 0.109.0.0/16"),
    ];
    for attack in attacks {
        wait::until("all is well", || mesh.agents[0].status().filter(Status::capture_ok));
        attack();
        let agent = mesh.agent(Side::A);
        let status = wait::until("it is noticed", || agent.status().filter(|status| !status.capture_ok()));
        let problem = status.capture_problem().unwrap();
        assert!(problem.contains(&format!("was not local to pod {}", client.uid)), "{problem}");
        assert_eq!(status.state(&client), Some("certified"));
        mesh.until_serving();
        served(&client, &web);
    }
    assert_eq!(seen(&mut wire), 0);
    assert_eq!(shown(&client).lines().count(), before.lines().count(), "nothing is there twice");
}

#[test]
fn a_pod_without_rules_is_given_none() {
    // The first one would have the kernel part its tables: connections that are made meanwhile were lost.
    let (_mesh, client, _web) = start("1h");
    let output = Command::new("ip").args(["-n", client.namespace.name(), "-4", "rule"]).output().unwrap();
    let rules = String::from_utf8(output.stdout).unwrap();
    assert_eq!(rules.lines().count(), 3, "{rules}");
}

#[test]
fn a_pod_that_is_withdrawn_has_its_own_routes_and_rules_again() {
    let (mut mesh, client, web) = start("200ms");
    let is_ours = |line: &&str| line.contains("0.109.") || line.contains("fd6d:");
    let ours = |pod: &Pod| shown(pod).lines().filter(is_ours).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ours(&client).len(), 4, "{:?}", ours(&client));
    client.namespace.ip("rule add from all lookup local pref 100");
    client.namespace.ip("rule del pref 0");
    wait::until("it is guarded behind that", || {
        let rules: Vec<_> = ours(&client).into_iter().filter(|line| line.contains("0.109.0.0/16 unreach")).collect();
        (rules.len() == 1 && rules[0].starts_with("101:")).then_some(())
    });
    mesh.until_serving();
    let _echo = serve(&web);
    served(&client, &web);
    mesh.withdraw(&[&client]);
    assert_eq!(ours(&client), Vec::<String>::new());
    assert_eq!(mesh.agent(Side::B).stop().code(), Some(0));
    assert!(!ours(&web).is_empty());
    assert!(mesh.agents[1].run(&["cleanup"]).status.success());
    assert_eq!(ours(&web), Vec::<String>::new());
}

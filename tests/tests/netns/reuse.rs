//! A tunnel is used again, by the same two pods only, and nothing of one connection reaches the next.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use agent_tests::traffic::{self, Pattern, Server};
use agent_tests::{AgentSettings, Capture, Mesh, Pod, Settings, Side, TUNNEL_PORT, wait};

#[test]
fn connections_one_after_the_other_share_a_tunnel() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut wire = Capture::on(&client.namespace, "eth0");
    for seed in 0..20 {
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        let own = stream.local_addr().unwrap();
        Pattern::new(seed).send(&mut stream, 1000).unwrap();
        Pattern::new(seed).expect(&mut stream, 1000).unwrap();
        drop(stream);
        // The record is written when the tunnel is back in the pool.
        for agent in &mesh.agents {
            assert_eq!(agent.records.of_client(own).number("/tunnel/use"), seed + 1);
        }
    }
    assert_eq!(wire.connections_to(TUNNEL_PORT), 1);
}

#[test]
fn another_pod_does_not_get_a_neighbours_tunnel() {
    let mut mesh = Mesh::start();
    let (client, other) = (mesh.pod("client", Side::A), mesh.pod("other", Side::A));
    let web = mesh.strict_pod("web", Side::B);
    let _echo = Server::echo(&web, 80);
    for pod in [&client, &other] {
        let stream = traffic::connect(pod, web.at(80)).unwrap();
        let own = stream.local_addr().unwrap();
        drop(stream);
        let record = mesh.agents[1].records.of_client(own);
        record.names("source", pod);
        assert_eq!(record.number("/tunnel/use"), 1);
    }
}

#[test]
fn a_host_that_forgets_its_sockets_at_once_costs_no_later_connection() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    // As when a busy server has filled the table: what its kernel has closed answers with a reset.
    web.set("net/ipv4/tcp_max_tw_buckets", "0");
    let _server = Server::start(&web, web.at(80), |mut stream, _| {
        let mut question = [0; 8];
        stream.read_exact(&mut question).unwrap();
        stream.write_all(&question).unwrap();
        // It ends first.
    });
    for number in 0..20_u64 {
        let forgotten = forgotten(&web);
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        let own = stream.local_addr().unwrap();
        let (question, mut answer) = (number.to_be_bytes(), Vec::new());
        stream.write_all(&question).unwrap();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, question);
        wait::until("the server's kernel has forgotten its socket", || {
            (self::forgotten(&web) > forgotten).then_some(())
        });
        drop(stream);
        for agent in &mesh.agents {
            let record = agent.records.of_client(own);
            assert_eq!((record.close(), record.number("/tunnel/use")), ("finished", number + 1));
        }
    }
}

/// The agent has everything that such a server said, and the tunnel has no room for the last of it, since the client reads
/// nothing; then the client ends.
#[test]
fn nor_does_it_hold_up_what_waits_for_a_slow_client() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    web.set("net/ipv4/tcp_max_tw_buckets", "0");
    // Small and fixed: with one of the lengths below the kernels hold all but what the agent holds.
    for buffers in ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"] {
        client.set(buffers, "4096 16384 16384");
        web.set(buffers, "4096 16384 16384");
    }
    let _server = Server::start(&web, web.at(80), |mut stream, _| {
        let mut length = [0; 8];
        stream.read_exact(&mut length).unwrap();
        stream.write_all(&vec![7; u64::from_be_bytes(length) as usize]).unwrap();
    });
    let mut held = 0;
    for length in (16..400_u64).step_by(16).map(|kilobytes| kilobytes << 10) {
        let forgotten = forgotten(&web);
        let mut stream = traffic::connect(&client, web.at(80)).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        // Or never, if not all of it fits.
        let is_forgotten = || (self::forgotten(&web) > forgotten).then_some(());
        held += usize::from(wait::within(Duration::from_millis(500), is_forgotten).is_some());
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len() as u64, length);
    }
    assert!(held > 0);
}

/// How many closed sockets a pod's kernel had no room to remember.
fn forgotten(pod: &Pod) -> u64 {
    let text = pod.namespace.within(|| fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_ascii_whitespace);
    let (mut names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.position(|name| name == "TCPTimeWaitOverflow").unwrap();
    values.nth(at).unwrap().parse().unwrap()
}

#[test]
fn one_use_is_one_use() {
    let agent = AgentSettings { max_uses: 1, ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { agent, ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut wire = Capture::on(&client.namespace, "eth0");
    for _ in 0..5 {
        assert_eq!(traffic::ask(&client, web.at(80), b"once").unwrap(), b"once");
    }
    let records = mesh.agents[0].records.wait(5, |record| record.close() == "finished");
    assert!(records.iter().all(|record| record.number("/tunnel/use") == 1));
    assert_eq!(wire.connections_to(TUNNEL_PORT), 5);
}

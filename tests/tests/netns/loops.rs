//! Mantle's own ports are no destination: what would go round in the agent is refused in `connect`.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Side, Status, TUNNEL_PORT, wait};

fn refused(pod: &Pod, to: SocketAddr) -> bool {
    pod.namespace.within(|| TcpStream::connect(to)).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_pod_reaches_no_agents_port_neither_anothers_nor_its_own() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let _echo = Server::start(&web, "[::]:80".parse().unwrap(), |stream, _| traffic::echo(stream));
    for to in [web.at(TUNNEL_PORT), web.at6(TUNNEL_PORT)] {
        assert!(refused(&client, to), "another pod's");
    }
    for to in [client.at(TUNNEL_PORT), client.at6(TUNNEL_PORT), client.at(15001), client.at6(15001)] {
        assert!(refused(&client, to), "its own, where nobody listens");
    }
    let ranges: [SocketAddr; 3] = [
        "127.129.1.1:15001".parse().unwrap(),
        "[fd6d:616e:746c:6500::1]:15001".parse().unwrap(),
        "0.109.1.1:15001".parse().unwrap(),
    ];
    for to in ranges {
        assert!(refused(&client, to), "a capture range");
    }
    let counted = |status: &Status| status.refusals("own_port") == 2 && status.refusals("unknown_flow") >= 3;
    wait::until("they are counted", || mesh.agents[0].status().filter(counted).map(drop));
    assert!(mesh.agents.iter().all(|agent| agent.records.all().is_empty()), "none reached an agent");
    for to in [web.at(80), web.at6(80)] {
        assert_eq!(traffic::ask(&client, to, b"served").unwrap(), b"served");
    }
}

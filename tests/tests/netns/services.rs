//! A service's addresses lead to its endpoints: to those of the mesh over mutual TLS, to the others in the clear.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Node, Pod, Record, Service, Side, wait};
use nix::sys::signal::Signal;

/// An address that no interface has.
const CLUSTER_IP: &str = "10.96.0.10:80";

/// So many connections that two endpoints both have some: all but one in 2⁶³ times.
const MANY: usize = 64;

fn cluster_ip() -> SocketAddr {
    CLUSTER_IP.parse().unwrap()
}

/// One connection, which echoes; and what the client's agent says of it.
#[track_caller]
fn ask(mesh: &Mesh, client: &Pod, to: SocketAddr) -> Record {
    let mut stream = traffic::connect(client, to).unwrap();
    let own = stream.local_addr().unwrap();
    exchange(&mut stream);
    drop(stream);
    mesh.agents[0].records.wait(1, |record| record.text("/source/address") == own.to_string()).remove(0)
}

#[track_caller]
fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"question").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"question");
}

/// An application of the node itself, as kube-proxy's forwarding would be met there: it says who it is.
fn on_node(node: &Node, port: u16) -> SocketAddr {
    let address = SocketAddr::from((node.address, port));
    let listener = node.namespace.within(|| TcpListener::bind(address)).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"node");
        }
    });
    address
}

/// What the far end says without being asked.
fn hear(client: &Pod, to: SocketAddr) -> String {
    let mut said = String::new();
    traffic::connect(client, to).unwrap().read_to_string(&mut said).unwrap();
    said
}

#[test]
fn every_frontend_leads_to_the_pod_and_the_client_sees_the_frontend() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let node_port = SocketAddr::from((mesh.world.node(Side::B).address, 30080));
    let external: SocketAddr = "192.0.2.7:443".parse().unwrap();
    let service = Service::new("web").at(cluster_ip(), 8080).at(external, 8443).at(node_port, 8080).with(&web);
    mesh.change(|directory| directory.services.push(service));
    let (tell, told) = mpsc::channel();
    let serve = move |stream: TcpStream, accepted: SocketAddr| {
        let seen = (accepted, stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        tell.send(seen).unwrap();
        traffic::echo(stream);
    };
    let _servers = [8080, 8443].map(|port| Server::start(&web, ([0, 0, 0, 0], port).into(), serve.clone()));
    let mapped = SocketAddr::new(IpAddr::V6("::ffff:10.96.0.10".parse().unwrap()), 80);
    for (frontend, target) in [(cluster_ip(), 8080), (external, 8443), (node_port, 8080), (mapped, 8080)] {
        let mut stream = traffic::connect(&client, frontend).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), frontend, "the client's getpeername");
        let own = stream.local_addr().unwrap();
        let own = SocketAddr::new(own.ip().to_canonical(), own.port());
        assert_eq!(own.ip(), client.address);
        exchange(&mut stream);
        drop(stream);
        assert_eq!(told.recv().unwrap(), (own, own, web.at(target)), "what the server sees");
        let [a, b] = &mesh.agents;
        let (sent, taken) = (a.records.of_client(own), b.records.of_client(own));
        assert_eq!(sent.id(), taken.id());
        for record in [&sent, &taken] {
            record.names("source", &client);
            record.names("destination", &web);
            assert_eq!(record.text("/destination/address"), web.at(target).to_string(), "{record:#?}");
            assert_eq!((record.close(), record.text("/tls/group")), ("finished", "X25519MLKEM768"));
            assert!(record.lacks("/plain"));
        }
        let asked = SocketAddr::new(frontend.ip().to_canonical(), frontend.port()).to_string();
        assert_eq!((sent.text("/service/name"), sent.text("/service/frontend")), ("shop/web", asked.as_str()));
    }
}

#[test]
fn a_frontend_of_ipv6_leads_to_the_pods_ipv6_address() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    mesh.dual_stack(&[&client, &web]);
    let frontend: SocketAddr = "[fd96::10]:80".parse().unwrap();
    let service = Service::new("web").at(cluster_ip(), 8080).at(frontend, 8081).with(&web);
    mesh.change(|directory| directory.services.push(service));
    let (tell, told) = mpsc::channel();
    let _server = Server::start(&web, "[::]:8081".parse().unwrap(), move |stream, accepted| {
        tell.send((accepted, stream.local_addr().unwrap())).unwrap();
        traffic::echo(stream);
    });
    let mut stream = traffic::connect(&client, frontend).unwrap();
    let own = stream.local_addr().unwrap();
    assert_eq!((stream.peer_addr().unwrap(), own.ip()), (frontend, IpAddr::from(client.address6)));
    exchange(&mut stream);
    drop(stream);
    assert_eq!(told.recv().unwrap(), (own, web.at6(8081)), "what the server sees");
    let record = mesh.agents[0].records.of_client(own);
    record.names("destination", &web);
    assert_eq!(record.text("/destination/address"), web.at6(8081).to_string());
    assert_eq!(record.text("/service/frontend"), frontend.to_string());
    assert!(record.lacks("/plain"));
}

#[test]
fn what_the_service_does_not_list_is_not_touched_nor_is_a_service_outside_the_mesh() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.world.pod("web", Side::B));
    let (listed, other) = (on_node(mesh.world.node(Side::B), 30080), on_node(mesh.world.node(Side::B), 30081));
    let _web = Server::start(&web, "0.0.0.0:8080".parse().unwrap(), |mut stream, _| stream.write_all(b"pod").unwrap());
    // Neither a pod that is not published nor an endpoint that is none makes it one of the mesh.
    let service = Service::new("web").at(listed, 8080).with(&web).with_plain(web.address);
    mesh.change(|directory| {
        directory.list(&web);
        directory.services.push(service);
    });
    mesh.until_serving();
    assert_eq!(hear(&client, listed), "node");
    assert!(mesh.agents[0].records.all().is_empty());
    // Published, it is.
    mesh.change(|directory| directory.entry(&web).serving = true);
    assert_eq!(hear(&client, listed), "pod");
    assert_eq!(hear(&client, other), "node");
    assert_eq!(mesh.agents[0].records.wait(1, |_| true).len(), 1);
    // And withdrawn, it is not.
    mesh.change(|directory| directory.entry(&web).serving = false);
    assert_eq!(hear(&client, listed), "node");
    mesh.change(|directory| directory.service("web").pods.clear());
    assert_eq!(hear(&client, listed), "node");
}

#[test]
fn connections_are_spread_and_only_the_endpoint_that_is_not_enrolled_hears_plaintext() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let outside = mesh.world.pod("outside", Side::B);
    let service = Service::new("web").at(cluster_ip(), 8080).with(&web).with_plain(outside.at(8081));
    mesh.change(|directory| directory.services.push(service));
    let secured = Server::echo(&web, 8080);
    let sources = Arc::new(Mutex::new(Vec::new()));
    let plain = {
        let sources = Arc::clone(&sources);
        Server::start(&outside, "0.0.0.0:8081".parse().unwrap(), move |stream, from| {
            sources.lock().unwrap().push(from.ip());
            traffic::echo(stream);
        })
    };
    let mut wire = Capture::on(&client.namespace, "eth0");
    let records: Vec<Record> = (0..MANY).map(|_| ask(&mesh, &client, cluster_ip())).collect();
    assert!(secured.accepted() > 0 && plain.accepted() > 0);
    assert_eq!(secured.accepted() + plain.accepted(), MANY);
    let (clear, tunnelled): (Vec<&Record>, Vec<&Record>) = records.iter().partition(|record| record.lacks("/tls"));
    assert_eq!(clear.len(), plain.accepted());
    for record in clear {
        assert_eq!(record.text("/plain"), "endpoint_not_enrolled", "{record:#?}");
        assert_eq!(record.text("/policy"), "plain");
        assert_eq!(record.text("/destination/address"), outside.at(8081).to_string());
        assert_eq!(record.text("/service/frontend"), CLUSTER_IP);
        assert_eq!((record.close(), record.number("/sent"), record.number("/received")), ("finished", 8, 8));
        assert!(record.lacks("/destination/identity") && record.lacks("/certificate") && record.lacks("/tunnel"));
    }
    for record in tunnelled {
        record.names("destination", &web);
        assert!(record.lacks("/plain"));
    }
    assert!(sources.lock().unwrap().iter().all(|ip| *ip == client.address), "the pod's own address");
    assert_eq!(wire.connections_to(8080), 0);
    assert_eq!(wire.connections_to(8081), plain.accepted());
    // Half-closes and long streams as well.
    let long = vec![7; 4 << 20];
    let before = plain.accepted();
    while plain.accepted() < before + 4 {
        assert!(traffic::ask(&client, cluster_ip(), &long).unwrap() == long);
    }
    // Without an agent nothing goes there, not even in the clear.
    mesh.agent(Side::A).kill();
    let before = plain.accepted();
    let refused = client.namespace.within(|| TcpStream::connect(cluster_ip())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(plain.accepted(), before);
}

#[test]
fn a_reset_crosses_to_and_from_an_endpoint_in_the_clear() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let outside = mesh.world.pod("outside", Side::B);
    // Nobody listens at the pod.
    let service = Service::new("web").at(cluster_ip(), 8080).with(&web).with_plain(outside.address);
    mesh.change(|directory| directory.services.push(service));
    let (tell, told) = mpsc::channel();
    let server = Server::start(&outside, "0.0.0.0:8080".parse().unwrap(), move |mut stream, _| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"r" {
            return traffic::reset(stream);
        }
        stream.write_all(&byte).unwrap();
        tell.send(traffic::read(&mut stream, &mut byte).map_err(|error| error.kind())).unwrap();
    });
    let mut stream = traffic::connect(&client, cluster_ip()).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"r").unwrap();
    traffic::expect_reset(&mut stream);
    let record = mesh.agents[0].records.of_client(own);
    assert_eq!((record.close(), record.blame()), ("reset_by_destination", "application"));
    let mut stream = traffic::connect(&client, cluster_ip()).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    traffic::reset(stream);
    assert_eq!(told.recv().unwrap(), Err(ErrorKind::ConnectionReset));
    let record = mesh.agents[0].records.of_client(own);
    assert_eq!((record.close(), record.blame()), ("reset_by_source", "application"));
    // A killed agent leaves no clean end on either side.
    let mut stream = traffic::connect(&client, cluster_ip()).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    mesh.agent(Side::A).kill();
    traffic::expect_reset(&mut stream);
    assert_eq!(told.recv().unwrap(), Err(ErrorKind::ConnectionReset));
    drop(server);
}

#[test]
fn an_endpoint_that_cannot_serve_is_followed_by_the_next() {
    let mut mesh = Mesh::start();
    let client = mesh.pod("client", Side::A);
    // Its application does not listen; it has lost its network; nobody is at that plain endpoint.
    let (deaf, lost, web) = (mesh.pod("deaf", Side::B), mesh.pod("lost", Side::B), mesh.strict_pod("web", Side::B));
    let outside = mesh.world.pod("outside", Side::B);
    lost.namespace.ip("link del eth0");
    // Each SYN is answered, not only some in a second.
    mesh.world.node(Side::B).namespace.set("net/ipv4/icmp_ratelimit", "0");
    let echo = Server::echo(&web, 8080);
    let at = |bad: &str| -> SocketAddr { format!("10.96.0.{bad}:80").parse().unwrap() };
    let services = [
        Service::new("one").at(at("1"), 8080).with(&web).with(&deaf),
        Service::new("two").at(at("2"), 8080).with(&web).with(&lost),
        Service::new("three").at(at("3"), 8080).with(&web).with_plain(outside.address),
        Service::new("four").at(at("4"), 8080).with(&web).with(&deaf).with_plain(outside.address),
        Service::new("bad").at(at("5"), 8080).with(&deaf).with_plain(outside.address),
    ];
    mesh.change(|directory| directory.services = services.to_vec());
    let expect = [
        ("1", vec![(deaf.at(8080), "connection_refused")]),
        ("2", vec![(lost.at(8080), "unreachable")]),
        ("3", vec![(outside.at(8080), "connection_refused")]),
        ("4", vec![(deaf.at(8080), "connection_refused"), (outside.at(8080), "connection_refused")]),
    ];
    for (service, bad) in expect {
        // What the application says at once is not lost with the endpoint that was asked first.
        for _ in 0..MANY / 2 {
            assert_eq!(traffic::ask(&client, at(service), b"said at once").unwrap(), b"said at once");
        }
        let asked = at(service).to_string();
        let of_it = |record: &Record| record.text("/service/frontend") == asked;
        let records = mesh.agents[0].records.wait(MANY / 2, of_it);
        for record in &records {
            record.names("destination", &web);
            assert_eq!((record.close(), record.number("/sent")), ("finished", 12));
            assert!(record.lacks("/plain"), "what was tried before says nothing: {record:#?}");
        }
        for (address, close) in bad {
            let tried = |record: &Record| {
                (0..2).any(|at| {
                    let text = |key: &str| record.text(&format!("/service/tried/{at}/{key}")).to_owned();
                    text("address") == address.to_string() && text("close") == close
                })
            };
            assert!(records.iter().any(tried), "{address} {close}: {records:#?}");
        }
    }
    assert_eq!(echo.accepted(), 2 * MANY);
    // With no endpoint left, the last one's failure is the connection's.
    match traffic::connect(&client, at("5")) {
        Ok(mut stream) => traffic::expect_reset(&mut stream),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let asked = at("5").to_string();
    let records = mesh.agents[0].records.wait(1, |record| record.text("/service/frontend") == asked);
    assert_eq!((records.len(), records[0].close(), records[0].blame()), (1, "connection_refused", "application"));
    assert!(!records[0].lacks("/service/tried/0") && records[0].lacks("/service/tried/1"));
}

#[test]
fn a_hung_agents_pod_is_followed_by_the_next() {
    let mut mesh = Mesh::start();
    let (client, near, far) = (mesh.pod("client", Side::A), mesh.pod("near", Side::A), mesh.pod("far", Side::B));
    mesh.change(|directory| {
        directory.services.push(Service::new("web").at(cluster_ip(), 8080).with(&near).with(&far));
    });
    let _echo = [Server::echo(&near, 8080), Server::echo(&far, 8080)];
    mesh.agents[1].signal(Signal::SIGSTOP);
    wait::until("the agent that hangs was asked first", || {
        let record = ask(&mesh, &client, cluster_ip());
        record.names("destination", &near);
        let text = |key: &str| record.text(&format!("/service/tried/0/{key}")).to_owned();
        (!text("address").is_empty()).then(|| {
            assert_eq!(text("address"), far.at(8080).to_string());
            // Its kernel still accepts, and nobody shakes hands; after two seconds without a beat it refuses.
            assert!(["timed_out", "unreachable"].contains(&text("close").as_str()), "{record:#?}");
        })
    });
    mesh.agents[1].signal(Signal::SIGCONT);
}

#[test]
fn what_may_have_been_delivered_is_delivered_to_nobody_else() {
    let mut mesh = Mesh::start();
    let client = mesh.pod("client", Side::A);
    let pods = [mesh.pod("one", Side::B), mesh.pod("two", Side::B)];
    let outside = mesh.world.pod("outside", Side::B);
    let hear_and_reset = |mut stream: TcpStream, _| {
        stream.read_exact(&mut [0]).unwrap();
        traffic::reset(stream);
    };
    let everywhere: SocketAddr = "0.0.0.0:8080".parse().unwrap();
    let servers = [&pods[0], &pods[1], &outside].map(|pod| Server::start(pod, everywhere, hear_and_reset));
    let [one, two] = &pods;
    let service = Service::new("web").at(cluster_ip(), 8080).with(one).with(two).with_plain(outside.address);
    mesh.change(|directory| directory.services.push(service));
    for count in 1..=8 {
        let mut stream = traffic::connect(&client, cluster_ip()).unwrap();
        stream.write_all(b"once").unwrap();
        traffic::expect_reset(&mut stream);
        let records = mesh.agents[0].records.wait(count, |_| true);
        assert!(records.iter().all(|record| record.close() == "reset_by_destination"), "{records:#?}");
        assert_eq!(servers.iter().map(Server::accepted).sum::<usize>(), count);
    }
}

#[test]
fn a_pods_own_service_leads_to_another_endpoint_or_back_to_itself() {
    let mut mesh = Mesh::start();
    let (own, other) = (mesh.strict_pod("own", Side::A), mesh.pod("other", Side::B));
    mesh.change(|directory| {
        directory.services.push(Service::new("web").at(cluster_ip(), 8080).with(&own).with(&other))
    });
    let (tell, told) = mpsc::channel();
    let here = Server::start(&own, "0.0.0.0:8080".parse().unwrap(), move |stream, from| {
        tell.send(from).unwrap();
        traffic::echo(stream);
    });
    let there = Server::echo(&other, 8080);
    for _ in 0..8 {
        ask(&mesh, &own, cluster_ip()).names("destination", &other);
    }
    assert_eq!((here.accepted(), there.accepted()), (0, 8));
    // Alone, by the directory or in fact.
    let mut wire = Capture::on(&own.namespace, "eth0");
    mesh.change(|directory| directory.service("web").pods.retain(|uid| *uid == own.uid));
    let alone = |mesh: &Mesh| {
        let mut stream = traffic::connect(&own, cluster_ip()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), cluster_ip());
        let local = stream.local_addr().unwrap();
        exchange(&mut stream);
        drop(stream);
        assert_eq!(told.recv().unwrap(), local, "the application sees its own pod");
        let record = mesh.agents[0].records.of_client(local);
        record.names("destination", &own);
        assert_eq!((record.text("/plain"), record.close()), ("own_pod", "finished"));
    };
    alone(&mesh);
    assert_eq!((wire.connections_to(8080), wire.connections_to(15008)), (0, 0), "no byte left the pod");
    mesh.change(|directory| directory.service("web").pods.push(other.uid.clone()));
    drop(there);
    alone(&mesh);
    // Its own address is still no business of the agent's.
    let records = mesh.agents[0].records.all().len();
    assert_eq!(traffic::ask(&own, own.at(8080), b"direct").unwrap(), b"direct");
    assert_eq!(mesh.agents[0].records.all().len(), records);
}

#[test]
fn open_connections_are_judged_again_when_the_directory_changes() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let outside = mesh.world.pod("outside", Side::B);
    let (at_web, at_outside) = (Server::echo(&web, 8080), Server::echo(&outside, 8080));
    let service = Service::new("web").at(cluster_ip(), 8080).with(&web).with_plain(outside.address);
    mesh.change(|directory| directory.services.push(service));
    let (mut secured, mut clear) = (opened(&client, &at_web), opened(&client, &at_outside));
    let mut going_on = |mesh: &mut Mesh| {
        mesh.in_force();
        exchange(&mut secured);
        exchange(&mut clear);
    };
    // What has nothing to do with them, and even an enrolment, ends neither.
    mesh.change(|directory| directory.service("web").plain.push("10.78.2.200".into()));
    going_on(&mut mesh);
    mesh.enrol(&[&outside]);
    going_on(&mut mesh);
    // Who leaves a service has not left the mesh.
    mesh.change(|directory| directory.service("web").pods = vec![outside.uid.clone()]);
    going_on(&mut mesh);
    // The endpoint in the clear goes with its listing, the other with its pod.
    mesh.change(|directory| {
        let service = directory.service("web");
        (service.plain, service.pods) = (Vec::new(), Vec::new());
    });
    traffic::expect_reset(&mut clear);
    exchange(&mut secured);
    mesh.change(|directory| directory.remove(&web));
    traffic::expect_reset(&mut secured);
    let ends = mesh.agents[0].records.wait(2, |record| record.close() == "revoked");
    assert_eq!(ends.len(), 2, "{ends:#?}");
}

#[test]
fn an_endpoint_that_is_enrolled_while_it_is_dialled_gets_no_byte_in_the_clear() {
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let late = mesh.world.pod("late", Side::B);
    let _servers = [Server::echo(&web, 8080), Server::echo(&late, 8080)];
    mesh.change(|directory| {
        directory.services.push(Service::new("web").at(cluster_ip(), 8080).with(&web).with_plain(late.address));
    });
    let node = mesh.world.node(Side::B).namespace.clone();
    node.ip(&format!("route replace blackhole {}/32", late.address));
    let mut wire = Capture::on(&client.namespace, "eth0");
    std::thread::scope(|scope| {
        let ask = || traffic::ask(&client, cluster_ip(), b"said at once").unwrap();
        let asking: Vec<_> = (0..MANY / 2).map(|_| scope.spawn(ask)).collect();
        wait::until("the endpoint is dialled", || (wire.connections_to(8080) > 0).then_some(()));
        mesh.enrol(&[&late]);
        // The kernel repeats its SYN, and is answered now.
        node.ip(&format!("route replace {}/32 dev {}", late.address, late.interface));
        for asked in asking {
            assert_eq!(asked.join().unwrap(), b"said at once");
        }
    });
    assert_eq!(wire.bytes_at(8080), 0);
}

/// A connection to the service that this server has accepted.
fn opened(client: &Pod, by: &Server) -> TcpStream {
    wait::until("a connection has the endpoint that is wanted", || {
        let before = by.accepted();
        let mut stream = traffic::connect(client, cluster_ip()).unwrap();
        exchange(&mut stream);
        (by.accepted() > before).then_some(stream)
    })
}

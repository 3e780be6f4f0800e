//! A client that is no pod reaches a pod by `mantle connect`, where a policy allows it, as nobody but itself.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Output, Stdio};
use std::sync::mpsc;

use agent::secure::{Channel, Client, Received};
use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::tunnel::{ConnectionId, Dialler, DiallerEvent, Extensions, Frames, Open, RefuseReason};
use agent_tests::traffic::{self, Server};
use agent_tests::{Mesh, Pod, Side, TUNNEL_PORT, mantle, wait};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::io::Interest;

mod local;
mod shown;

const IDENTITY: &str = "spiffe://test.mantle/outside/robot-7";

/// What lets it in, at port 80.
fn allows() -> String {
    format!("{{name: robots, to: {{namespace: shop}}, ports: [80], allow: [{{identity: '{IDENTITY}'}}]}}")
}

/// A machine that no directory lists, and what an operator has given it.
struct Robot {
    host: Pod,
    certificate: PathBuf,
    key: PathBuf,
    anchors: PathBuf,
}

impl Robot {
    fn made(mesh: &Mesh) -> Self {
        Self::made_for(mesh, "24h")
    }

    /// Its certificate lives so long.
    fn made_for(mesh: &Mesh, ttl: &str) -> Self {
        let folder = mesh.world.folder();
        let [key, csr, certificate] = ["robot-key.pem", "robot.csr", "robot.pem"].map(|name| folder.join(name));
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        fs::write(&key, pair.serialize_pem()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let request = CertificateParams::default().serialize_request(&pair).unwrap();
        fs::write(&csr, request.pem().unwrap()).unwrap();
        mesh.ca.issue(&csr, "robot-7", ttl, &certificate);
        let anchors = mesh.ca.state().join("root.pem");
        Self { host: mesh.world.pod("robot", Side::A), certificate, key, anchors }
    }

    /// `mantle connect` on its machine.
    fn start(&self, words: &[&str]) -> Session {
        self.start_with(Stdio::piped(), words)
    }

    fn start_with(&self, input: Stdio, words: &[&str]) -> Session {
        let mut command = self.host.namespace.command(mantle());
        command.arg("connect").arg("--cert").arg(&self.certificate).arg("--key").arg(&self.key);
        command.arg("--anchors").arg(&self.anchors).args(words);
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        Session(Some(command.spawn().unwrap()))
    }

    fn reach(&self, to: SocketAddr) -> Session {
        self.start(&[&to.to_string()])
    }

    /// Says something, ends, and waits for the end.
    fn ask(&self, to: SocketAddr, question: &[u8]) -> Output {
        self.reach(to).says(question)
    }

    /// Forwards a local port.
    fn forward(&self, to: SocketAddr) -> Forwarder {
        let mut session = self.start(&["--listen", "127.0.0.1:0", &to.to_string()]);
        let mut said = BufReader::new(session.child().stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let at = line
            .split_whitespace()
            .find_map(|word| word.trim_end_matches(',').parse::<SocketAddr>().ok().filter(|at| at.ip().is_loopback()));
        let at = at.unwrap_or_else(|| panic!("no address in {line}"));
        Forwarder { session, at, said }
    }

    fn client(&self) -> Client {
        let read = |path: &Path| fs::read(path).unwrap();
        Client::new((&read(&self.certificate), &read(&self.key)), &read(&self.anchors), None).unwrap()
    }
}

/// A running `mantle connect`, which ends with this.
struct Session(Option<Child>);

impl Session {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn exchange(&mut self, word: &[u8]) {
        let child = self.child();
        child.stdin.as_mut().unwrap().write_all(word).unwrap();
        let mut back = vec![0; word.len()];
        child.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
        assert_eq!(back, word);
    }

    fn says(mut self, question: &[u8]) -> Output {
        let mut stdin = self.child().stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // It is refused before it has read everything.
                let _ = stdin.write_all(question);
            });
            self.end()
        })
    }

    /// Waits for its end, with its input open.
    fn end(mut self) -> Output {
        let input = self.child().stdin.take();
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        drop(input);
        output
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A `mantle connect` that listens.
struct Forwarder {
    session: Session,
    at: SocketAddr,
    said: BufReader<ChildStderr>,
}

#[track_caller]
fn failed(output: &Output, with: &str) {
    failed_with_one_of(output, &[with]);
}

#[track_caller]
fn failed_with_one_of(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(words.iter().any(|words| said.contains(words)), "{said}");
}

/// A permit that is withdrawn ends the tunnel at once, whether its last word has left or not.
#[track_caller]
fn revoked(session: Session) {
    failed_with_one_of(&session.end(), &["reset (revoked)", "the connection was lost"]);
}

#[track_caller]
fn served(output: &Output, answer: &[u8]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(output.stdout == answer, "{} bytes came back: {said}", output.stdout.len());
}

#[test]
fn a_client_that_is_no_pod_enters_a_strict_pod_where_a_policy_allows_it() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let robot = Robot::made(&mesh);
    let (tell, peers) = mpsc::channel();
    let _echo = Server::start(&web, web.at(80), move |stream, peer| {
        tell.send(peer).unwrap();
        traffic::echo(stream);
    });
    failed(&robot.ask(web.at(80), b"hello"), "refused (denied): no policy");
    let refused = mesh.agents[1].records.wait(1, |record| record.close() == "denied").remove(0);
    assert_eq!((refused.text("/source/identity"), refused.blame()), (IDENTITY, "operator"));
    assert!(refused.text("/detail").contains("no policy of the directory allows"), "{refused:#?}");
    assert!(peers.try_recv().is_err(), "nothing reached the application");

    mesh.change(|directory| directory.policies = vec![allows()]);
    let mut question = Vec::new();
    traffic::Pattern::new(7).send(&mut question, 1 << 20).unwrap();
    served(&robot.ask(web.at(80), &question), &question);
    let peer = peers.recv().unwrap();
    assert_eq!(peer.ip(), robot.host.address, "the application sees the client");
    let record = mesh.agents[1].records.of_client(peer);
    assert_eq!((record.close(), record.text("/policy")), ("finished", "robots"));
    assert_eq!(record.text("/source/identity"), IDENTITY);
    assert!(record.lacks("/source/uid") && record.lacks("/source/pod"), "{record:#?}");
    assert_eq!((record.number("/sent"), record.number("/received")), (1 << 20, 1 << 20));
    record.names("destination", &web);
    failed(&robot.ask(web.at(81), b"hello"), "refused (denied)");
    wait::until("the CA's audit has the certificate", || mesh.ca.said().contains(IDENTITY).then_some(()));
}

#[test]
fn what_it_has_ends_with_its_policy_and_when_it_is_denied() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let client = mesh.pod("client", Side::A);
    let robot = Robot::made(&mesh);
    let _echo = Server::echo(&web, 80);
    let mut own = traffic::connect(&client, web.at(80)).unwrap();
    let mut own_goes_on = || {
        own.write_all(b"ping").unwrap();
        own.read_exact(&mut [0; 4]).unwrap();
    };
    mesh.change(|directory| directory.policies = vec![allows()]);
    let mut session = robot.reach(web.at(80));
    session.exchange(b"ping");
    mesh.change(|directory| directory.policies.clear());
    revoked(session);
    own_goes_on();

    mesh.change(|directory| directory.policies = vec![allows()]);
    let mut session = robot.reach(web.at(80));
    session.exchange(b"ping");
    mesh.ca.deny(["--identity", IDENTITY]);
    revoked(session);
    failed(&robot.ask(web.at(80), b"hello"), "accept this certificate");
    own_goes_on();
    let records = mesh.agents[1].records.wait(2, |record| record.close() == "revoked");
    assert!(records.iter().all(|record| record.text("/source/identity") == IDENTITY), "{records:#?}");

    mesh.ca.allow(["--identity", IDENTITY]);
    wait::until("it is believed again", || robot.ask(web.at(80), b"hello").status.success().then_some(()));
    let deny = format!("{{name: no-robots, to: {{}}, deny: [{{identity: '{IDENTITY}'}}]}}");
    mesh.change(|directory| directory.policies = vec![allows(), deny]);
    failed(&robot.ask(web.at(80), b"hello"), "refused (denied)");
    own_goes_on();
}

#[test]
fn its_connections_end_with_its_certificate_which_no_agent_renews() {
    let mut mesh = Mesh::start();
    let (web, client) = (mesh.strict_pod("web", Side::B), mesh.pod("client", Side::A));
    let _echo = Server::echo(&web, 80);
    mesh.change(|directory| directory.policies = vec![allows()]);
    let robot = Robot::made_for(&mesh, "15s");
    let mut own = traffic::connect(&client, web.at(80)).unwrap();
    let mut session = robot.reach(web.at(80));
    session.exchange(b"ping");
    failed_with_one_of(&session.end(), &["reset (expired)", "the connection was lost"]);
    let record = mesh.agents[1].records.wait(1, |record| record.close() == "no_certificate").remove(0);
    assert_eq!((record.text("/source/identity"), record.blame()), (IDENTITY, "peer"));
    own.write_all(b"ping").unwrap();
    own.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn what_had_arrived_before_a_reset_is_there() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let _server = Server::start(&web, web.at(80), |mut stream, _| {
        stream.write_all(b"the last words").unwrap();
        traffic::reset(stream);
    });
    mesh.change(|directory| directory.policies = vec![allows()]);
    let output = Robot::made(&mesh).reach(web.at(80)).end();
    failed(&output, "was reset");
    assert_eq!(output.stdout, b"the last words");
}

#[test]
fn an_input_that_fails_is_no_end_of_stream_to_the_application() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let (tell, told) = mpsc::channel();
    let _server = Server::start(&web, web.at(80), move |mut stream, _| {
        stream.read_exact(&mut [0; 4]).unwrap();
        tell.send(true).unwrap();
        tell.send(stream.read_to_end(&mut Vec::new()).is_ok()).unwrap();
    });
    mesh.change(|directory| directory.policies = vec![allows()]);
    let robot = Robot::made(&mesh);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for fails in [false, true] {
        let mut input = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let session = robot.start_with(OwnedFd::from(listener.accept().unwrap().0).into(), &[&web.at(80).to_string()]);
        input.write_all(b"half").unwrap();
        assert!(told.recv_timeout(wait::SOON).unwrap());
        if fails {
            traffic::reset(input)
        } else {
            drop(input)
        }
        let output = session.end();
        assert_eq!(told.recv_timeout(wait::SOON).unwrap(), !fails, "whether the application reads an end of stream");
        if fails { failed(&output, "standard input") } else { served(&output, b"") }
    }
}

#[test]
fn both_directions_end_by_themselves() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let robot = Robot::made(&mesh);
    mesh.change(|directory| directory.policies = vec![allows()]);
    let (tell, heard) = mpsc::channel();
    let _server = Server::start(&web, web.at(80), move |mut stream, _| {
        stream.write_all(b"first").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest).map(|_| rest);
        tell.send(read).unwrap();
    });
    let mut session = robot.reach(web.at(80));
    let mut said = Vec::new();
    session.child().stdout.as_mut().unwrap().read_to_end(&mut said).unwrap();
    assert_eq!(said, b"first", "its output ends before its input does");
    session.child().stdin.as_mut().unwrap().write_all(b"second").unwrap();
    drop(session.child().stdin.take());
    assert!(session.end().status.success());
    assert_eq!(heard.recv().unwrap().unwrap(), b"second");
    // A client that dies has not ended its direction.
    let mut session = robot.reach(web.at(80));
    session.child().stdin.as_mut().unwrap().write_all(b"half a").unwrap();
    session.child().stdout.as_mut().unwrap().read_to_end(&mut Vec::new()).unwrap();
    drop(session);
    assert!(heard.recv().unwrap().is_err(), "a reset, and no end of stream");
}

#[test]
fn a_local_port_can_be_forwarded() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let robot = Robot::made(&mesh);
    mesh.change(|directory| directory.policies = vec![allows()]);
    let _echo = Server::echo(&web, 80);
    failed(&robot.start(&["--listen", "0.0.0.0:0", &web.at(80).to_string()]).end(), "no loopback address");
    let forwarder = robot.forward(web.at(80));
    let at = forwarder.at;
    for _ in 0..3 {
        assert_eq!(traffic::ask(&robot.host, at, b"hello").unwrap(), b"hello");
    }
    mesh.change(|directory| directory.policies.clear());
    assert!(traffic::ask(&robot.host, at, b"hello").is_err(), "a reset, and no end of stream");
}

#[test]
fn it_talks_to_nobody_but_whom_it_expects_and_keeps_its_key() {
    let mut mesh = Mesh::start();
    let web = mesh.strict_pod("web", Side::B);
    let mut robot = Robot::made(&mesh);
    mesh.change(|directory| directory.policies = vec![allows()]);
    let echo = Server::echo(&web, 80);
    let to = web.at(80).to_string();
    let expects = |robot: &Robot, whom: &str| robot.start(&["--expect", whom, &to]).says(b"hello");
    served(&expects(&robot, &web.identity()), b"hello");
    failed(&expects(&robot, "spiffe://test.mantle/ns/shop/sa/other"), "other_identity");
    failed(&expects(&robot, "spiffe://b.example/ns/shop/sa/web"), "another trust domain");
    let via = robot.start(&["--via", &web.address.to_string(), &to]).says(b"hello");
    served(&via, b"hello");
    assert_eq!(echo.accepted(), 2, "nothing else reached the application");
    fs::set_permissions(&robot.key, fs::Permissions::from_mode(0o644)).unwrap();
    failed(&robot.ask(web.at(80), b"hello"), "chmod 600");
    fs::set_permissions(&robot.key, fs::Permissions::from_mode(0o600)).unwrap();
    // Another CA of the same name: neither end believes the other.
    let strangers = Mesh::start();
    robot.anchors = strangers.ca.state().join("root.pem");
    failed(&robot.ask(web.at(80), b"hello"), "pods would not accept the certificate");
    assert_eq!(echo.accepted(), 2);
}

/// What comes of an OPEN.
async fn open(channel: &mut Channel, destination: SocketAddr, client: SocketAddr) -> Result<(), RefuseReason> {
    let (mut machine, mut out) = (Dialler::new(1), Vec::new());
    let open = Open {
        destination: EndpointAddr::new(destination),
        client: ClientAddr::new(client),
        id: ConnectionId([5; 16]),
        extensions: Extensions::NONE,
    };
    machine.open(&open, &mut out).unwrap();
    channel.seal(&[&out]).unwrap();
    assert!(channel.flush().unwrap());
    loop {
        let record = match channel.receive().unwrap() {
            Received::Record(record) => record,
            Received::Blocked => {
                channel.ready(Interest::READABLE).await.unwrap();
                continue;
            }
            Received::Closed(_) => panic!("the tunnel has ended"),
        };
        return match machine.receive(&mut Frames::new(record), &mut Vec::new()).unwrap() {
            Some(DiallerEvent::Opened) => Ok(()),
            Some(DiallerEvent::Refused(reason)) => Err(reason),
            other => panic!("no answer: {other:?}"),
        };
    }
}

/// What comes of it when the client opens from a machine.
fn opened(
    robot: &Robot,
    from: &Pod,
    to: &Pod,
    destination: SocketAddr,
    claims: Option<SocketAddr>,
) -> Result<(), RefuseReason> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = traffic::connect(from, to.at(TUNNEL_PORT)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let own = socket.local_addr().unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let mut channel = robot.client().connect(socket).await.unwrap();
        open(&mut channel, destination, claims.unwrap_or(own)).await
    })
}

#[test]
fn it_may_claim_its_own_address_and_the_pods() {
    let mut mesh = Mesh::start();
    let (web, other) = (mesh.strict_pod("web", Side::B), mesh.pod("other", Side::B));
    let robot = Robot::made(&mesh);
    let far = mesh.world.pod("far", Side::A);
    mesh.change(|directory| {
        let entry = directory.list(&far);
        (entry.node, entry.serving) = ("node-x".into(), true);
        directory.policies = vec![allows()];
    });
    let echo = Server::echo(&web, 80);
    let host = &robot.host;
    for claimed in [other.at(4444), web.at(4444), far.at(4444), "192.0.2.1:4444".parse().unwrap(), host.at(0)] {
        let answer = opened(&robot, host, &web, web.at(80), Some(claimed));
        assert_eq!(answer, Err(RefuseReason::ClientAddress), "{claimed}");
    }
    for destination in [other.at(80), host.at(80)] {
        let answer = opened(&robot, host, &web, destination, None);
        assert_eq!(answer, Err(RefuseReason::NotMine), "{destination}");
    }
    let local = opened(&robot, host, &web, "127.0.0.1:80".parse().unwrap(), None);
    assert_eq!(local, Err(RefuseReason::ForbiddenDestination));
    // A pod's address is that pod's, whoever shows what.
    assert_eq!(opened(&robot, &far, &web, web.at(80), None), Err(RefuseReason::UnknownPeer));
    assert_eq!(echo.accepted(), 0, "nothing of it reached the application");
    assert_eq!(opened(&robot, host, &web, web.at(80), None), Ok(()));
}

//! A peer with a valid certificate may ask only for what is its own to ask for. The peer here is scripted: a third node,
//! admitted by the CA like any other, whose agent lies.

use std::net::SocketAddr;
use std::sync::Arc;

use agent::counts::Counts;
use agent::identity::{Estate, IdentityConfig, start};
use agent::secure::{Channel, Credentials, Received, Trust, connect};
use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::identity::{PodUid, SpiffeId};
use agent_core::tunnel::{ConnectionId, Dialler, DiallerEvent, Extensions, Frames, Open, RefuseReason};
use agent_tests::traffic::Server;
use agent_tests::{Mesh, Pod, Side, TRUST_DOMAIN, TUNNEL_PORT};
use tokio::io::Interest;
use tokio::sync::watch;

const NODE: &str = "node-x";

/// What the acceptor said to an OPEN.
#[derive(Debug, PartialEq)]
enum Answer {
    Opened,
    Refused(RefuseReason),
    /// The tunnel was ended.
    Ended,
}

/// The lying node: real credentials for its pod, and no scruples.
struct Mallory {
    pod: Pod,
    credentials: Arc<Credentials>,
    trust: Arc<Trust>,
}

impl Mallory {
    /// Joins as a node of its own, and is certified for its pod.
    async fn join(mesh: &mut Mesh) -> Self {
        let pod = mesh.world.pod("mallory", Side::A);
        mesh.change(|directory| {
            let entry = directory.list(&pod);
            (entry.node, entry.serving) = (NODE.into(), true);
        });
        let token = mesh.world.folder().join("token-x.txt");
        std::fs::write(&token, mesh.ca.token(NODE)).unwrap();
        let config = IdentityConfig {
            node: NODE.into(),
            trust_domain: TRUST_DOMAIN.parse().unwrap(),
            state_dir: mesh.world.folder().join("state-x"),
            ca_address: mesh.ca.address(),
            join_token_file: Some(token),
            ttl: None,
        };
        let (uid, id): (PodUid, SpiffeId) = (pod.uid.parse().unwrap(), pod.identity().parse().unwrap());
        let (_wanted, wanted) = watch::channel(vec![(uid.clone(), id)]);
        // Its agent talks to the CA from the network of a node, as agents do.
        let node = mesh.world.node(Side::A).namespace.clone();
        let (credentials, trust) = std::thread::scope(|scope| {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let identity = start(&config, wanted, Estate::default(), &Counts::default()).unwrap();
                    let mut certificates = identity.certificates();
                    let held = certificates.wait_for(|all| all.get(&uid).is_some()).await.unwrap();
                    (Arc::clone(held.get(&uid).unwrap()), Arc::clone(&identity.trust().borrow()))
                })
            };
            scope.spawn(|| node.within(work)).join().unwrap()
        });
        Self { pod, credentials, trust }
    }

    /// A tunnel to a pod, secured like any other.
    async fn tunnel(&self, to: &Pod) -> Lies {
        let socket = self.pod.namespace.within(|| std::net::TcpStream::connect(to.at(TUNNEL_PORT))).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let (identity, uid) = (to.identity().parse().unwrap(), to.uid.parse().unwrap());
        let channel = connect(socket, &self.credentials, &self.trust, &identity, &uid).await.unwrap();
        Lies { channel, machine: Dialler::new(0) }
    }
}

struct Lies {
    channel: Channel,
    machine: Dialler,
}

impl Lies {
    async fn open(&mut self, destination: SocketAddr, client: SocketAddr, extensions: &[u8]) -> Answer {
        let open = Open {
            destination: EndpointAddr::new(destination),
            client: ClientAddr::new(client),
            id: ConnectionId([9; 16]),
            extensions: Extensions::parse(extensions).unwrap(),
        };
        let mut out = Vec::new();
        self.machine.open(&open, &mut out).unwrap();
        self.send(&out).await;
        self.answer().await
    }

    async fn send(&mut self, record: &[u8]) {
        self.channel.seal(&[record]).unwrap();
        while !self.channel.flush().unwrap() {
            self.channel.ready(Interest::WRITABLE).await.unwrap();
        }
    }

    async fn answer(&mut self) -> Answer {
        loop {
            match self.channel.receive() {
                Ok(Received::Blocked) => {
                    self.channel.ready(Interest::READABLE).await.unwrap();
                    continue;
                }
                Ok(Received::Closed(_)) | Err(_) => return Answer::Ended,
                Ok(Received::Record(record)) => {
                    let mut out = Vec::new();
                    match self.machine.receive(&mut Frames::new(record), &mut out).unwrap() {
                        Some(DiallerEvent::Opened) => return Answer::Opened,
                        Some(DiallerEvent::Refused(reason)) => return Answer::Refused(reason),
                        Some(DiallerEvent::Reset(_)) => return Answer::Ended,
                        other => panic!("not an answer: {other:?}"),
                    }
                }
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn an_open_must_be_for_the_receivers_own_pod_and_from_the_senders() {
    runtime().block_on(async {
        let mut mesh = Mesh::start();
        let (web, other) = (mesh.strict_pod("web", Side::B), mesh.pod("other", Side::B));
        let mallory = Mallory::join(&mut mesh).await;
        let echo = Server::echo(&web, 80);
        let (own, to) = (mallory.pod.at(4444), web.at(80));
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let critical = [0x80, 1, 0, 0];
        let cases = [
            (at("127.0.0.1:80"), own, &[][..], RefuseReason::ForbiddenDestination),
            (at("[::1]:80"), own, &[], RefuseReason::ForbiddenDestination),
            (at("0.0.0.0:80"), own, &[], RefuseReason::ForbiddenDestination),
            (at("169.254.169.254:80"), own, &[], RefuseReason::ForbiddenDestination),
            (at("[fe80::1]:80"), own, &[], RefuseReason::ForbiddenDestination),
            (web.at(TUNNEL_PORT), own, &[], RefuseReason::ForbiddenDestination),
            (web.at(15001), own, &[], RefuseReason::ForbiddenDestination),
            (web.at(0), own, &[], RefuseReason::ForbiddenDestination),
            (other.at(80), own, &[], RefuseReason::NotMine),
            (at("192.0.2.1:80"), own, &[], RefuseReason::NotMine),
            (to, other.at(4444), &[], RefuseReason::ClientAddress),
            (to, web.at(4444), &[], RefuseReason::ClientAddress),
            (to, at("127.0.0.1:4444"), &[], RefuseReason::ClientAddress),
            (to, mallory.pod.at(0), &[], RefuseReason::ClientAddress),
            (to, own, &critical, RefuseReason::UnknownExtension),
        ];
        let mut tunnel = mallory.tunnel(&web).await;
        for (destination, client, extensions, reason) in cases {
            let answer = tunnel.open(destination, client, extensions).await;
            assert_eq!(answer, Answer::Refused(reason), "{destination} for {client}");
        }
        assert_eq!(echo.accepted(), 0, "nothing of it reached the application");
        // The control: the same tunnel, and nothing but the truth.
        assert_eq!(tunnel.open(to, own, &[]).await, Answer::Opened);
        let records = mesh.agents[1].records.wait(cases.len(), |record| record.blame() == "peer");
        assert_eq!(records.len(), cases.len(), "each attempt left its record");
        assert!(records.iter().all(|record| record.text("/source/uid") == mallory.pod.uid));
    });
}

#[test]
fn frames_that_break_the_protocol_end_the_tunnel() {
    runtime().block_on(async {
        let mut mesh = Mesh::start();
        let web = mesh.strict_pod("web", Side::B);
        let mallory = Mallory::join(&mut mesh).await;
        let echo = Server::echo(&web, 80);
        let data_without_open = [4, 0, 0, 1, 0, 0, 0, 1, b'x'];
        let of_another_connection = [4, 0, 0, 1, 0, 0, 0, 7, b'x'];
        let an_acceptors_frame = [2, 0, 0, 0, 0, 0, 0, 0];
        let cut_off = [4, 0, 0, 9, 0, 0, 0, 1, b'x'];
        for broken in [&data_without_open[..], &of_another_connection, &an_acceptors_frame, &cut_off, &[0xff; 64], &[1]]
        {
            let mut tunnel = mallory.tunnel(&web).await;
            tunnel.send(broken).await;
            assert_eq!(tunnel.answer().await, Answer::Ended, "{broken:?}");
        }
        assert_eq!(echo.accepted(), 0);
        assert_eq!(mallory.tunnel(&web).await.open(web.at(80), mallory.pod.at(4444), &[]).await, Answer::Opened);
    });
}

#[test]
fn a_pod_that_leaves_the_directory_loses_its_connections() {
    runtime().block_on(async {
        let mut mesh = Mesh::start();
        let web = mesh.strict_pod("web", Side::B);
        let mallory = Mallory::join(&mut mesh).await;
        let _echo = Server::echo(&web, 80);
        let mut tunnel = mallory.tunnel(&web).await;
        assert_eq!(tunnel.open(web.at(80), mallory.pod.at(4444), &[]).await, Answer::Opened);
        mesh.change(|directory| directory.remove(&mallory.pod));
        assert_eq!(tunnel.answer().await, Answer::Ended, "the permit was withdrawn");
        let record = mesh.agents[1].records.of_client(mallory.pod.at(4444));
        assert_eq!(record.close(), "revoked");
        let again = mallory.tunnel(&web).await.open(web.at(80), mallory.pod.at(4445), &[]).await;
        assert_eq!(
            again,
            Answer::Refused(RefuseReason::UnknownPeer),
            "its certificate is valid, and it is nobody here"
        );
    });
}

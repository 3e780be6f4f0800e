#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use agent_core::address::{ClientAddr, EndpointAddr, OriginalDst};
use agent_core::directory::{Directory, Fail, Frontend, Mode, PlainEndpoint, Pod, Service};
use agent_core::identity::SpiffeId;
use agent_core::policy::{authorize_inbound, authorize_plain};
use agent_core::route::{Choice, Route, resolve};
use agent_core::tunnel::{Acceptor, ConnectionId, Dialler, Extensions, Frames, Open};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::secure::tests::{pair, sockets};

fn open() -> Open<'static> {
    Open {
        destination: EndpointAddr::new("10.0.0.2:80".parse().unwrap()),
        client: ClientAddr::new("10.0.0.1:40000".parse().unwrap()),
        id: ConnectionId([7; 16]),
        extensions: Extensions::NONE,
    }
}

/// `uid-client` and `uid-web`.
fn directory() -> Directory {
    let trust_domain = "test.mantle".parse().unwrap();
    let pod = |name: &str, address: &str| Pod {
        uid: format!("uid-{name}").parse().unwrap(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        identity: SpiffeId::of_service_account(&trust_domain, "shop", name).unwrap(),
        node: "node".into(),
        netns: None,
        addresses: vec![address.parse().unwrap()],
        mode: Mode::Strict,
        plaintext_ports: Vec::new(),
        fail: Fail::Closed,
        serving: true,
    };
    let pods = vec![pod("client", "10.0.0.1"), pod("web", "10.0.0.2")];
    Directory::new(1, trust_domain.clone(), pods)
}

/// A permit for what the channel's peer asks of `uid-web`.
fn permit(channel: &Channel) -> Permit {
    authorize_inbound(&directory(), &"uid-web".parse().unwrap(), channel.peer(), 80).unwrap()
}

/// A permit for `uid-client` to speak in the clear with an endpoint beside `uid-web`.
fn plain_permit() -> PlainPermit {
    let service = Service {
        name: "web".into(),
        namespace: "shop".into(),
        frontends: vec![Frontend { address: "10.96.0.1:80".parse().unwrap(), target_port: 80 }],
        pods: vec!["uid-web".parse().unwrap()],
        plain: vec![PlainEndpoint { ip: "10.0.9.1".parse().unwrap(), port: None }],
    };
    let directory = directory().with_services(vec![service]);
    let client = directory.by_uid(&"uid-client".parse().unwrap()).unwrap();
    let original = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    let route = resolve(&directory, client, original, Choice { draw: 1, tried: &[] }).unwrap();
    let Route::Plain(route) = route else { unreachable!("{route:?}") };
    authorize_plain(&directory, &client.uid, route).unwrap()
}

/// Two tunnel ends, and two connected sockets: our application's, and the one that we have of it.
async fn ends() -> (Tunnel<Dialler>, Tunnel<Acceptor>, TcpStream, Application) {
    let (dialled, accepted) = pair().await;
    let (theirs, ours) = sockets().await;
    (
        Tunnel::new(dialled, Dialler::new(0)),
        Tunnel::new(accepted, Acceptor::new()),
        theirs,
        Application::new(ours).unwrap(),
    )
}

async fn receive<M: Machine>(tunnel: &mut Tunnel<M>) -> Vec<u8> {
    loop {
        if let Received::Record(record) = tunnel.channel.receive().unwrap() {
            return record.to_vec();
        }
        tunnel.channel.ready(Interest::READABLE).await.unwrap();
    }
}

/// A record, and what the machine makes of its frames.
async fn step<M: Machine>(tunnel: &mut Tunnel<M>) -> Vec<String> {
    let record = receive(tunnel).await;
    let mut frames = Frames::new(&record);
    let mut events = Vec::new();
    while let Some(event) = tunnel.machine.receive(&mut frames, &mut tunnel.out).unwrap() {
        events.push(format!("{event:?}"));
    }
    events
}

#[tokio::test]
async fn a_tunnel_that_dies_with_our_last_frames_ends_the_connection() {
    let (mut far, mut near, mut application, mut side) = ends().await;
    // The client has ended its direction, and reads nothing.
    far.machine.open(&open(), &mut far.out).unwrap();
    far.machine.finish(&mut far.out).unwrap();
    far.send_frames().unwrap();
    let request = near.next_open(&crate::drain::channel().1, std::future::pending()).await.unwrap();
    assert!(request.early.finished);
    near.answer_opened().unwrap();
    near.channel.shrink_send_buffer();
    // Our application says more than the tunnel takes, and ends: DONE waits behind it.
    application.write_all(&[7; 60_000]).await.unwrap();
    application.shutdown().await.unwrap();
    let permit = permit(&near.channel);
    let relayed = run(&mut side, &mut near, &permit, request.early, std::future::pending());
    let peer = async {
        // It is read once, so that the relay has come as far as it can.
        receive(&mut far).await;
        drop(far);
        tokio::time::sleep(Duration::from_secs(20)).await;
    };
    let outcome = tokio::select! {
        outcome = relayed => outcome,
        () = peer => unreachable!("the relay goes round and round"),
    };
    assert!(matches!(outcome.ended, Ended::Channel(_)), "{:?}", outcome.ended);
}

#[tokio::test]
async fn what_is_opened_again_begins_with_open() {
    let (mut near, mut far, _application, mut side) = ends().await;
    near.machine.open(&open(), &mut near.out).unwrap();
    let permit = permit(&far.channel);
    let early = Early { data: b"said before".to_vec(), finished: true };
    let relayed = run(&mut side, &mut near, &permit, early, std::future::pending());
    let peer = async {
        let mut events = Vec::new();
        while events.len() < 3 {
            events.extend(step(&mut far).await);
        }
        events
    };
    tokio::select! {
        outcome = relayed => unreachable!("{outcome:?}"),
        events = peer => {
            assert!(events[0].starts_with("Open("), "{events:?}");
            assert_eq!(events[1], format!("Data({:?})", b"said before"));
            assert_eq!(events[2], "Fin");
        }
    }
}

#[tokio::test]
async fn a_permit_that_is_gone_lets_no_byte_through() {
    let (_far, mut near, application, mut side) = ends().await;
    let permit = permit(&near.channel);
    let early = Early { data: b"too late".to_vec(), finished: false };
    let outcome = run(&mut side, &mut near, &permit, early, std::future::ready(Stop::Revoked)).await;
    assert_eq!(outcome.ended, Ended::Stopped(Stop::Revoked));
    assert_eq!((outcome.to_application, outcome.from_application), (0, 0));
    drop(side);
    let read = application.try_read(&mut [0; 8]);
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

/// The far ends of both sockets, and a relay between the near ones.
async fn in_the_clear(early: Early, stop: impl Future<Output = Stop> + 'static) -> (TcpStream, TcpStream, Relayed) {
    let (client, near) = sockets().await;
    let (server, far) = sockets().await;
    let (mut application, mut endpoint) = (Application::new(near).unwrap(), Application::new(far).unwrap());
    if early.finished {
        application.read_to_end();
    }
    let relay = async move { run_plain(&mut application, &mut endpoint, &plain_permit(), early, stop).await };
    (client, server, tokio::task::spawn_local(relay))
}

type Relayed = tokio::task::JoinHandle<Outcome>;

#[tokio::test]
async fn in_the_clear_last_words_are_heard_if_the_first_ones_come_upon_a_reset() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let early = Early { data: b"question".to_vec(), finished: false };
            let (mut client, server, relayed) = in_the_clear(early, std::future::pending()).await;
            // The relay has not had its first turn.
            let mut server = server.into_std().unwrap();
            std::io::Write::write_all(&mut server, b"last words").unwrap();
            socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
            let mut heard = Vec::new();
            let error = client.read_to_end(&mut heard).await.unwrap_err();
            assert_eq!((heard.as_slice(), error.kind()), (&b"last words"[..], std::io::ErrorKind::ConnectionReset));
            let outcome = relayed.await.unwrap();
            assert!(matches!(outcome.ended, Ended::Endpoint(_)), "{:?}", outcome.ended);
            assert_eq!(outcome.to_application, 10);
        })
        .await;
}

#[tokio::test]
async fn in_the_clear_each_side_may_end_first_and_still_be_answered() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let early = Early { data: b"said ".to_vec(), finished: false };
            let (mut client, mut server, relayed) = in_the_clear(early, std::future::pending()).await;
            client.write_all(b"before").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut question, mut answer) = (Vec::new(), Vec::new());
            server.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"said before");
            // More than both kernels hold: the relay waits for the reader, and holds little itself.
            let long = vec![7; 16 << 20];
            let write = async {
                server.write_all(&long).await.unwrap();
                server.shutdown().await.unwrap();
            };
            tokio::join!(write, async { _ = client.read_to_end(&mut answer).await.unwrap() });
            assert_eq!(answer, long);
            let outcome = relayed.await.unwrap();
            assert_eq!(outcome.ended, Ended::Finished);
            assert_eq!((outcome.from_application, outcome.to_application), (11, 16 << 20));
        })
        .await;
}

#[tokio::test]
async fn in_the_clear_a_reader_that_starts_late_gets_everything() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (mut client, mut server, relayed) = in_the_clear(Early::default(), std::future::pending()).await;
            client.shutdown().await.unwrap();
            // The kernels hold it, and most of it is not acknowledged when the relay is through.
            let long = vec![7; 400_000];
            server.write_all(&long).await.unwrap();
            drop(server);
            assert_eq!(relayed.await.unwrap().ended, Ended::Finished);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, long);
        })
        .await;
}

#[tokio::test]
async fn in_the_clear_a_reset_is_a_reset_on_either_side() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            for by_client in [true, false] {
                let (client, server, relayed) = in_the_clear(Early::default(), std::future::pending()).await;
                let (one, mut other) = if by_client { (client, server) } else { (server, client) };
                socket2::SockRef::from(&one).set_linger(Some(Duration::ZERO)).unwrap();
                drop(one);
                let read = other.read(&mut [0]).await.unwrap_err();
                assert_eq!(read.kind(), std::io::ErrorKind::ConnectionReset);
                let ended = relayed.await.unwrap().ended;
                assert!(
                    matches!((by_client, &ended), (true, Ended::Application(_)) | (false, Ended::Endpoint(_))),
                    "{ended:?}"
                );
            }
        })
        .await;
}

#[tokio::test]
async fn in_the_clear_nothing_goes_on_without_the_permit() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let early = Early { data: b"too late".to_vec(), finished: false };
            let (mut client, mut server, relayed) = in_the_clear(early, std::future::ready(Stop::Revoked)).await;
            for side in [&mut client, &mut server] {
                assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            }
            assert_eq!(relayed.await.unwrap().ended, Ended::Stopped(Stop::Revoked));
            // And while it is under way.
            let (revoke, revoked) = tokio::sync::oneshot::channel::<()>();
            let stop = async {
                _ = revoked.await;
                Stop::Revoked
            };
            let (mut client, mut server, relayed) = in_the_clear(Early::default(), stop).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
            drop(revoke);
            for side in [&mut client, &mut server] {
                assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            }
            assert_eq!(relayed.await.unwrap().ended, Ended::Stopped(Stop::Revoked));
        })
        .await;
}

#[test]
fn another_endpoint_is_tried_only_if_no_byte_can_have_been_delivered() {
    let outcome = |opened, data: &[u8], ended| Outcome {
        from_application: data.len() as u64,
        to_application: 0,
        opened,
        ended,
        early: Early { data: data.to_vec(), finished: false },
    };
    // It says so.
    assert!(outcome(false, b"x", Ended::Refused(RefuseReason::ConnectionRefused)).is_undelivered());
    assert!(!outcome(false, b"x", Ended::Refused(RefuseReason::Denied)).is_undelivered());
    // It was told nothing.
    assert!(outcome(false, b"", Ended::TunnelLost).is_undelivered());
    assert!(outcome(false, b"", Ended::NoAnswer).is_undelivered());
    assert!(outcome(false, b"", Ended::ResetByPeer(ResetReason::Agent)).is_undelivered());
    for (opened, data) in [(true, &b""[..]), (false, b"x")] {
        assert!(!outcome(opened, data, Ended::TunnelLost).is_undelivered());
        assert!(!outcome(opened, data, Ended::NoAnswer).is_undelivered());
        assert!(!outcome(opened, data, Ended::ResetByPeer(ResetReason::Agent)).is_undelivered());
    }
    let ended_only =
        Outcome { early: Early { data: Vec::new(), finished: true }, ..outcome(false, b"", Ended::TunnelLost) };
    assert!(!ended_only.is_undelivered());
    assert!(!outcome(false, b"", Ended::Stopped(Stop::Revoked)).is_undelivered());
    assert!(!outcome(false, b"", Ended::Application(std::io::ErrorKind::ConnectionReset.into())).is_undelivered());
}

/// A newer certificate, or its age: whoever has just connected is served once, and nobody after that.
#[tokio::test]
async fn an_outdated_tunnel_is_retired_before_an_open_that_is_here_already() {
    let (mut far, mut near, _application, _side) = ends().await;
    let (_trigger, drain) = crate::drain::channel();
    let ask = |far: &mut Tunnel<Dialler>| {
        far.machine.open(&open(), &mut far.out).unwrap();
        far.send_frames().unwrap();
    };
    ask(&mut far);
    near.has_news().await;
    near.next_open(&drain, std::future::ready(())).await.unwrap();
    near.answer_refused(RefuseReason::Denied).unwrap();
    assert_eq!(step(&mut far).await, ["Refused(Denied)"]);
    ask(&mut far);
    near.has_news().await;
    let dialler = async {
        let events = step(&mut far).await;
        drop(far);
        events
    };
    let (request, events) = tokio::join!(near.next_open(&drain, std::future::ready(())), dialler);
    assert!(request.is_none());
    assert_eq!(events, ["Repeat"], "it is opened elsewhere");
}

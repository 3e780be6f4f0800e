#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use agent_core::address::{ClientAddr, EndpointAddr};
use agent_core::directory::{Directory, Fail, Mode, Pod};
use agent_core::identity::SpiffeId;
use agent_core::policy::authorize_inbound;
use agent_core::tunnel::{Acceptor, ConnectionId, Dialler, Extensions, Frames, Open};
use tokio::io::AsyncWriteExt as _;
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

/// A permit for what the channel's peer asks of `uid-web`.
fn permit(channel: &Channel) -> Permit {
    let trust_domain = "test.mantle".parse().unwrap();
    let pod = |name: &str| Pod {
        uid: format!("uid-{name}").parse().unwrap(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        identity: SpiffeId::of_service_account(&trust_domain, "shop", name).unwrap(),
        node: "node".into(),
        netns: None,
        addresses: vec!["10.0.0.1".parse().unwrap()],
        mode: Mode::Strict,
        fail: Fail::Closed,
        serving: true,
    };
    let directory = Directory::new(1, trust_domain.clone(), vec![pod("client"), pod("web")]);
    authorize_inbound(&directory, &"uid-web".parse().unwrap(), channel.peer()).unwrap()
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
    let request = near.next_open(&crate::drain::channel().1).await.unwrap();
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

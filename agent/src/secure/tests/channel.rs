//! Two ends of a channel: whom they believe, and what becomes of their bytes.

use super::*;

#[tokio::test]
async fn both_ends_know_each_other_and_agree_on_post_quantum_keys() {
    let (dialled, accepted) = pair().await;
    assert_eq!(dialled.peer().identity().as_str(), WEB);
    assert_eq!(dialled.peer().uid().unwrap().as_str(), "uid-web");
    assert_eq!(accepted.peer().identity().as_str(), CLIENT);
    assert_eq!((dialled.group(), accepted.group()), ("X25519MLKEM768".into(), "X25519MLKEM768".into()));
    assert_eq!(dialled.peer().serial(), accepted.own_serial());
}

#[tokio::test]
async fn who_is_not_expected_or_not_trusted_is_refused() {
    let (root, other) = (Authority::root(), Authority::root());
    let (client, web) = (root.credentials(CLIENT, "uid-client"), root.credentials(WEB, "uid-web"));
    let reason = |result: Result<Channel, HandshakeError>| {
        let error = result.unwrap_err();
        let HandshakeError::Peer(reason) = &error else { panic!("not the peer's certificate: {error}") };
        reason.label()
    };
    let trust = root.trust();
    let (dialled, _) = shake((&client, &trust), (&web, &trust), (CLIENT, "uid-web")).await;
    assert_eq!(reason(dialled), "other_identity");
    let (dialled, _) = shake((&client, &trust), (&web, &trust), (WEB, "uid-successor")).await;
    assert_eq!(reason(dialled), "other_pod");
    let foreign = other.credentials(WEB, "uid-web");
    let (dialled, accepted) = shake((&client, &trust), (&foreign, &trust), (WEB, "uid-web")).await;
    assert_eq!(reason(dialled), "path");
    assert!(matches!(accepted.unwrap_err(), HandshakeError::Refused(_) | HandshakeError::Network(_)));
    // The other way round the client is done before it is judged: the verdict comes on the channel.
    let foreign = other.credentials(CLIENT, "uid-client");
    let (dialled, accepted) = shake((&foreign, &trust), (&web, &trust), (WEB, "uid-web")).await;
    assert_eq!(reason(accepted), "path");
    let mut dialled = dialled.unwrap();
    assert!(next(&mut dialled).await.unwrap_err().is_refusal());
}

#[tokio::test]
async fn records_keep_their_bounds_and_transfers_their_bytes() {
    let (mut dialled, mut accepted) = pair().await;
    for parts in [&[&b"one"[..]][..], &[b"head", b"er"], &[&[7; 16384]]] {
        send(&mut dialled, parts).await;
        assert_eq!(next(&mut accepted).await.unwrap().unwrap(), parts.concat());
    }
    send(&mut dialled, &[b"two"]).await;
    send(&mut dialled, &[b"records"]).await;
    assert_eq!(next(&mut accepted).await.unwrap().unwrap(), b"two");
    assert_eq!(next(&mut accepted).await.unwrap().unwrap(), b"records");
    let total = 2000_u32;
    let sender = async {
        for number in 0..total {
            send(&mut dialled, &[&number.to_be_bytes(), &[1; 5000]]).await;
        }
    };
    let receiver = async {
        for number in 0..total {
            let record = next(&mut accepted).await.unwrap().unwrap();
            assert_eq!((record.len(), &record[..4]), (5004, &number.to_be_bytes()[..]));
        }
    };
    tokio::join!(sender, receiver);
}

#[tokio::test]
async fn garbage_in_the_middle_is_an_error_and_no_record() {
    let root = Authority::root();
    let (client, web) = (root.credentials(CLIENT, "uid-client"), root.credentials(WEB, "uid-web"));
    let (dialled, accepted) = sockets().await;
    // A wire-tapper on the way, which adds a record of its own.
    let (to_web, from_tapper) = sockets().await;
    let (identity, uid) = (WEB.parse().unwrap(), "uid-web".parse().unwrap());
    let trust = root.trust();
    let tap = tokio::spawn(async move {
        let (mut near, mut far) = (accepted, to_web);
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let (dialled, accepted) =
        tokio::join!(connect(dialled, &client, &trust, &identity, &uid), accept(from_tapper, &web, &trust));
    let (dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    tap.abort();
    drop(dialled);
    assert!(matches!(next(&mut accepted).await, Ok(None) | Err(ChannelError::Socket(_))), "an end, and no record");

    // Plain HTTP at the tunnel's port.
    let (mut stranger, accepted) = sockets().await;
    tokio::io::AsyncWriteExt::write_all(&mut stranger, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let error = accept(accepted, &web, &trust).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(_)), "{error}");
}

/// Bytes after which rustls looks for the rest of a handshake message, and has no alert to send.
#[tokio::test]
async fn bytes_that_break_off_are_an_error_and_no_panic() {
    let hello = [0x16, 3, 1, 0, 4, 1, 0, 2, 0];
    let alert = [0x15, 3, 1, 0, 2, 1, 0];
    let piecemeal: Vec<u8> = (0..90_000).flat_map(|at| [0x16, 3, 1, 0, 1, if at == 0 { 1 } else { 0xff }]).collect();
    let root = Authority::root();
    for (bytes, reset) in [([&hello[..], &alert].concat(), false), (hello.to_vec(), true), (piecemeal, false)] {
        let (mut stranger, accepted) = sockets().await;
        let (web, trust) = (root.credentials(WEB, "uid-web"), root.trust());
        let speaks = async {
            // It may be reset before it has said all.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stranger, &bytes).await;
            if reset {
                socket2::SockRef::from(&stranger).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            }
            (!reset).then_some(stranger)
        };
        let (_stranger, shaken) = tokio::join!(speaks, accept(accepted, &web, &trust));
        assert!(matches!(shaken, Err(error) if error.blame() != agent_core::outcome::Blame::Ours));
    }
}

#[tokio::test]
async fn a_vanished_end_is_told_from_an_announced_one() {
    let (dialled, mut accepted) = pair().await;
    drop(dialled);
    let ended = next(&mut accepted).await;
    assert!(
        matches!(&ended, Err(ChannelError::Socket(error)) if error.kind() == std::io::ErrorKind::ConnectionReset),
        "a channel that is dropped resets: {ended:?}"
    );
    let (mut dialled, mut accepted) = pair().await;
    send(&mut dialled, &[b"last"]).await;
    dialled.end_in_order();
    drop(dialled);
    assert_eq!(next(&mut accepted).await.unwrap().unwrap(), b"last");
    assert!(matches!(accepted.receive(), Ok(Received::Closed(Ending::Unsaid) | Received::Blocked)));
}

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::task::Poll;

use agent_core::deny::DenyList;
use agent_core::policy::AcceptedPath;

mod bundles;

use super::*;
use crate::drain::Trigger;
use crate::report::Writer;
use crate::secure::tests::{Shaken, shaken};

/// A plane, and what its snapshots are written by.
struct Scene {
    plane: Plane,
    trust: watch::Sender<Arc<Trust>>,
    certificates: watch::Sender<Arc<Certificates>>,
    client: PodUid,
    shaken: Shaken,
    _directory: watch::Sender<Arc<Directory>>,
    _trigger: Trigger,
    _folder: tempfile::TempDir,
}

async fn scene(max_age: Option<Duration>) -> Scene {
    scene_of(shaken().await, max_age)
}

fn scene_of(shaken: Shaken, max_age: Option<Duration>) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = Writer::start("n", &folder.path().join("records"), &folder.path().join("ledger")).unwrap();
    let (trigger, drain) = crate::drain::channel();
    let nobody = Directory::new(1, "test.mantle".parse().unwrap(), Vec::new());
    let (directory_writer, directory) = watch::channel(Arc::new(nobody));
    let (trust_writer, trust) = watch::channel(Arc::clone(&shaken.trust));
    let (certificate_writer, certificates) = watch::channel(Certificates::of(&shaken.client));
    let tunnel = TunnelConfig { max_uses: 0, idle: Duration::from_secs(15), max_age };
    let plane = Plane { directory, certificates, trust, records, tunnel, drain, counts: Counts::default() };
    let client = shaken.client.uid().clone();
    Scene {
        plane,
        trust: trust_writer,
        certificates: certificate_writer,
        client,
        shaken,
        _directory: directory_writer,
        _trigger: trigger,
        _folder: folder,
    }
}

fn without_web(trust: &Trust) -> Arc<Trust> {
    let deny = DenyList { pods: ["uid-web".parse().unwrap()].into(), ..DenyList::default() };
    trust.next(trust.certificates(), deny, 1).unwrap()
}

/// What a future says when it is asked once.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

/// Somebody is denied between the handshake's verdict and the connection's first byte.
#[tokio::test]
async fn what_an_older_snapshot_has_accepted_is_stopped_before_its_first_byte() {
    let scene = scene(None).await;
    let ends = scene.shaken.dialled.ends();
    assert!(at_once(scene.plane.stop(&scene.client, Some(ends), |_| true)).await.is_none());
    assert!(scene.plane.trusts(ends).is_ok());
    scene.trust.send_replace(without_web(&scene.shaken.trust));
    assert!(matches!(scene.plane.trusts(ends), Err(Distrust::Peer(_))));
    let stop = at_once(scene.plane.stop(&scene.client, Some(ends), |_| true)).await;
    assert!(matches!(stop, Some(Stop::Distrusted(_))), "{stop:?}");
}

#[tokio::test]
async fn a_living_connection_ends_when_a_denial_or_the_loss_of_an_anchor_is_told() {
    for next in [without_web as fn(&Trust) -> Arc<Trust>, |_| Trust::new(HashMap::new()).unwrap()] {
        let scene = scene(None).await;
        let ends = scene.shaken.dialled.ends();
        let told = async { scene.trust.send_replace(next(&scene.shaken.trust)) };
        let (stop, distrust, _) = tokio::join!(
            biased;
            scene.plane.stop(&scene.client, Some(ends), |_| true),
            scene.plane.distrusted(ends),
            told
        );
        assert!(matches!(stop, Stop::Distrusted(found) if *found == distrust));
    }
}

#[tokio::test]
async fn a_connection_in_the_clear_is_judged_by_our_own_pod() {
    let scene = scene(Some(Duration::ZERO)).await;
    assert!(at_once(scene.plane.stop(&scene.client, None, |_| true)).await.is_none(), "it has no age");
    let trust = &scene.shaken.trust;
    let deny = DenyList { pods: [scene.client.clone()].into(), ..DenyList::default() };
    scene.trust.send_replace(trust.next(trust.certificates(), deny, 1).unwrap());
    let stop = at_once(scene.plane.stop(&scene.client, None, |_| true)).await;
    assert!(matches!(stop, Some(Stop::Distrusted(found)) if matches!(*found, Distrust::Own(_))));
}

#[tokio::test]
async fn a_connection_ends_at_its_greatest_age() {
    let age = Duration::from_secs(60);
    let scene = scene(Some(age)).await;
    tokio::time::pause();
    let began = Instant::now();
    assert_eq!(scene.plane.stop(&scene.client, Some(scene.shaken.dialled.ends()), |_| true).await, Stop::MaxAge);
    assert!(began.elapsed() >= age);
}

#[tokio::test]
async fn a_tunnel_is_outdated_by_a_newer_certificate_or_by_its_age() {
    let scene = scene(None).await;
    let outdated = |since| {
        let client = &scene.shaken.client;
        scene.plane.outdated(client.uid(), client.generation(), since)
    };
    assert!(at_once(outdated(Instant::now())).await.is_none());
    scene.certificates.send_replace(Certificates::of(&scene.shaken.renewed));
    assert!(at_once(outdated(Instant::now())).await.is_some());
    let old = self::scene(Some(Duration::from_secs(60))).await;
    tokio::time::pause();
    let since = Instant::now();
    old.plane.outdated(old.shaken.client.uid(), old.shaken.client.generation(), since).await;
    assert!(since.elapsed() >= Duration::from_secs(60));
}

#[tokio::test]
async fn who_is_no_pod_is_ended_with_its_certificate_and_a_pod_is_not() {
    let Scene { plane, client, .. } = scene(None).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let peer = |uid: Option<&PodUid>, not_after| {
        let identity = "spiffe://test.mantle/outside/robot".parse().unwrap();
        VerifiedPeer::assertion(identity, uid.cloned(), "01".into(), not_after, AcceptedPath::default())
    };
    assert_eq!(at_once(plane.outlived(&peer(None, now))).await, Some(()));
    assert_eq!(at_once(plane.outlived(&peer(None, now + 60))).await, None);
    assert_eq!(at_once(plane.outlived(&peer(Some(&client), now))).await, None, "its own agent does that");
}

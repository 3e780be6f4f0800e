#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;

use agent_core::identity::PodUid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::*;
use crate::identity::Standing;
use crate::report::Direction;

const DIRECTORY: &str = "
revision: 1
trust_domain: test.mantle
pods:
  - uid: uid-web
    name: web
    namespace: shop
    service_account: web
    node: a
    netns: /run/netns/web
    addresses: [10.0.0.1]
    mode: strict
    serving: true
services: []
";

/// An agent with one pod in each of these states; whether it has a connection to its CA, and whether it is ready.
fn view(states: &[(&str, &'static str, Option<u64>)], connected: bool, ready: bool) -> View {
    let standing = |&(uid, state, not_after): &(&str, &'static str, Option<u64>)| {
        let standing = Standing {
            identity: "spiffe://test.mantle/ns/shop/sa/web".parse().unwrap(),
            state,
            serial: not_after.map(|_| "0aff".to_owned()),
            not_after,
            anchor: not_after.map(|_| [7; 32]),
            next_renewal: None,
            error: (state == "denied").then(|| "pod is denied".to_owned()),
        };
        (uid.parse::<PodUid>().unwrap(), standing)
    };
    let problem = (!connected).then(|| "cannot reach the CA".to_owned());
    let watched = Watched { connected, since: 1, skew_ms: connected.then_some(-1_500), problem, turned_away: None };
    let directory = agent_core::directory::parse(DIRECTORY).unwrap();
    View {
        instance: "i".into(),
        node: "a".into(),
        ca: ([10, 0, 0, 9], 15012).into(),
        directory: watch::channel(Arc::new(directory)).1,
        certificates: watch::channel(Certificates::standing(states.iter().map(standing))).1,
        trust: watch::channel(Arc::default()).1,
        watched: watch::channel(watched).1,
        counts: Counts::default(),
        ready: watch::channel(ready).1,
    }
}

/// A server of a door, and the way to it.
fn server(view: View, door: http::Door) -> mpsc::Sender<DuplexStream> {
    let (connect, connected) = mpsc::channel(64);
    let pages = Arc::new(Pages::new(view));
    tokio::spawn(async move {
        let connected = tokio::sync::Mutex::new(connected);
        let accept = async || connected.lock().await.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into());
        serve(accept, &pages, door).await;
    });
    connect
}

/// What comes back until the end.
async fn exchange(connect: &mpsc::Sender<DuplexStream>, request: &[u8]) -> String {
    let (mut ours, theirs) = duplex(1 << 16);
    connect.send(theirs).await.unwrap();
    ours.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    ours.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(connect: &mpsc::Sender<DuplexStream>, page: &str) -> (u16, String) {
    let answer = exchange(connect, format!("GET {page} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(start_paused = true)]
async fn who_only_connects_keeps_nobody_out() {
    let connect = server(view(&[], true, true), http::Door::Metrics);
    let began = tokio::time::Instant::now();
    let mut silent = Vec::new();
    for _ in 0..100 {
        let (ours, theirs) = duplex(64);
        connect.send(theirs).await.unwrap();
        silent.push(ours);
    }
    assert_eq!(get(&connect, "/healthz/ready").await.0, 200);
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody was waited for");
    assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0, "the first have been given up");
}

/// Reads an exposition: each sample by its name and labels. Each family must be described before it, and once.
fn parse(text: &str) -> HashMap<String, f64> {
    let (mut types, mut helps, mut samples) = (HashMap::new(), HashMap::new(), HashMap::new());
    let text = text.strip_suffix("# EOF\n").unwrap();
    for line in text.lines() {
        let described =
            |rest: &str| rest.split_once(' ').map(|(name, what)| (name.to_owned(), what.to_owned())).unwrap();
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = described(rest);
            assert!(helps.insert(name, help).is_none(), "{line}: twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described(rest);
            assert!(types.insert(name, kind).is_none(), "{line}: twice");
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let family = match name.strip_suffix("_total") {
                Some(family) => family,
                None => name,
            };
            let kind = types.get(family).unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line} is a {kind}");
            assert!(name.starts_with("mantle_") && helps.contains_key(family), "{line}");
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{line}: twice");
        }
    }
    samples
}

#[tokio::test]
async fn every_metric_is_described_and_says_what_is_so() {
    let far = u64::MAX / 2;
    let view = view(&[("uid-web", "valid", Some(far)), ("uid-db", "expired", None)], true, true);
    view.counts.rejected(Direction::Inbound, "expired");
    view.counts.rejected(Direction::Inbound, "expired");
    view.counts.rejected(Direction::Outbound, "other_pod");
    view.counts.shaken(Direction::Outbound, Some(&[7; 32]));
    view.counts.ca_request("sign", "Unavailable".to_owned());
    let (status, text) = get(&server(view, http::Door::Metrics), "/metrics").await;
    let samples = parse(&text);
    let value = |sample: &str| samples.get(sample).copied();
    assert_eq!((status, value("mantle_identity_state{state=\"valid\"}")), (200, Some(1.0)), "{text}");
    assert_eq!(value("mantle_identity_state{state=\"expired\"}"), Some(1.0));
    assert_eq!(value("mantle_identity_state{state=\"denied\"}"), Some(0.0));
    let of = |pod: &str| value(&format!("mantle_identity_seconds_to_expiry{{{pod}}}"));
    assert!(of("namespace=\"shop\",pod=\"web\",uid=\"uid-web\"").unwrap() > 1e9, "{text}");
    assert_eq!(of("namespace=\"\",pod=\"\",uid=\"uid-db\""), Some(0.0));
    assert_eq!(value("mantle_verify_rejects_total{direction=\"inbound\",reason=\"expired\"}"), Some(2.0));
    assert_eq!(value("mantle_verify_rejects_total{direction=\"outbound\",reason=\"other_pod\"}"), Some(1.0));
    let anchor = "07".repeat(32);
    assert_eq!(value(&format!("mantle_handshakes_total{{direction=\"outbound\",anchor=\"{anchor}\"}}")), Some(1.0));
    assert_eq!(value("mantle_ca_requests_total{call=\"sign\",code=\"Unavailable\"}"), Some(1.0));
    assert_eq!((value("mantle_clock_skew_seconds"), value("mantle_ca_connected")), (Some(-1.5), Some(1.0)));
}

#[tokio::test]
async fn each_door_shows_what_is_for_it() {
    let at = |door, ready| server(view(&[], true, ready), door);
    let (operator, metrics) = (at(http::Door::Operator, true), at(http::Door::Metrics, true));
    assert_eq!(get(&operator, "/certs").await.0, 200);
    assert_eq!(get(&metrics, "/certs").await.0, 404);
    assert_eq!(get(&operator, "/metrics").await.0, 200);
    assert_eq!(get(&metrics, "/").await.0, 404);
    assert_eq!(get(&metrics, "/healthz/ready").await, (200, "ready\n".to_owned()));
    assert_eq!(get(&at(http::Door::Metrics, false), "/healthz/ready").await.0, 503);
    let posted = exchange(&metrics, b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").await;
    assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
    let long = exchange(&metrics, format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)).as_bytes()).await;
    assert!(!long.contains(" 200 ") && !long.contains(" 404 "), "{long}");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_keeps_nobody_else_out() {
    let connect = server(view(&[], true, true), http::Door::Metrics);
    let mut silent = Vec::new();
    for _ in 0..40 {
        let (ours, theirs) = duplex(1024);
        connect.send(theirs).await.unwrap();
        silent.push(ours);
    }
    assert_eq!(get(&connect, "/healthz/ready").await.0, 200, "after those before it have had their time");
    for ours in &mut silent {
        assert_eq!(ours.read(&mut [0; 64]).await.unwrap(), 0, "it is not kept");
    }
}

#[test]
fn advice_goes_by_what_is_wrong() {
    let rows = |states: &[_], connected| certs::certs(&view(states, connected, true)).certificates;
    let good = rows(&[("uid-web", "valid", Some(u64::MAX))], true).remove(0);
    assert_eq!((good.error, good.advice, good.anchor), (None, None, Some("07".repeat(32))));
    assert_eq!((good.namespace.as_deref(), good.name.as_deref()), (Some("shop"), Some("web")));
    let denied = rows(&[("uid-web", "denied", None)], true).remove(0);
    assert!(denied.advice.unwrap().contains("mantle ca deny list"));
    let alone = rows(&[("uid-web", "fetching", None)], false).remove(0);
    assert_eq!(alone.error.as_deref(), Some("cannot reach the CA"));
    assert!(alone.advice.unwrap().contains("reaches it at 10.0.0.9:15012"));
}

//! What the CA and its operator order: denials, another root, renewal before the time.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_denied_pod_keeps_its_certificate_and_is_asked_for_once_a_minute() {
    let (node, first) = Node::certified().await;
    *node.ca.says_no.lock().unwrap() = Some(|| Answer::Denied("not yours".into()));
    node.pass(LIFE.mul_f64(0.61)).await;
    assert_eq!((node.state(), node.serial()), ("denied", Some(first)));
    let before = node.ca.calls();
    node.pass(HOUR).await;
    let asked = node.ca.calls() - before;
    assert!((40..=60).contains(&asked), "{asked} calls in an hour");
    assert_eq!(node.standing().unwrap().error.as_deref(), Some("not yours"));
    node.pass(3 * HOUR).await;
    assert_eq!((node.state(), node.serial()), ("denied", None));
    assert_eq!(node.certificates.borrow().refusal(&uid("web")), Some("not yours"));
}

#[tokio::test(start_paused = true)]
async fn who_is_denied_by_name_has_nothing_at_once_and_another_when_it_is_allowed() {
    let lists: [fn(&mut DenyList) -> bool; 4] = [
        |list| list.pods.insert(uid("web")),
        |list| list.identities.insert(wants(&["web"])[0].1.clone()),
        |list| list.nodes.insert("node-a".into()),
        |list| list.trust_domains.insert("test.mantle".parse().unwrap()),
    ];
    for fill in lists {
        let (mut node, first) = Node::certified().await;
        let mut list = DenyList::default();
        assert!(fill(&mut list));
        node.deny(list);
        node.certificates.wait_for(|all| all.held.is_empty()).await.unwrap();
        node.pass(HOUR).await;
        assert_eq!((node.state(), node.ca.calls()), ("denied", 1));
        node.deny(DenyList::default());
        settle().await;
        assert!(node.state() == "valid" && node.serial() != Some(first));
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_or_key_that_is_denied_is_replaced() {
    for by_key in [false, true] {
        let (mut node, first) = Node::certified().await;
        let mut list = DenyList { pods: [uid("other")].into(), ..DenyList::default() };
        if by_key {
            list.keys.insert(node.used().as_peer().path().keys()[0]);
        } else {
            list.serials.insert("test.mantle".parse().unwrap(), first.clone());
        }
        node.deny(list);
        node.another(&first).await;
        node.pass(HOUR).await;
        assert_eq!((node.state(), node.ca.calls()), ("valid", 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_whose_anchor_is_withdrawn_is_dropped_and_replaced_once_the_ca_follows() {
    let (mut node, first) = Node::certified().await;
    let believe = |anchors: Vec<CertificateDer<'static>>| {
        let domains = HashMap::from([("test.mantle".parse().unwrap(), anchors)]);
        move |trust: &mut Arc<Trust>| *trust = trust.next(domains, DenyList::default(), trust.sequence() + 1).unwrap()
    };
    let (own, other) = (node.ca.root.0.clone(), Ca::new(&node.clocks).root.0.clone());
    node.trust.send_modify(believe(vec![other.clone()]));
    node.certificates.wait_for(|all| all.held.is_empty()).await.unwrap();
    node.pass(HOUR).await;
    assert!(node.serial().is_none(), "what the CA still issues under the old one is not used");
    assert!(node.ca.calls() < 100, "nor asked for without a pause: {} calls", node.ca.calls());
    node.trust.send_modify(believe(vec![other, own]));
    assert_ne!(node.another(&first).await, first);
}

#[tokio::test(start_paused = true)]
async fn an_order_to_rotate_may_shorten_a_life_and_nothing_else_may() {
    let (node, first) = Node::certified().await;
    *node.ca.life.lock().unwrap() = LIFE / 4;
    node.pass(LIFE.mul_f64(0.61)).await;
    assert_eq!((node.state(), node.serial()), ("renewing", Some(first.clone())), "it would end sooner");
    assert!(node.standing().unwrap().error.unwrap().contains("not end later"));
    let anchor = *node.used().as_peer().anchor().unwrap();
    node.order(1, &[[7; 32]]);
    node.pass(Duration::from_secs(601)).await;
    assert_eq!(node.serial(), Some(first.clone()), "an order about another anchor is none for it");
    node.order(2, &[[7; 32], anchor]);
    node.pass(Duration::from_secs(601)).await;
    let second = node.serial().unwrap();
    assert_ne!(second, first);
    let calls = node.ca.calls();
    node.order(2, &[anchor]);
    node.pass(Duration::from_secs(601)).await;
    assert_eq!((node.serial(), node.ca.calls()), (Some(second), calls), "the same order twice is one");
}

#[tokio::test(start_paused = true)]
async fn a_life_of_more_than_a_day_is_refused() {
    let node = Node::start(&[]);
    *node.ca.life.lock().unwrap() = 26 * HOUR;
    node.wanted.send(wants(&["web"])).unwrap();
    node.pass(Duration::from_secs(10)).await;
    assert_eq!(node.serial(), None);
    assert!(node.certificates.borrow().refusal(&uid("web")).unwrap().contains("`ca.ttl`"));
    *node.ca.life.lock().unwrap() = 25 * HOUR;
    node.pass(Duration::from_secs(300)).await;
    assert_eq!(node.state(), "valid");
}

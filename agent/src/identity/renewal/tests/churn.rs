//! Pods that come and go without end.

use std::collections::VecDeque;

use super::*;

#[tokio::test(start_paused = true)]
async fn fifty_pods_that_come_and_go_each_second_are_certified_and_forgotten() {
    const EACH: Duration = Duration::from_millis(20);
    /// They live for two seconds each.
    const AT_ONCE: usize = 100;
    let (node, first) = Node::certified().await;
    let mut living = VecDeque::new();
    for number in 0..1000 {
        living.push_back(format!("pod-{number}"));
        let left = (living.len() > AT_ONCE).then(|| living.pop_front()).flatten();
        if let Some(left) = &left {
            assert!(node.certificates.borrow().held.contains_key(&uid(left)), "{left} was certified while it lived");
        }
        let names: Vec<&str> = ["web"].into_iter().chain(living.iter().map(String::as_str)).collect();
        node.wanted.send_replace(wants(&names));
        tokio::time::sleep(EACH).await;
        if let Some(left) = left {
            assert!(!node.certificates.borrow().held.contains_key(&uid(&left)), "nothing is kept for {left}");
        }
    }
    node.pass(Duration::from_secs(2)).await;
    let held: Vec<PodUid> = node.certificates.borrow().held.keys().cloned().collect();
    assert_eq!(held.len(), AT_ONCE + 1);
    assert!(living.iter().all(|name| held.contains(&uid(name))));
    assert_eq!(node.ca.under_way.load(Ordering::SeqCst), 0);
    assert!(node.ca.calls() <= 1001, "{} calls for 1001 pods", node.ca.calls());
    assert_eq!(node.serial(), Some(first), "nobody else notices");
}

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use std::time::Duration;

use crate::token::{JoinToken, KeyHash, to_hex};

const NOW: u64 = 1000;
const OLD: KeyHash = [1; 32];
const NEW: KeyHash = [2; 32];

/// Two nodes, and a sequence that is not 0.
fn state() -> State {
    let mut state = State::default();
    for node in ["node-a", "node-b"] {
        let token = JoinToken::generate(node, OLD);
        state.add_token(&token, Duration::from_secs(60));
        state.admit_by_token(node, &token, &[7; 32]).unwrap();
    }
    let told = state.published().clone();
    state.note_bundle("test.mantle", &OLD);
    state.count(&told);
    state
}

/// Both nodes watch, and have what is in force.
fn all(state: &State) -> Nodes {
    let mut said = Nodes::new();
    for node in ["node-a", "node-b"] {
        let record = said.entry(node.to_owned()).or_default();
        (record.sequence, record.connected_since) = (state.sequence(), Some(1));
    }
    said
}

fn uses(said: &mut Nodes, node: &str, anchor: KeyHash, tunnels: u32) {
    let used = InUse { certificates: 0, tunnels };
    said.get_mut(node).unwrap().anchors.insert(to_hex(&anchor), used);
}

fn grant(name: &str, anchor: KeyHash, not_after: u64) -> crate::state::grant::Grant {
    crate::state::grant::Grant {
        identity: format!("spiffe://test.mantle/outside/{name}"),
        serial: "01".into(),
        key: to_hex(&[name.as_bytes()[0]; 32]),
        not_after,
        by: "test".into(),
        anchor: to_hex(&anchor),
    }
}

#[test]
fn clients_that_are_no_pods_are_waited_for_until_they_have_something_newer() {
    let mut state = state();
    let far = now_is() + 1000;
    let mut give = |name: &str, anchor, not_after| {
        let grant = grant(name, anchor, not_after);
        let identity = grant.identity.parse().unwrap();
        state.grant(grant, &identity).unwrap();
    };
    give("robot", OLD, far);
    give("ended", OLD, now_is() + 1);
    give("printer", OLD, far);
    give("printer", NEW, far);
    let rotation = rotation(Phase::Issuing, false);
    let said = all(&state);
    let view = View::new(&state, &said, far - 1);
    let robot = "spiffe://test.mantle/outside/robot".to_owned();
    assert_eq!(rotation.may_finish(&view, false), Err(NotYet::Clients(vec![robot])));
    assert_eq!(rotation.may_finish(&view, true), Ok(()));
    assert_eq!(rotation.may_finish(&View::new(&state, &said, far), false), Ok(()), "it has ended");
    let aborted = Rotation { phase: Phase::Withdrawing, ..rotation };
    assert_eq!(aborted.advance(&view), None, "the printer's");
    assert_eq!(aborted.advance(&View::new(&state, &said, far)), Some(Advance::Withdraw));
}

fn now_is() -> u64 {
    crate::state::now()
}

fn rotation(phase: Phase, forced: bool) -> Rotation {
    Rotation { phase, ..Rotation::new(2, (&OLD, &NEW), 60, forced) }
}

fn behind(result: Result<(), NotYet>) -> Vec<String> {
    let Err(NotYet::Unacknowledged(nodes)) = result else { return Vec::new() };
    nodes
}

#[test]
fn it_starts_when_all_have_what_is_in_force() {
    let state = state();
    let mut said = all(&state);
    assert_eq!(may_start(&View::new(&state, &said, NOW), false), Ok(()));
    said.get_mut("node-b").unwrap().rejected = "no".into();
    assert_eq!(behind(may_start(&View::new(&state, &said, NOW), false)), ["node-b"]);
    said.remove("node-b");
    assert_eq!(behind(may_start(&View::new(&state, &said, NOW), false)), ["node-b"], "it never watched");
    said.get_mut("node-a").unwrap().sequence -= 1;
    assert_eq!(behind(may_start(&View::new(&state, &said, NOW), false)), ["node-a", "node-b"]);
    assert_eq!(may_start(&View::new(&state, &said, NOW), true), Ok(()));
}

#[test]
fn one_is_under_way_at_a_time() {
    let mut state = state();
    state.begin_rotation(rotation(Phase::Publishing, false));
    let said = all(&state);
    assert_eq!(may_start(&View::new(&state, &said, NOW), true), Err(NotYet::UnderWay));
}

#[test]
fn the_new_root_issues_when_all_believe_it_and_not_before() {
    let state = state();
    let mut said = all(&state);
    let publishing = rotation(Phase::Publishing, false);
    assert_eq!(publishing.advance(&View::new(&state, &said, NOW)), Some(Advance::Issue));
    said.get_mut("node-b").unwrap().sequence = 0;
    assert_eq!(publishing.advance(&View::new(&state, &said, NOW)), None, "one laggard");
    let forced = rotation(Phase::Publishing, true);
    assert_eq!(forced.advance(&View::new(&state, &said, NOW)), None, "it watches, and has something else");
    said.get_mut("node-b").unwrap().connected_since = None;
    said.get_mut("node-b").unwrap().last_seen = NOW - GONE + 1;
    assert_eq!(forced.advance(&View::new(&state, &said, NOW)), None, "it may come back to a CA that was restarted");
    said.get_mut("node-b").unwrap().last_seen = NOW - GONE;
    assert_eq!(publishing.advance(&View::new(&state, &said, NOW)), None);
    assert_eq!(forced.advance(&View::new(&state, &said, NOW)), Some(Advance::Issue));
    assert!(!publishing.next_issues() && publishing.leaving().is_none());
}

#[test]
fn it_is_finished_when_nothing_is_left_of_the_old_root() {
    let state = state();
    let mut said = all(&state);
    let issuing = rotation(Phase::Issuing, false);
    assert!(issuing.next_issues() && issuing.leaving() == Some(to_hex(&OLD).as_str()));
    uses(&mut said, "node-b", OLD, 3);
    let refused = issuing.may_finish(&View::new(&state, &said, NOW), false).unwrap_err().to_string();
    assert!(refused.contains("node-b (0 certificates, 3 tunnels)"), "{refused}");
    assert_eq!(issuing.may_finish(&View::new(&state, &said, NOW), true), Ok(()));
    uses(&mut said, "node-b", OLD, 0);
    uses(&mut said, "node-b", NEW, 3);
    assert_eq!(issuing.may_finish(&View::new(&state, &said, NOW), false), Ok(()));
    said.get_mut("node-a").unwrap().sequence = 0;
    assert_eq!(behind(issuing.may_finish(&View::new(&state, &said, NOW), false)), ["node-a"]);
    assert_eq!(issuing.advance(&View::new(&state, &said, NOW)), None, "only an operator ends it");
}

#[test]
fn what_is_shown_is_what_the_last_step_waits_for() {
    let state = state();
    let mut said = all(&state);
    let gone = said.get_mut("node-b").unwrap();
    (gone.sequence, gone.connected_since) = (0, None);
    let view = View::new(&state, &said, NOW);
    assert!(rotation(Phase::Publishing, true).waits_for(&view).is_empty(), "it is gone, and the start was forced");
    let issuing = rotation(Phase::Issuing, true);
    assert_eq!(issuing.waits_for(&view), ["node-b"]);
    assert_eq!(behind(issuing.may_finish(&view, false)), ["node-b"]);
}

#[test]
fn it_cannot_be_finished_before_the_new_root_issues_or_while_it_is_aborted() {
    let state = state();
    let said = all(&state);
    let finish = |phase, force| rotation(phase, false).may_finish(&View::new(&state, &said, NOW), force);
    for force in [false, true] {
        assert_eq!(finish(Phase::Publishing, force), Err(NotYet::NotIssuing));
        assert_eq!(finish(Phase::Withdrawing, force), Err(NotYet::Withdrawing));
    }
}

#[test]
fn it_can_be_aborted_at_every_step() {
    assert_eq!(rotation(Phase::Publishing, false).abort(false), Abort::Now, "the new root has proved nothing");
    assert_eq!(rotation(Phase::Issuing, false).abort(false), Abort::WhenUnused);
    assert_eq!(rotation(Phase::Withdrawing, false).abort(false), Abort::UnderWay);
    for phase in [Phase::Issuing, Phase::Withdrawing] {
        assert_eq!(rotation(phase, false).abort(true), Abort::Now);
    }
}

#[test]
fn an_aborted_one_is_withdrawn_when_nothing_is_left_of_the_new_root() {
    let state = state();
    let mut said = all(&state);
    let withdrawing = rotation(Phase::Withdrawing, false);
    assert!(!withdrawing.next_issues() && withdrawing.leaving() == Some(to_hex(&NEW).as_str()));
    uses(&mut said, "node-a", NEW, 1);
    assert_eq!(withdrawing.advance(&View::new(&state, &said, NOW)), None);
    uses(&mut said, "node-a", NEW, 0);
    uses(&mut said, "node-b", OLD, 5);
    assert_eq!(withdrawing.advance(&View::new(&state, &said, NOW)), Some(Advance::Withdraw));
    said.get_mut("node-b").unwrap().sequence = 0;
    assert_eq!(withdrawing.advance(&View::new(&state, &said, NOW)), None, "it may still get certificates renewed");
}

#[test]
fn an_evicted_node_holds_nothing_up() {
    let mut state = state();
    let mut said = all(&state);
    uses(&mut said, "node-b", OLD, 1);
    said.get_mut("node-b").unwrap().sequence = 0;
    state.evict("node-b");
    let view = View::new(&state, &said, NOW);
    assert_eq!(rotation(Phase::Issuing, false).may_finish(&view, false), Ok(()));
}

#[test]
fn many_names_are_counted() {
    let names = |count: usize| (0..count).map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!((listed(&names(0)).as_str(), listed(&names(2)).as_str()), ("none", "0, 1"));
    assert!(listed(&names(20)).ends_with("18, 19"));
    assert!(listed(&names(23)).ends_with("18, 19 and 3 more"));
}

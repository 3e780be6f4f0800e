//! Two honest ends of tunnels against each other, in random order: what must hold is in `fuzz/checks/tunnel_ends.rs`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use agent_core::tunnel::MAX_PAYLOAD;
use proptest::prelude::*;

#[path = "../../fuzz/checks/tunnel_ends.rs"]
mod tunnel_ends;

use tunnel_ends::{Action, Fate, check, check_steps};

#[test]
fn they_hold_on_the_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/tunnel_ends");
    let scripts: Vec<_> =
        std::fs::read_dir(seeds).unwrap().map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(!scripts.is_empty());
    scripts.iter().for_each(|script| check(script));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_promises(steps in steps(any_action())) {
        check_steps(&steps);
    }

    #[test]
    fn without_an_abort_every_connection_finishes_or_is_refused(steps in steps(orderly())) {
        let fates = check_steps(&steps);
        prop_assert!(fates.iter().all(|fate| matches!(fate, Fate::Finished | Fate::Refused)), "{fates:?}");
    }

    #[test]
    fn any_script_keeps_the_promises(script in prop::collection::vec(any::<u8>(), 0..800)) {
        check(&script);
    }
}

/// What happens while nothing goes wrong.
fn orderly() -> impl Strategy<Value = Action> + Clone {
    let size = prop_oneof![4 => 1..50_usize, 1 => Just(MAX_PAYLOAD), 1 => Just(9_000)];
    prop_oneof![
        12 => (0..4_u32).prop_map(|max_uses| Action::Connect { max_uses }),
        10 => size.clone().prop_map(Action::ClientWrite),
        6 => Just(Action::ClientFinish),
        8 => Just(Action::ClientDelivered),
        1 => Just(Action::DiallerRetires),
        20 => Just(Action::DiallerFlushes),
        20 => Just(Action::DiallerReceives),
        8 => Just(Action::Serve),
        3 => Just(Action::Refuse),
        10 => size.prop_map(Action::ServerWrite),
        6 => Just(Action::ServerFinish),
        8 => Just(Action::ServerDelivered),
        2 => Just(Action::AcceptorRetires),
        1 => Just(Action::Expires),
        20 => Just(Action::AcceptorFlushes),
        20 => Just(Action::AcceptorReceives),
    ]
}

fn any_action() -> impl Strategy<Value = Action> + Clone {
    prop_oneof![
        50 => orderly(),
        1 => Just(Action::ClientAbort),
        1 => Just(Action::ServerAbort),
        1 => Just(Action::ClientCertificateEnds),
        1 => Just(Action::ServerCertificateEnds),
        1 => (0..4_usize).prop_map(|arrive| Action::TransportDies { arrive }),
    ]
}

/// Each with its tunnel, counted from the newest.
fn steps(action: impl Strategy<Value = Action>) -> impl Strategy<Value = Vec<(usize, Action)>> {
    prop::collection::vec((0..3_usize, action), 0..150)
}

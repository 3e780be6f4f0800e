//! What holds whatever happens, and how evenly what is drawn is spread.

use proptest::prelude::*;

use super::*;

fn event() -> impl Strategy<Value = Event> {
    let seconds = 0..2000_u64;
    prop_oneof![
        3 => Just(Event::Time),
        1 => any::<bool>().prop_map(|waits| Event::Wanted { waits }),
        1 => Just(Event::Needed),
        4 => (0..300_u64, 0..4000_u64).prop_map(|(begins, life)| Event::Issued { begins: at(begins), ends: at(begins + life) }),
        2 => Just(FAILED),
        1 => seconds.clone().prop_map(later),
        1 => Just(Event::Refused),
        1 => Just(Event::DeniedByList),
        1 => Just(Event::Allowed),
        1 => (0..5_u64, seconds.clone()).prop_map(|(generation, window)| Event::Rotate { generation, window: at(window) }),
        1 => seconds.clone().prop_map(|away| Event::CaBack { away: at(away) }),
        1 => seconds.prop_map(|linger| Event::Gone { linger: at(linger / 20) }),
    ]
}

/// What an agent would have at hand: the ends of the certificate that it shows, and of the one that it holds.
#[derive(Default)]
struct Hand {
    shown: Option<Duration>,
    held: Option<Duration>,
}

impl Hand {
    fn follow(&mut self, actions: &[Action], mut new: Option<Duration>) {
        for action in actions {
            match action {
                Action::Ask(_) => {}
                Action::Hold => self.held = new.take(),
                Action::Publish => (self.shown, self.held) = (new.take(), None),
                Action::Withdraw => self.held = self.shown.take(),
                Action::PublishHeld => self.shown = self.held.take(),
                Action::Drop => self.shown = None,
                Action::DropHeld => self.held = None,
                Action::Wipe => *self = Self::default(),
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_time_moves_on_and_nothing_expired_is_shown(
        steps in prop::collection::vec((event(), 0..1500_u64, -400..400_i64, 0.0..1.0_f64), 1..60),
    ) {
        let mut pod = Pod::absent();
        let mut hand = Hand::default();
        for (event, passes, set, chance) in steps {
            let wall = pod.now.wall + at(passes);
            let wall = if passes % 7 == 0 { at(wall.as_secs().saturating_add_signed(set)) } else { wall };
            pod.now = Moment { monotonic: pod.now.monotonic + at(passes), wall };
            let event = match event {
                Event::Issued { begins, ends } => Event::Issued { begins: wall + begins, ends: wall + ends },
                Event::Time | Event::Wanted { .. } | Event::Needed | Event::Failed { .. } | Event::Refused
                | Event::DeniedByList | Event::Allowed | Event::Rotate { .. } | Event::CaBack { .. } | Event::Gone { .. } => event,
            };
            let new = if let Event::Issued { ends, .. } = event { Some(ends) } else { None };
            let actions = pod.drawn(event, chance);
            hand.follow(&actions, new);
            prop_assert!(hand.shown.is_none_or(|ends| ends > wall), "{event:?} {actions:?}");
            prop_assert_eq!(hand.shown, pod.life.used.filter(|_| pod.life.state != State::Draining).map(|lease| lease.ends));
            let wait = pod.life.wait(pod.now);
            prop_assert!(!wait.is_zero() && wait <= LOOK_AGAIN, "{:?}", pod.life);
            prop_assert_eq!(pod.on(Event::Time), [], "the same moment twice brings nothing new");
        }
    }

    #[test]
    fn a_pod_that_waits_is_asked_for_in_time(chances in prop::collection::vec(0.0..1.0_f64, 1..40)) {
        let mut pod = Pod::backoff();
        for chance in chances {
            pod.drawn(FAILED, chance);
            let due = pod.life.due - pod.now.monotonic;
            prop_assert!(due <= LONGEST_WAIT);
            pod.now.monotonic += due;
            prop_assert_eq!(pod.on(Event::Time), [Action::Ask(Priority::RealTime)]);
        }
    }
}

/// The share of draws in each of ten equal parts between `least` and `most`.
fn shares(draws: impl Iterator<Item = f64>, least: f64, most: f64) -> [f64; 10] {
    let mut counts = [0_u32; 10];
    let mut all = 0_u32;
    for draw in draws {
        assert!((least..=most).contains(&draw), "{draw} is not between {least} and {most}");
        let part = (0..10).rev().find(|part| draw >= least + (most - least) * f64::from(*part) / 10.0).unwrap_or(0);
        counts[usize::try_from(part).unwrap_or(0)] += 1;
        all += 1;
    }
    counts.map(|count| f64::from(count) / f64::from(all))
}

/// Evenly drawn numbers, as any good source of chance gives them: the golden ratio's multiples.
fn chances() -> impl Iterator<Item = f64> {
    (0..10_000).map(|number| (f64::from(number) * 0.618_033_988_749_895).fract())
}

#[test]
fn renewals_are_spread_evenly_over_their_fifth() {
    let points = chances().map(|chance| {
        let mut pod = Pod::fetching();
        let ends = pod.now.wall + at(1000);
        pod.drawn(Event::Issued { begins: pod.now.wall, ends }, chance);
        (pod.life.next_ask(pod.now).unwrap_or_default() - pod.now.wall).as_secs_f64()
    });
    let shares = shares(points, 400.0, 600.0);
    assert!(shares.iter().all(|share| (0.095..0.105).contains(share)), "{shares:?}");
}

#[test]
fn waits_are_spread_evenly_up_to_their_cap() {
    for (failures, most) in [(0, 1.0), (3, 8.0), (20, 300.0)] {
        let waits = chances().map(|chance| {
            let mut backoff = Backoff::default();
            (0..failures).for_each(|_| _ = backoff.wait(LONGEST_WAIT, 0.0));
            backoff.wait(LONGEST_WAIT, chance).as_secs_f64()
        });
        let shares = shares(waits, 0.2, most);
        assert!(shares.iter().all(|share| (0.095..0.105).contains(share)), "{failures}: {shares:?}");
    }
    assert_eq!(Backoff::default().wait(Duration::ZERO, 1.0), Duration::from_millis(20), "there is a floor");
}

use std::time::Duration;

use super::*;

mod chance;

/// When the tests begin, by the wall clock.
const EPOCH: u64 = 1_700_000_000;
const DAY: Duration = at(24 * 60 * 60);

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A pod's life, and the two clocks that it is lived by.
struct Pod {
    life: Lifecycle,
    now: Moment,
}

impl Pod {
    fn absent() -> Self {
        Self { life: Lifecycle::new(0), now: Moment { monotonic: at(1000), wall: at(EPOCH) } }
    }

    /// It waits for its first certificate, and the CA is being asked.
    fn fetching() -> Self {
        let mut pod = Self::absent();
        assert_eq!(pod.on(Event::Wanted { waits: true }), [Action::Ask(Priority::RealTime)]);
        pod
    }

    fn backoff() -> Self {
        let mut pod = Self::fetching();
        assert_eq!(pod.on(FAILED), []);
        pod
    }

    /// One with a certificate of so many seconds, to be renewed after half of them.
    fn valid(life: u64) -> Self {
        let mut pod = Self::fetching();
        assert_eq!(pod.issue(life), [Action::Publish]);
        pod
    }

    fn renewing(life: u64) -> Self {
        let mut pod = Self::valid(life);
        assert_eq!(pod.after(at(life / 2)), [Action::Ask(Priority::Background)]);
        pod
    }

    fn critical(life: u64) -> Self {
        let mut pod = Self::renewing(life);
        assert_eq!(pod.after(at(life * 3 / 10)), [Action::Ask(Priority::Critical)]);
        pod
    }

    fn expired() -> Self {
        let mut pod = Self::critical(1000);
        assert_eq!(pod.after(at(200)), [Action::Drop, Action::Ask(Priority::RealTime)]);
        pod
    }

    fn denied(life: u64) -> Self {
        let mut pod = Self::renewing(life);
        assert_eq!(pod.on(Event::Refused), []);
        pod
    }

    fn draining() -> Self {
        let mut pod = Self::valid(1000);
        assert_eq!(pod.on(Event::Gone { linger: at(30) }), [Action::Withdraw]);
        pod
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.drawn(event, 0.5)
    }

    fn drawn(&mut self, event: Event, chance: f64) -> Vec<Action> {
        self.life.on(event, self.now, chance)
    }

    fn issue(&mut self, life: u64) -> Vec<Action> {
        self.on(Event::Issued { begins: self.now.wall, ends: self.now.wall + at(life) })
    }

    /// Both clocks go on.
    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now = Moment { monotonic: self.now.monotonic + time, wall: self.now.wall + time };
        self.on(Event::Time)
    }

    fn is(&self, state: State) {
        assert_eq!(self.life.state(), state);
    }
}

const FAILED: Event = Event::Failed { retry_after: None };

fn later(seconds: u64) -> Event {
    Event::Failed { retry_after: Some(at(seconds)) }
}

#[test]
fn absent_to_fetching() {
    let mut pod = Pod::fetching();
    pod.is(State::Fetching);
    assert_eq!(pod.on(Event::Wanted { waits: true }), [], "asked once");
    let mut pod = Pod::absent();
    assert_eq!(pod.on(Event::Wanted { waits: false }), [Action::Ask(Priority::Warmup)]);
    assert_eq!(pod.on(Event::Needed), [Action::Ask(Priority::RealTime)], "somebody waits now");
}

#[test]
fn absent_stays_whatever_comes() {
    let issued = Event::Issued { begins: at(EPOCH), ends: at(EPOCH + 100) };
    let rest =
        [Event::CaBack { away: DAY }, Event::Gone { linger: at(30) }, Event::Rotate { generation: 1, window: DAY }];
    for event in [Event::Time, FAILED, Event::Refused, Event::DeniedByList, Event::Allowed, issued].iter().chain(&rest)
    {
        let mut pod = Pod::absent();
        assert_eq!(pod.on(*event), []);
        pod.is(State::Absent);
        assert_eq!(pod.life.wait(pod.now), LOOK_AGAIN);
    }
}

#[test]
fn fetching_to_valid() {
    Pod::valid(1000).is(State::Valid);
}

#[test]
fn fetching_to_backoff_and_back_by_time() {
    let mut pod = Pod::backoff();
    pod.is(State::Backoff);
    let wait = pod.life.wait(pod.now);
    assert_eq!(wait, Duration::from_millis(600), "half way between the least and a second");
    assert_eq!(pod.after(wait - Duration::from_millis(1)), []);
    assert_eq!(pod.after(Duration::from_millis(1)), [Action::Ask(Priority::RealTime)]);
    pod.is(State::Fetching);
}

#[test]
fn backoff_to_fetching_when_the_ca_is_back_and_never_splayed() {
    let mut pod = Pod::backoff();
    assert_eq!(pod.on(Event::CaBack { away: DAY }), [Action::Ask(Priority::RealTime)]);
    pod.is(State::Fetching);
}

#[test]
fn backoff_to_fetching_when_somebody_waits_once_a_second() {
    let mut pod = Pod::absent();
    pod.on(Event::Wanted { waits: false });
    for _ in 0..9 {
        pod.on(FAILED);
        pod.life.state = State::Fetching;
    }
    pod.on(FAILED);
    assert_eq!(pod.on(Event::Needed), [Action::Ask(Priority::RealTime)]);
    pod.on(FAILED);
    assert_eq!(pod.on(Event::Needed), [], "not twice in a second");
    pod.is(State::Backoff);
    pod.after(BYPASS);
    assert_eq!(pod.on(Event::Needed), [Action::Ask(Priority::RealTime)]);
}

#[test]
fn fetching_to_denied_and_no_sooner_than_a_minute() {
    for (chance, wait) in [(0.0, 60), (1.0, 90)] {
        let mut pod = Pod::fetching();
        assert_eq!(pod.drawn(Event::Refused, chance), []);
        pod.is(State::Denied);
        for event in [Event::Needed, Event::CaBack { away: DAY }] {
            assert_eq!(pod.on(event), [], "nothing hurries it");
        }
        assert_eq!(pod.after(at(wait - 1)), []);
        assert_eq!(pod.after(at(1)), [Action::Ask(Priority::Background)]);
        assert_eq!(pod.drawn(FAILED, 0.0), []);
        pod.is(State::Denied);
        assert_eq!(pod.after(at(59)), [], "nor does a CA that is away");
        assert_eq!(pod.after(at(1)), [Action::Ask(Priority::Background)]);
        assert_eq!(pod.issue(1000), [Action::Publish]);
        pod.is(State::Valid);
    }
}

#[test]
fn valid_to_renewing_at_the_point_that_was_drawn() {
    for (chance, point) in [(0.0, 400), (0.5, 500), (1.0, 600)] {
        let mut pod = Pod::fetching();
        let ends = pod.now.wall + at(1000);
        pod.drawn(Event::Issued { begins: at(0), ends }, chance);
        assert_eq!(pod.life.next_ask(pod.now), Some(pod.now.wall + at(point)));
        assert_eq!(pod.after(at(point - 1)), []);
        pod.is(State::Valid);
        assert_eq!(pod.after(at(1)), [Action::Ask(Priority::Background)]);
        pod.is(State::Renewing);
    }
}

#[test]
fn renewing_to_valid_swaps() {
    let mut pod = Pod::renewing(1000);
    assert_eq!(pod.issue(1000), [Action::Publish]);
    pod.is(State::Valid);
    assert_eq!(pod.after(at(499)), [], "the old one's end is of no account");
}

#[test]
fn renewing_stays_with_a_wait_of_at_most_a_tenth_of_what_is_left() {
    let mut pod = Pod::renewing(1000);
    for _ in 0..12 {
        assert_eq!(pod.drawn(FAILED, 1.0), []);
        pod.is(State::Renewing);
    }
    assert_eq!(pod.life.due, pod.now.monotonic + at(50));
}

#[test]
fn waits_double_and_have_an_end() {
    let mut pod = Pod::backoff();
    pod.life.backoff = Backoff::default();
    let mut waits = Vec::new();
    for _ in 0..12 {
        pod.drawn(FAILED, 1.0);
        waits.push((pod.life.due - pod.now.monotonic).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    pod.issue(1_000_000);
    pod.drawn(FAILED, 1.0);
    assert_eq!(pod.life.due, pod.now.monotonic + at(1), "success forgets the failures");
}

#[test]
fn renewing_to_critical_with_a_fifth_left() {
    let mut pod = Pod::renewing(1000);
    assert_eq!(pod.after(at(299)), []);
    assert_eq!(pod.after(at(1)), [Action::Ask(Priority::Critical)], "what waits in the queue goes first now");
    pod.is(State::Critical);
}

#[test]
fn valid_to_critical_when_the_clock_is_set() {
    let mut pod = Pod::valid(1000);
    pod.now.wall += at(850);
    assert_eq!(pod.on(Event::Time), [Action::Ask(Priority::Critical)]);
    pod.is(State::Critical);
}

#[test]
fn critical_to_valid_and_stays_when_it_fails() {
    let mut pod = Pod::critical(1000);
    assert_eq!(pod.on(FAILED), []);
    pod.is(State::Critical);
    assert_eq!(pod.on(Event::CaBack { away: DAY }), [Action::Ask(Priority::Critical)], "not splayed");
    assert_eq!(pod.issue(1000), [Action::Publish]);
    pod.is(State::Valid);
}

#[test]
fn critical_to_expired_and_back_to_valid() {
    let mut pod = Pod::expired();
    pod.is(State::Expired);
    for _ in 0..12 {
        assert_eq!(pod.drawn(FAILED, 1.0), []);
        pod.is(State::Expired);
    }
    assert_eq!(pod.life.due, pod.now.monotonic + at(15), "every 15 s at the latest");
    assert_eq!(pod.on(Event::CaBack { away: DAY }), [Action::Ask(Priority::RealTime)]);
    assert_eq!(pod.issue(1000), [Action::Publish]);
    pod.is(State::Valid);
}

#[test]
fn expired_to_denied() {
    let mut pod = Pod::expired();
    assert_eq!(pod.on(Event::Refused), []);
    pod.is(State::Denied);
}

#[test]
fn renewing_to_expired_asks_within_15_seconds() {
    let mut pod = Pod::renewing(10_000);
    for _ in 0..12 {
        pod.drawn(FAILED, 1.0);
    }
    // The clock is set: what was left is gone.
    pod.now.wall += at(6000);
    assert_eq!(pod.on(Event::Time), [Action::Drop]);
    pod.is(State::Expired);
    assert!(pod.life.due <= pod.now.monotonic + at(15));
}

#[test]
fn valid_to_expired_after_a_day_of_sleep() {
    let mut pod = Pod::valid(1000);
    assert_eq!(pod.after(DAY), [Action::Drop, Action::Ask(Priority::RealTime)]);
    pod.is(State::Expired);
    assert_eq!(pod.issue(1000), [Action::Publish]);
}

#[test]
fn denied_keeps_its_certificate_until_its_end() {
    let mut pod = Pod::denied(1000);
    pod.is(State::Denied);
    assert_eq!(pod.after(at(499)), [Action::Ask(Priority::Background)]);
    assert_eq!(pod.after(at(1)), [Action::Drop]);
    pod.is(State::Denied);
}

#[test]
fn denied_by_list_drops_at_once_and_asks_no_more() {
    for make in [Pod::backoff, || Pod::valid(1000), || Pod::critical(1000), Pod::expired, || Pod::denied(1000)] {
        let mut pod = make();
        assert_eq!(pod.on(Event::DeniedByList), [Action::Wipe]);
        pod.is(State::Denied);
        assert_eq!(pod.on(Event::DeniedByList), []);
        assert_eq!(pod.after(DAY), []);
        assert_eq!(pod.issue(1000), [], "what the CA was asked before does not count");
        assert_eq!(
            pod.on(Event::Allowed),
            [Action::Ask(if pod.life.waits { Priority::RealTime } else { Priority::Warmup })]
        );
        pod.is(State::Fetching);
    }
}

#[test]
fn denied_to_renewing_when_it_is_allowed() {
    let mut pod = Pod::denied(1000);
    assert_eq!(pod.on(Event::Allowed), [Action::Ask(Priority::Background)]);
    pod.is(State::Renewing);
    assert_eq!(pod.on(Event::Allowed), [], "nothing was denied");
}

#[test]
fn valid_to_draining_to_absent() {
    let mut pod = Pod::draining();
    pod.is(State::Draining);
    assert_eq!(pod.issue(1000), [], "what was under way is dropped");
    for event in [FAILED, Event::Refused, Event::Allowed, Event::CaBack { away: DAY }, Event::Gone { linger: at(99) }] {
        assert_eq!(pod.on(event), []);
        pod.is(State::Draining);
    }
    assert_eq!(pod.after(at(29)), []);
    assert_eq!(pod.after(at(1)), [Action::Wipe]);
    pod.is(State::Absent);
}

#[test]
fn a_pod_that_is_gone_for_good_leaves_nothing() {
    for make in [Pod::fetching, || Pod::valid(1000), || Pod::critical(1000), || Pod::denied(1000), Pod::draining] {
        let mut pod = make();
        assert_eq!(pod.on(Event::Gone { linger: Duration::ZERO }), [Action::Wipe]);
        pod.is(State::Absent);
    }
    let mut pod = Pod::expired();
    assert_eq!(pod.on(Event::Gone { linger: at(30) }), [Action::Wipe], "there is nothing to keep");
}

#[test]
fn draining_to_valid_when_the_pod_comes_back() {
    let mut pod = Pod::draining();
    assert_eq!(pod.on(Event::Wanted { waits: true }), [Action::PublishHeld]);
    pod.is(State::Valid);
    let mut pod = Pod::draining();
    pod.now.wall += at(1000);
    assert_eq!(pod.on(Event::Wanted { waits: true }), [Action::Wipe, Action::Ask(Priority::RealTime)], "it has ended");
    pod.is(State::Fetching);
}

#[test]
fn draining_ends_with_its_certificate_and_with_a_denial() {
    let mut pod = Pod::draining();
    pod.now.wall += at(1000);
    assert_eq!(pod.on(Event::Time), [Action::Drop, Action::Wipe]);
    pod.is(State::Absent);
    let mut pod = Pod::draining();
    assert_eq!(pod.on(Event::DeniedByList), [Action::Wipe]);
    pod.is(State::Absent);
}

#[test]
fn retry_after_is_obeyed_by_whoever_is_in_a_hurry() {
    for make in [Pod::fetching, || Pod::renewing(1000), || Pod::critical(1000), Pod::expired] {
        let mut pod = make();
        assert_eq!(pod.on(later(20)), []);
        for event in [Event::Needed, Event::CaBack { away: Duration::ZERO }] {
            assert_eq!(pod.on(event), []);
        }
        let asked = |actions: Vec<Action>| actions.iter().any(|action| matches!(action, Action::Ask(_)));
        assert!(!asked(pod.after(Duration::from_millis(19_999))));
        assert!(asked(pod.after(at(2))), "and some jitter");
    }
    let mut pod = Pod::fetching();
    pod.on(later(u64::MAX));
    assert!(pod.life.due <= pod.now.monotonic + LONGEST_WAIT + at(1), "a wait has a bound");
}

#[test]
fn renewals_are_splayed_after_a_long_absence_of_the_ca() {
    let back = |life: u64, away: u64, chance: f64| {
        let mut pod = Pod::renewing(life);
        pod.on(FAILED);
        let actions = pod.drawn(Event::CaBack { away: at(away) }, chance);
        (actions, pod.life.due.saturating_sub(pod.now.monotonic))
    };
    assert_eq!(back(40_000, 60, 1.0).0, [Action::Ask(Priority::Background)], "it was not away for long");
    assert_eq!(back(40_000, 61, 1.0), (vec![], at(120)));
    assert_eq!(back(40_000, 61, 0.5), (vec![], at(60)));
    assert_eq!(back(400, 61, 1.0), (vec![], at(20)), "a twentieth of its life");
}

#[test]
fn an_order_to_rotate_is_obeyed_once_within_its_window() {
    let mut pod = Pod::valid(10_000);
    let order = Event::Rotate { generation: 7, window: at(600) };
    assert_eq!(pod.drawn(order, 0.25), []);
    let due = pod.life.next_ask(pod.now);
    assert_eq!(due, Some(pod.now.wall + at(150)));
    assert!(pod.life.is_rotating());
    assert_eq!(pod.drawn(order, 0.0), [], "the same order");
    assert_eq!(pod.life.next_ask(pod.now), due);
    assert_eq!(pod.after(at(150)), [Action::Ask(Priority::Background)]);
    pod.issue(10_000);
    assert!(!pod.life.is_rotating());
    assert_eq!(pod.drawn(Event::Rotate { generation: 6, window: at(600) }, 0.0), [], "an older order");
    assert_eq!(pod.drawn(Event::Rotate { generation: 8, window: at(600) }, 0.0), [Action::Ask(Priority::Background)]);
}

#[test]
fn an_order_to_rotate_does_not_put_a_renewal_off() {
    let mut pod = Pod::valid(100);
    assert_eq!(pod.drawn(Event::Rotate { generation: 1, window: at(6000) }, 1.0), []);
    assert_eq!(pod.life.next_ask(pod.now), Some(pod.now.wall + at(50)));
}

#[test]
fn an_answer_from_before_the_order_is_renewed_again() {
    for first in [Pod::fetching as fn() -> Pod, || Pod::renewing(1000)] {
        let mut pod = first();
        pod.drawn(Event::Rotate { generation: 1, window: at(100) }, 0.5);
        assert_eq!(pod.issue(10_000), [Action::Publish]);
        assert_eq!(pod.life.next_ask(pod.now), Some(pod.now.wall + at(50)));
        assert!(pod.life.is_rotating());
    }
}

#[test]
fn a_certificate_that_begins_soon_is_held_until_then() {
    let mut pod = Pod::renewing(1000);
    let (begins, ends) = (pod.now.wall + at(100), pod.now.wall + at(2000));
    assert_eq!(pod.on(Event::Issued { begins, ends }), [Action::Hold]);
    pod.is(State::Renewing);
    assert_eq!(pod.after(at(99)), []);
    assert_eq!(pod.after(at(1)), [Action::PublishHeld]);
    pod.is(State::Valid);
    // A clock that is set back does not put it off.
    let mut pod = Pod::fetching();
    assert_eq!(pod.on(Event::Issued { begins, ends }), [], "one that begins much later is not used");
    pod.is(State::Backoff);
    pod.now.wall = begins - AHEAD;
    assert_eq!(pod.on(Event::Issued { begins, ends }), [Action::Hold]);
    pod.now.monotonic += AHEAD;
    assert_eq!(pod.on(Event::Time), [Action::PublishHeld]);
}

#[test]
fn one_that_was_held_over_its_end_is_never_shown() {
    let mut pod = Pod::fetching();
    let (begins, ends) = (pod.now.wall + at(100), pod.now.wall + at(200));
    assert_eq!(pod.on(Event::Issued { begins, ends }), [Action::Hold]);
    assert_eq!(pod.after(DAY), [Action::DropHeld, Action::Ask(Priority::RealTime)]);
    pod.is(State::Fetching);
}

#[test]
fn five_minutes_either_way_cost_no_certificate() {
    for set in [|wall| wall + at(300), |wall: Duration| wall - at(300)] {
        let mut pod = Pod::valid(12 * 60 * 60);
        pod.now.wall = set(pod.now.wall);
        assert_eq!(pod.on(Event::Time), []);
        pod.is(State::Valid);
        assert_eq!(pod.after(at(6 * 60 * 60)), [Action::Ask(Priority::Background)]);
    }
}

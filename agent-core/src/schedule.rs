//! When a certificate is asked for, renewed, asked for again, and given up. No clock: times are since 1970, and chance is
//! a number in [0, 1) that the caller draws.

use std::time::Duration;

/// A first failure is tried again after at most this.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// And the tenth, and all that follow, after at most this.
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// Never sooner than this, or a tenth of it for certificates that live for seconds.
const SHORTEST_RETRY: Duration = Duration::from_millis(200);

/// Where one pod's certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// When to ask the CA next.
    due: Duration,
    /// When the certificate in use ends; `None` without one.
    ends: Option<Duration>,
    failures: u32,
}

impl Schedule {
    /// A pod without a certificate asks at once.
    pub fn new(now: Duration) -> Self {
        Self { due: now, ends: None, failures: 0 }
    }

    /// A certificate came. It is renewed at a point between 40 % and 60 % of the life that is left, drawn once, so that
    /// a fleet that was certified together does not renew together.
    pub fn issued(&mut self, now: Duration, ends: Duration, chance: f64) {
        let left = ends.saturating_sub(now);
        *self = Self { due: now + left.mul_f64(0.4 + 0.2 * unit(chance)), ends: Some(ends), failures: 0 };
    }

    /// The CA gave none. A certificate that is in use stays so until it ends; the next try comes after a wait that doubles
    /// each time, with full jitter, and sooner as the end draws near.
    pub fn failed(&mut self, now: Duration, chance: f64) {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(9)).min(LONGEST_RETRY);
        let left = self.ends.map(|ends| ends.saturating_sub(now)).filter(|left| !left.is_zero());
        let most = left.map_or(doubled, |left| doubled.min(left / 10));
        self.due = now + most.mul_f64(unit(chance)).max(SHORTEST_RETRY.min(most.max(SHORTEST_RETRY / 10)));
        self.failures = self.failures.saturating_add(1);
    }

    /// Whether to ask the CA now.
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }

    /// Whether the certificate in use has ended: it must not be used any more.
    pub fn has_ended(&self, now: Duration) -> bool {
        self.ends.is_some_and(|ends| now >= ends)
    }

    /// When something is to be done next: the certificate's end, if that comes first.
    pub fn next(&self) -> Duration {
        self.ends.map_or(self.due, |ends| self.due.min(ends))
    }

    /// The certificate that had ended is gone.
    pub fn dropped(&mut self) {
        self.ends = None;
    }
}

fn unit(chance: f64) -> f64 {
    if chance.is_finite() { chance.clamp(0.0, 1.0) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_new_pod_asks_at_once() {
        let schedule = Schedule::new(at(100));
        assert!(schedule.is_due(at(100)));
        assert!(!schedule.has_ended(at(1_000_000)));
    }

    #[test]
    fn renewal_is_drawn_between_two_and_three_fifths_of_the_life() {
        for (chance, due) in [(0.0, 140), (0.5, 150), (1.0, 160)] {
            let mut schedule = Schedule::new(at(100));
            schedule.issued(at(100), at(200), chance);
            assert_eq!(schedule.next(), at(due));
            assert!(!schedule.is_due(at(due - 1)) && schedule.is_due(at(due)));
            assert!(!schedule.has_ended(at(199)) && schedule.has_ended(at(200)));
        }
    }

    #[test]
    fn waits_double_and_have_an_end() {
        let mut schedule = Schedule::new(at(0));
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.failed(at(0), 1.0);
            waits.push(schedule.next().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn a_certificate_near_its_end_is_asked_for_more_often() {
        let mut schedule = Schedule::new(at(0));
        schedule.issued(at(0), at(100), 0.0);
        for _ in 0..8 {
            schedule.failed(at(80), 1.0);
        }
        assert_eq!(schedule.next(), at(82), "a tenth of the 20 s that are left");
        schedule.issued(at(82), at(182), 0.0);
        schedule.failed(at(122), 1.0);
        assert_eq!(schedule.next(), at(123), "success forgets the failures");
    }

    #[test]
    fn the_end_wakes_even_while_retries_are_far() {
        let mut schedule = Schedule::new(at(0));
        schedule.issued(at(0), at(100), 1.0);
        assert_eq!(schedule.next(), at(60));
        schedule.failed(at(99), 1.0);
        assert!(schedule.next() <= at(100));
        schedule.dropped();
        assert!(!schedule.has_ended(at(200)));
    }

    proptest! {
        #[test]
        fn time_always_moves_on(now in 0..1_u64 << 40, life in 0..1_u64 << 30, chance in 0.0..1.0_f64, failures in 0..40) {
            let mut schedule = Schedule::new(at(now));
            schedule.issued(at(now), at(now + life), chance);
            for _ in 0..failures {
                schedule.failed(at(now), chance);
            }
            prop_assert!(failures == 0 || schedule.due > at(now), "a failure must not be tried again in the same instant");
            prop_assert!(schedule.due <= at(now + life.max(600)));
        }
    }
}

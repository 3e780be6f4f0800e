//! `legacy`: what becomes of connections that are older than an enrolment.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use agent_core::document::{Node, Problems, Section};

use crate::legacy::LegacyConfig;

const GRACE: Duration = Duration::from_secs(5 * 60);

/// Reads the section, which may be left out.
pub(super) fn read(node: Option<&Node>, state_dir: Option<&Path>, problems: &mut Problems) -> Option<LegacyConfig> {
    let (recycle, strict_grace) = match node {
        None => (None, GRACE),
        Some(node) => {
            let mut section = Section::of(node, "`legacy`", problems)?;
            let recycle = section.optional("recycle");
            let grace = section.optional("strict_grace");
            section.end(problems);
            let recycle = recycle.map_or(Some(None), |node| node.parse("`legacy.recycle`", rate, problems));
            let grace =
                grace.map_or(Some(GRACE), |node| node.duration_from(Duration::ZERO, "`legacy.strict_grace`", problems));
            (recycle?, grace?)
        }
    };
    Some(LegacyConfig { recycle, strict_grace, memory: state_dir?.join("served.json") })
}

fn rate(text: &str) -> Result<Option<NonZeroU32>, &'static str> {
    match text {
        "off" => Ok(None),
        number => number.parse().map(Some).map_err(|_| "must be `off`, or how many connections a second"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use agent_core::document::interpret;

    fn config(text: &str) -> Result<LegacyConfig, Problems> {
        interpret(text, |root, problems| read(Some(root), Some(Path::new("/state")), problems))
    }

    #[test]
    fn nothing_is_recycled_and_five_minutes_are_given_unless_it_says_otherwise() {
        let without = read(None, Some(Path::new("/state")), &mut Problems::default()).unwrap();
        assert_eq!((without.recycle, without.strict_grace), (None, GRACE));
        assert_eq!(without.memory, Path::new("/state/served.json"));
        let told = config("recycle: 20\nstrict_grace: 0s\n").unwrap();
        assert_eq!((told.recycle.map(NonZeroU32::get), told.strict_grace), (Some(20), Duration::ZERO));
        assert_eq!(config("recycle: off\n").unwrap().recycle, None);
    }

    #[test]
    fn a_rate_of_nothing_is_a_mistake() {
        let problems = config("recycle: 0\nstrict_grace: never\n").unwrap_err().to_string();
        assert!(problems.contains("`legacy.recycle`: must be `off`, or how many connections a second"), "{problems}");
        assert!(problems.contains("`legacy.strict_grace`: must be a length"), "{problems}");
    }
}

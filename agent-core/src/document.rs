//! How an operator's YAML is read: every mistake at its place with its fix, all at once.
//!
//! [`interpret`] makes a tree whose nodes know where they stand. A [`Section`] takes a mapping's keys out of it one by one;
//! what is left over is an unknown key. Mistakes are collected in [`Problems`], and reading goes on, so that one run shows
//! all of them, up to a limit: length, values, nesting and mistakes are bounded, whatever the text is.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

mod tree;

pub use tree::{Node, Place, Value};

/// No configuration or directory is longer than this many bytes: room for some 13 000 pods. The scanner holds a list in
/// brackets whole, at 200 bytes for each byte of it.
pub const LONGEST: usize = 4 * 1024 * 1024;

/// More mistakes than this are only counted.
const MOST_PROBLEMS: usize = 100;

/// A longer text is cut where a problem shows it, in characters.
const LONGEST_SHOWN: usize = 60;

/// No length of time is longer than ten years: whoever adds one to a clock's time gets a time.
const LONGEST_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What is wrong, and the fix.
    pub text: String,
}

/// Every mistake of a document, in the order of their places. Each is one line of text; of more than a hundred, the number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Error)]
pub struct Problems {
    listed: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// Notes a mistake.
    pub fn add(&mut self, place: Place, text: impl Into<String>) {
        if self.listed.len() < MOST_PROBLEMS {
            self.listed.push(Problem { place, text: one_line(text.into()) });
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// The value, if nothing was wrong.
    ///
    /// # Errors
    /// All problems otherwise.
    pub fn or<T>(mut self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.listed.is_empty() => Ok(value),
            _ => {
                self.listed.sort_by_key(|problem| problem.place);
                Err(self)
            }
        }
    }

    /// Each of them that is listed.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.listed.iter()
    }

    /// Whether what is added now is only counted.
    fn is_full(&self) -> bool {
        self.listed.len() >= MOST_PROBLEMS
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.listed.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            write!(f, "  line {}: {}", problem.place, problem.text)?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

/// Reads one YAML document and what it means. `meaning` notes what is wrong, and may go on; what it returns counts only if
/// nothing was.
///
/// # Errors
/// Every mistake of the text and of its meaning. What is no YAML, or YAML that we refuse (aliases, too much of anything),
/// is told alone.
pub fn interpret<T>(text: &str, meaning: impl FnOnce(&Node, &mut Problems) -> Option<T>) -> Result<T, Problems> {
    let (root, mut problems) = tree::read(text);
    let value = root.and_then(|root| meaning(&root, &mut problems));
    problems.or(value)
}

/// Reads one YAML document into a tree.
///
/// # Errors
/// What keeps it from being YAML, or is YAML that we refuse: aliases, duplicate keys, too much nesting or length.
pub fn read(text: &str) -> Result<Node, Problems> {
    let (root, problems) = tree::read(text);
    problems.or(root)
}

/// A mapping whose keys are taken out one by one.
#[derive(Debug)]
pub struct Section<'a> {
    place: Place,
    entries: Vec<(&'a str, Place, &'a Node)>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The node as a mapping. `what` says what it describes.
    pub fn of(node: &'a Node, what: &str, problems: &mut Problems) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else {
            problems.add(node.place, format!("{what} must be a mapping of keys to values"));
            return None;
        };
        let entries = entries.iter().map(|(key, place, value)| (key.as_str(), *place, value)).collect();
        Some(Self { place: node.place, entries, known: Vec::new() })
    }

    /// Where the mapping begins.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Takes a key that may be missing; so is one without a value.
    pub fn optional(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.push(key);
        let at = self.entries.iter().position(|(name, ..)| *name == key)?;
        let (_, _, node) = self.entries.swap_remove(at);
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// Takes a key that must be there.
    pub fn required(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'a Node> {
        let node = self.optional(key);
        if node.is_none() {
            problems.add(self.place, format!("`{key}` is missing"));
        }
        node
    }

    /// Whatever was not taken is not known.
    pub fn end(self, problems: &mut Problems) {
        for (key, place, _) in &self.entries {
            if problems.is_full() {
                problems.add(*place, String::new());
                continue;
            }
            let nearest = self.known.iter().min_by_key(|known| distance(known, key));
            let hint = match nearest.filter(|known| distance(known, key) <= 2) {
                Some(known) => format!("; did you mean `{known}`?"),
                None => format!("; known here: {}", self.known.join(", ")),
            };
            problems.add(*place, format!("unknown key `{}`{hint}", shown(key)));
        }
    }
}

impl Node {
    /// Text that a parser takes; its error is what the problem says.
    pub fn parse<T, E: fmt::Display>(
        &self,
        what: &str,
        parser: impl FnOnce(&str) -> Result<T, E>,
        problems: &mut Problems,
    ) -> Option<T> {
        let text = self.text(what, problems)?;
        let wrong = |error: E| format!("{what}: {error} (found `{}`)", shown(text));
        parser(text).map_err(|error| problems.add(self.place, wrong(error))).ok()
    }

    /// Text; not empty.
    pub fn text(&self, what: &str, problems: &mut Problems) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) if !text.is_empty() => Some(text),
            Value::Scalar(_) | Value::Null | Value::Mapping(_) | Value::Sequence(_) => {
                problems.add(self.place, format!("{what} must be text"));
                None
            }
        }
    }

    /// The elements of a list.
    pub fn list(&self, what: &str, problems: &mut Problems) -> Option<&[Node]> {
        match &self.value {
            Value::Sequence(nodes) => Some(nodes),
            Value::Scalar(_) | Value::Null | Value::Mapping(_) => {
                problems.add(self.place, format!("{what} must be a list"));
                None
            }
        }
    }

    /// A whole number.
    pub fn number(&self, what: &str, problems: &mut Problems) -> Option<u64> {
        self.parse(what, |text| text.parse().map_err(|_| "must be a whole number, 0 or more"), problems)
    }

    /// `true` or `false`.
    pub fn boolean(&self, what: &str, problems: &mut Problems) -> Option<bool> {
        self.choice(what, &[("true", true), ("false", false)], problems)
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, what: &str, choices: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let find = |text: &str| {
            let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            found.ok_or_else(|| format!("must be one of: {}", words.join(", ")))
        };
        self.parse(what, find, problems)
    }

    /// A length of time, such as `250ms`, `15s`, `10m`, `12h`.
    pub fn duration(&self, what: &str, problems: &mut Problems) -> Option<Duration> {
        self.parse(what, parse_duration, problems)
    }

    /// A length of time that is not shorter than `least`.
    pub fn duration_from(&self, least: Duration, what: &str, problems: &mut Problems) -> Option<Duration> {
        let parser = |text: &str| {
            let duration = parse_duration(text)?;
            if duration < least { Err(format!("must be {least:?} or longer")) } else { Ok(duration) }
        };
        self.parse(what, parser, problems)
    }

    /// A length of time that is not longer than `most`.
    pub fn duration_up_to(&self, most: Duration, what: &str, problems: &mut Problems) -> Option<Duration> {
        let parser = |text: &str| {
            let duration = parse_duration(text)?;
            if duration > most { Err(format!("must be {most:?} or shorter")) } else { Ok(duration) }
        };
        self.parse(what, parser, problems)
    }

    /// An IP address.
    pub fn ip(&self, what: &str, problems: &mut Problems) -> Option<IpAddr> {
        self.parse(what, |text| text.parse().map_err(|_| "must be an IP address"), problems)
    }

    /// An IP address with a port.
    pub fn socket_address(&self, what: &str, problems: &mut Problems) -> Option<SocketAddr> {
        let parser = |text: &str| text.parse().map_err(|_| "must be an IP address and a port, such as 10.0.0.1:15012");
        self.parse(what, parser, problems)
    }
}

/// A length of time: a whole number and `ms`, `s`, `m` or `h`.
///
/// # Errors
/// What the text should look like.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "must be a length of time such as 250ms, 15s, 10m or 12h";
    const TOO_LONG: &str = "must be at most 87600h, which is ten years";
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(FORM)?;
    let (number, unit) = text.split_at(digits);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(FORM),
    };
    if number.is_empty() {
        return Err(FORM);
    }
    let number: u64 = number.parse().map_err(|_| TOO_LONG)?;
    let duration = number.checked_mul(milliseconds).map(Duration::from_millis);
    duration.filter(|duration| *duration <= LONGEST_DURATION).ok_or(TOO_LONG)
}

/// A text as a problem shows it: not much longer than a line.
fn shown(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A problem is one line of a list and of a log, whatever the document's author wrote into a name.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], k: usize| row.get(k).copied().unwrap_or(usize::MAX - 1);
            let replaced = at(&row, j) + usize::from(x != *y);
            next.push(replaced.min(at(&row, j + 1) + 1).min(at(&next, j) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;

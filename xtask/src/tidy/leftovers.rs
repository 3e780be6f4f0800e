//! What should not have been committed: unfinished work, and what only one machine has.

use super::Finding;

/// Words that are written in two halves here, so that this file does not break its own rule.
const UNFINISHED: [&str; 5] = [
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[ig", "nore"),
];
const LATER: &str = concat!("TO", "DO");
const ELSEWHERE: &str = concat!("../sha", "red");
const MACHINE: [&str; 5] = [
    concat!("/wo", "rk/"),
    concat!("/fa", "rm/"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/tmp/wt", "-"),
];

pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut add = |item: &str, text: &str| {
            let (path, item, text) = (path.to_owned(), item.to_owned(), text.to_owned());
            found.push(Finding { rule: "leftover", path, line: index + 1, item, text });
        };
        for word in UNFINISHED.into_iter().filter(|word| line.contains(word)) {
            add(word, "unfinished or switched off: finish it");
        }
        if line.contains(LATER) && !line.contains(&format!("{LATER}(#")) {
            add(LATER, "later work needs an issue's number, as in (#12)");
        }
        if line.contains(ELSEWHERE) {
            add(ELSEWHERE, "reaches outside the repository, which must stand alone");
        }
        for folder in MACHINE.into_iter().filter(|folder| starts_a_path(line, folder)) {
            add(folder, "a path that only one machine has");
        }
    }
    found
}

/// Whether `line` has `folder` as the beginning of an absolute path, not in the middle of one.
fn starts_a_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|letter| letter.is_ascii_alphanumeric() || "_.-}/".contains(letter))
    })
}

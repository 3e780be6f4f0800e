#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use proptest::prelude::*;

/// Reads `name` (text), `port` (number) and `wait` (time, optional).
fn check(text: &str, expect: Result<(&str, u64), &[&str]>) {
    let result = read(text).and_then(|node| {
        let mut problems = Problems::default();
        let found = Section::of(&node, "the file", &mut problems).and_then(|mut section| {
            let name = section.required("name", &mut problems);
            let port = section.required("port", &mut problems);
            let wait = section.optional("wait").map(|node| node.duration("`wait`", &mut problems));
            section.end(&mut problems);
            let name = name.and_then(|node| node.text("`name`", &mut problems));
            let port = port.and_then(|node| node.number("`port`", &mut problems));
            let _ = wait;
            Some((name?.to_owned(), port?))
        });
        problems.or(found)
    });
    match (result, expect) {
        (Ok((name, port)), Ok(wanted)) => assert_eq!((name.as_str(), port), wanted),
        (Err(problems), Err(wanted)) => {
            let found: Vec<String> = problems.to_string().lines().map(|line| line.trim().to_owned()).collect();
            assert_eq!(found, wanted, "{text}");
        }
        (found, wanted) => panic!("{text}: {found:?}, not {wanted:?}"),
    }
}

#[test]
fn every_mistake_is_told_at_once_with_its_place_and_its_fix() {
    check("name: a\nport: 80\nwait: 15s\n", Ok(("a", 80)));
    check(
        "port: x\nnmae: a\nwait: soon\n",
        Err(&[
            "line 1:1: `name` is missing",
            "line 1:7: `port`: must be a whole number, 0 or more (found `x`)",
            "line 2:1: unknown key `nmae`; did you mean `name`?",
            "line 3:7: `wait`: must be a length of time such as 250ms, 15s, 10m or 12h (found `soon`)",
        ]),
    );
    check("name: a\nport: 80\nport: 81\n", Err(&["line 3:1: `port` is given twice"]));
    check(
        "name: a\nport: 80\nfrobnicate: 1\n",
        Err(&["line 3:1: unknown key `frobnicate`; known here: name, port, wait"]),
    );
    check("- a\n", Err(&["line 1:1: the file must be a mapping of keys to values"]));
    check("name: &x a\nport: *x\n", Err(&["line 2:7: aliases (`*name`) are not read; write the value out"]));
    check("name: a\nport: 80\n---\nname: b\n", Err(&["line 3:1: a second document; only one is read"]));
    check("", Err(&["line 1:1: `name` is missing", "line 1:1: `port` is missing"]));
}

#[test]
fn times_are_whole_numbers_with_a_unit() {
    for (text, milliseconds) in [("250ms", 250), ("15s", 15_000), ("10m", 600_000), ("12h", 43_200_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "15", "s", "-1s", "1.5s", "1d", "99999999999999999999s", "9999999999999999999h", "١s"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

#[test]
fn deep_nesting_is_refused() {
    let text = "[".repeat(2000);
    assert!(read(&text).is_err());
    let text: String = (0..40).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(read(&text).unwrap_err().to_string().contains("nested too deeply"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_yaml_like_text_panics(text in "[a-c:\\-\\[\\]{}&*!|>'\"#, \n]{0,80}") {
        let _ = read(&text);
    }
}

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use proptest::prelude::*;

/// Reads `name` (text), `port` (number) and `wait` (time, optional).
fn check(text: &str, expect: Result<(&str, u64), &[&str]>) {
    let result = interpret(text, |node, problems| {
        let mut section = Section::of(node, "the file", problems)?;
        let name = section.required("name", problems);
        let port = section.required("port", problems);
        let _ = section.optional("wait").map(|node| node.duration("`wait`", problems));
        section.end(problems);
        let name = name.and_then(|node| node.text("`name`", problems));
        let port = port.and_then(|node| node.number("`port`", problems));
        Some((name?.to_owned(), port?))
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
        "name: a\nport: x\nport: 81\n",
        Err(&["line 2:7: `port`: must be a whole number, 0 or more (found `x`)", "line 3:1: `port` is given twice"]),
    );
    check("name: a\nport: Null\n", Err(&["line 1:1: `port` is missing"]));
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
    let ten_years = Duration::from_secs(87_600 * 60 * 60);
    assert_eq!(parse_duration("87600h"), Ok(ten_years));
    for text in [
        "87601h",
        "315360000001ms",
        "",
        "15",
        "s",
        "-1s",
        "1.5s",
        "1d",
        "99999999999999999999s",
        "9999999999999999999h",
        "١s",
    ] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

#[test]
fn a_time_can_have_a_least_length() {
    let read = |text: &str| {
        let least = Duration::from_secs(1);
        interpret(text, |node, problems| node.duration_from(least, "`ttl`", problems)).map_err(|p| p.to_string())
    };
    assert_eq!(read("1s"), Ok(Duration::from_secs(1)));
    assert_eq!(read("999ms"), Err("  line 1:1: `ttl`: must be 1s or longer (found `999ms`)".into()));
}

#[test]
fn a_problem_is_one_short_line_whatever_it_shows() {
    let text = format!("name: a\nport: \"1\\n2\\e[31m{}\"\n\"x\\ny\": 1\n", "\u{e4}".repeat(100_000));
    let problems = interpret(&text, |node, problems| {
        let mut section = Section::of(node, "the file", problems)?;
        let port = section.optional("port");
        section.end(problems);
        port?.number("`port`", problems)
    });
    let told = problems.unwrap_err().to_string();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 3, "{told}");
    assert!(
        lines[1].starts_with("  line 2:7: `port`: must be a whole number, 0 or more (found `1\\n2\\u{1b}[31m"),
        "{told}"
    );
    assert!(lines[1].ends_with("\u{e4}…`)") && lines[1].chars().count() < 200, "{told}");
    assert_eq!(lines[2], "  line 3:1: unknown key `x\\ny`; known here: port");
}

#[test]
fn many_mistakes_are_counted() {
    let unknown: String = (0..1000).map(|at| format!("key{at}: 1\n")).collect();
    let found = interpret(&format!("{unknown}{}", "same: 1\n".repeat(1001)), |node, problems| {
        Section::of(node, "the file", problems)?.end(problems);
        Some(())
    });
    let problems = found.unwrap_err();
    assert_eq!(problems.iter().count(), 100);
    // 1000 unknown keys, the same key once as unknown, and 1000 times more.
    assert_eq!(problems.to_string().lines().last(), Some("  and 1901 more"));
}

#[test]
fn length_and_values_are_bounded() {
    let told = |text: &str| read(text).unwrap_err().to_string();
    assert_eq!(told(&"#".repeat(LONGEST + 1)), "  line 1:1: longer than 4194304 bytes");
    assert!(told(&"- a\n".repeat(1_000_001)).ends_with("more than 1000000 values"));
    assert!(read(&"#".repeat(LONGEST)).is_ok());
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

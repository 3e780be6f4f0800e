//! Each rule is shown to fail on what it forbids, and to pass what it does not.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::source::Source;
use super::{Exception, Finding, check, circles, judge, leftovers};

/// The rules and items that are found in `text` as the file `path`.
fn found(path: &str, text: &str) -> Vec<(&'static str, String)> {
    let mut findings = leftovers::check(path, text);
    if path.ends_with(".rs") {
        findings.extend(check(&Source::parse(path, text).unwrap()));
    }
    findings.into_iter().map(|finding| (finding.rule, finding.item)).collect()
}

fn one(rule: &'static str, item: &str) -> Vec<(&'static str, String)> {
    vec![(rule, item.to_owned())]
}

#[test]
fn a_crate_imports_only_what_the_table_gives_it() {
    assert_eq!(found("agent-core/src/route.rs", "use agent::relay;"), one("import", "agent::relay"));
    assert_eq!(found("agent/src/app.rs", "use ca::Server;"), []);
    assert_eq!(found("ca/src/lib.rs", "use agent_core::identity::{SpiffeId, TrustDomain};"), []);
    assert_eq!(found("xtask/src/main.rs", "fn f() { agent::run() }"), one("import", "agent::run"));
}

#[test]
fn an_import_is_seen_in_a_group_in_an_expression_and_in_a_macro() {
    let path = "agent/src/relay/copy.rs";
    assert_eq!(found(path, "use crate::{secure::Channel, report::{self, Record}};").len(), 2);
    assert_eq!(found(path, "fn f() { crate::report::record() }"), one("import", "crate::report::record"));
    assert_eq!(found(path, "fn f() { select!(a = crate::report::go() => 1) }"), one("import", "crate::report::go"));
}

#[test]
fn a_stage_does_not_import_a_later_one() {
    assert_eq!(found("agent/src/capture/listener.rs", "use crate::relay::run;"), one("import", "crate::relay::run"));
    assert_eq!(found("agent/src/relay.rs", "use crate::secure::Channel;"), []);
    assert_eq!(found("agent/src/secure.rs", "use crate::secure::verify::Verifier;"), []);
    assert_eq!(found("agent/src/novel.rs", "use std::fs::File;").len(), 1, "a module that the table lacks");
}

#[test]
fn only_capture_imports_aya_and_only_secure_and_identity_rustls() {
    assert_eq!(found("agent/src/relay.rs", "use aya::maps::HashMap;"), one("import", "aya::maps::HashMap"));
    assert_eq!(found("agent/src/capture/maps.rs", "use aya::maps::HashMap;"), []);
    assert_eq!(found("agent/src/capture.rs", "use aya::Ebpf;"), []);
    assert_eq!(found("agent/src/captured.rs", "use aya::Ebpf;").len(), 1);
    assert_eq!(found("agent/src/outbound.rs", "use rustls::ServerConfig;"), one("import", "rustls::ServerConfig"));
    assert_eq!(found("agent/src/identity/transport.rs", "use rustls::ClientConfig;"), []);
}

#[test]
fn a_verified_peer_is_asserted_in_one_file_and_in_tests() {
    let code = "fn f() { VerifiedPeer::assertion(id) }";
    assert_eq!(found("agent/src/secure/accept.rs", code), one("import", "VerifiedPeer::assertion"));
    assert_eq!(found("agent/src/inbound.rs", "fn f() { policy::VerifiedPeer::assertion() }").len(), 1);
    assert_eq!(found("agent/src/secure/verify.rs", code), []);
    assert_eq!(found("agent/src/secure/accept.rs", &format!("#[cfg(test)]\nmod tests {{ {code} }}")), []);
    assert_eq!(found("agent/src/secure/tests.rs", code), []);
}

#[test]
fn the_core_has_no_sockets_files_or_clock() {
    let path = "agent-core/src/policy.rs";
    assert_eq!(found(path, "use std::net::{IpAddr, TcpStream};"), one("import", "std::net::TcpStream"));
    assert_eq!(found(path, "use std::fs;"), one("import", "std::fs"));
    assert_eq!(found(path, "fn f() { Instant::now() }"), one("import", "Instant::now"));
    assert_eq!(found(path, "fn f() { std::time::Instant::now() }").len(), 1);
    assert_eq!(found(path, "use std::net::SocketAddr;"), []);
}

#[test]
fn a_long_file_is_found_and_its_tests_do_not_count() {
    let lines = |count: usize| "// one line\n".repeat(count);
    assert_eq!(found("agent/src/app.rs", &lines(401)), one("size", "file"));
    assert_eq!(found("agent/src/app.rs", &lines(400)), []);
    let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(399), lines(300));
    assert_eq!(found("agent/src/app.rs", &tests), []);
    assert_eq!(found("tests/tests/capture.rs", &lines(500)), []);
    assert_eq!(found("tests/src/pod.rs", &lines(500)), one("size", "file"));
}

#[test]
fn a_long_function_is_found_wherever_it_is() {
    let body = "    let _ = 1;\n".repeat(59);
    let function = format!("fn long() {{\n{body}}}\n");
    assert_eq!(found("ca/src/lib.rs", &function), one("size", "long"));
    assert_eq!(found("ca/src/lib.rs", &format!("impl A {{\n{function}}}\n")), one("size", "long"));
    assert_eq!(found("ca/src/lib.rs", &format!("trait A {{\n{function}}}\n")), one("size", "long"));
    assert_eq!(found("ca/src/lib.rs", &function.replacen("    let _ = 1;\n", "", 1)), []);
}

#[test]
fn six_parameters_are_too_many_and_self_is_none() {
    let six = "fn f(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) {}";
    assert_eq!(found("ca/src/lib.rs", six), one("size", "f"));
    assert_eq!(found("ca/src/lib.rs", "impl A { fn f(&self, a: u8, b: u8, c: u8, d: u8, e: u8) {} }"), []);
}

#[test]
fn an_empty_name_is_found_as_a_word_only() {
    assert_eq!(found("ca/src/lib.rs", "struct PodManager;"), one("name", "PodManager"));
    assert_eq!(found("ca/src/lib.rs", "mod test_utils;"), one("name", "test_utils"));
    assert_eq!(found("ca/src/helpers.rs", ""), one("name", "helpers"));
    assert_eq!(found("ca/src/lib.rs", "struct Information; enum Miscible {}"), []);
}

#[test]
fn unfinished_work_is_found() {
    for text in [concat!("// TO", "DO: later"), concat!("// FIX", "ME"), concat!("fn f() { todo", "!() }")] {
        assert_eq!(found("ca/src/lib.rs", text).len(), 1, "{text}");
    }
    assert_eq!(found("ca/src/lib.rs", concat!("// TO", "DO(#12): the second key")), []);
    assert_eq!(found("tests/tests/drain.rs", concat!("#[ig", "nore]\nfn f() {}")).len(), 1);
}

#[test]
fn a_path_of_one_machine_is_found_in_any_file() {
    assert_eq!(found("README.md", concat!("see /ho", "me/me/mantle")).len(), 1);
    assert_eq!(found("deploy/agent.yaml", concat!("key: \"/ro", "ot/key\"")).len(), 1);
    assert_eq!(found("README.md", concat!("reads ../sha", "red/DESIGN.md")).len(), 1);
    assert_eq!(found("agent/src/capture.rs", concat!("// /proc/1/ro", "ot/sys")), []);
}

#[test]
fn an_exception_covers_its_finding_and_an_idle_one_is_a_problem() {
    let exception = |item| Exception { rule: "size", path: "ca/src/lib.rs", item, why: "for this test" };
    let finding = Finding {
        rule: "size",
        path: "ca/src/lib.rs".to_owned(),
        line: 7,
        item: "long".to_owned(),
        text: "a function of 61 lines".to_owned(),
    };
    assert_eq!(judge(std::slice::from_ref(&finding), &[exception("long")]), Vec::<String>::new());
    let problems = judge(&[finding], &[exception("other")]);
    assert_eq!(problems.len(), 2);
    assert!(problems[0].starts_with("ca/src/lib.rs:7: "), "{problems:?}");
    assert!(problems[1].contains("remove it"), "{problems:?}");
}

#[test]
fn what_is_not_rust_is_told_with_its_path() {
    let unread = Source::parse("ca/src/lib.rs", "fn (").err().unwrap();
    assert!(unread.to_string().starts_with("ca/src/lib.rs is not Rust"));
}

/// The circles of a crate of these files.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let parse = |&(path, text): &(&str, &str)| (path.to_owned(), Source::parse(path, text).unwrap().paths);
    circles::check(&files.iter().map(parse).collect::<Vec<_>>()).into_iter().map(|finding| finding.item).collect()
}

#[test]
fn modules_beside_each_other_do_not_import_each_other() {
    let (one, other) =
        (("ca/src/one.rs", "use crate::other::Thing;"), ("ca/src/other.rs", "use super::one::{Part, Whole};"));
    assert_eq!(circles_of(&[one, other]), ["one, other"]);
    assert_eq!(circles_of(&[one, ("ca/src/other.rs", "use std::fs;")]), [""; 0]);
    assert_eq!(circles_of(&[one, ("agent/src/other.rs", "use crate::one::Part;")]), [""; 0], "two crates");
    let below = ("ca/src/other/below.rs", "fn f() { crate::third::go() }");
    let third = ("ca/src/third.rs", "use crate::one;");
    assert_eq!(circles_of(&[one, ("ca/src/other.rs", ""), below, third]), ["one, other, third"], "by way of others");
    let test = ("ca/src/other.rs", "#[cfg(test)]\nmod tests { use crate::one::Part; }");
    assert_eq!(circles_of(&[one, test]), [""; 0], "a test may");
}

#[test]
fn a_module_and_what_it_holds_may_import_each_other() {
    let files =
        [("ca/src/one.rs", "use part::Part;"), ("ca/src/one/part.rs", "use super::Whole; use crate::one::Half;")];
    assert_eq!(circles_of(&files), [""; 0]);
    let inside = [("ca/src/one/a.rs", "use super::b::B;"), ("ca/src/one/b.rs", "use super::a::A;")];
    assert_eq!(circles_of(&inside), ["a, b"], "but not two that it holds");
}

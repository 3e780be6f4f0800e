//! Small servers and clients in Python, Node.js, Java and Go: each language's HTTP, and its sockets.

use std::path::{Path, PathBuf};
use std::process::Command;

use agent_tests::{Notes, Pair, Pod, compare, patterns};

use crate::DEVIATIONS;
use crate::running::{command, finish, run, serve};

#[test]
fn python() {
    compare(&[], patterns![in_python], DEVIATIONS);
}

#[test]
fn node() {
    compare(&[], patterns![in_node], DEVIATIONS);
}

#[test]
fn java() {
    compare(&[], patterns![in_java], DEVIATIONS);
}

#[test]
fn go() {
    compare(&[], patterns![in_go], DEVIATIONS);
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/sources").join(name)
}

fn in_python(pair: &Pair, notes: &mut Notes) {
    talk(pair, notes, &["python3".into(), source("echo.py")]);
}

fn in_node(pair: &Pair, notes: &mut Notes) {
    talk(pair, notes, &["node".into(), source("echo.js")]);
}

fn in_java(pair: &Pair, notes: &mut Notes) {
    talk(pair, notes, &["java".into(), source("Echo.java")]);
}

/// Built once for each run, with a build cache that stays in `target`.
fn in_go(pair: &Pair, notes: &mut Notes) {
    let program = pair.folder.join("echo-go");
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&program).arg(source("echo.go"));
    go.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"))
        .env("GOFLAGS", "-mod=mod")
        .env("GOPROXY", "off");
    let built = finish(go.current_dir(&pair.folder), Vec::new());
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    talk(pair, notes, &[program]);
}

/// `program` in a pod, with these words and the web's address.
fn with(pair: &Pair, pod: &Pod, program: &[PathBuf], mode: &str, port: u16) -> Command {
    let (first, rest) = program.split_first().unwrap();
    let server = mode.starts_with("serve");
    let mut started = if server { pod.namespace.command(first) } else { command(pod, first.to_str().unwrap()) };
    started.args(rest).arg(mode).arg(pair.web.address.to_string()).arg(port.to_string());
    started
}

fn talk(pair: &Pair, notes: &mut Notes, program: &[PathBuf]) {
    for mode in ["http", "stream"] {
        let port = pair.port();
        let serving = format!("serve-{mode}");
        let _server = serve(pair, &serving, &mut with(pair, &pair.web, program, &serving, port), port);
        run(notes, mode, &mut with(pair, &pair.client, program, mode, port));
    }
    run(notes, "refused", &mut with(pair, &pair.client, program, "refused", pair.port()));
}

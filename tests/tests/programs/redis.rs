//! Redis: pipelining, large values, publish and subscribe.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use agent_tests::{Notes, Pair, Process, compare, patterns};

use crate::DEVIATIONS;
use crate::running::{command, finish, run, run_with, serve};

#[test]
fn redis() {
    compare(&[], patterns![commands, a_pipeline, publish_and_subscribe, a_blocked_client], DEVIATIONS);
}

fn start(pair: &Pair, port: u16) -> Process {
    let mut redis = pair.web.namespace.command("redis-server");
    redis.args(["--port", &port.to_string(), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]);
    redis.arg("--dir").arg(&pair.folder);
    serve(pair, "redis", &mut redis, port)
}

fn client(pair: &Pair, port: u16) -> Command {
    let mut cli = command(&pair.client, "redis-cli");
    cli.args(["-h", &pair.web.address.to_string(), "-p", &port.to_string()]);
    cli
}

fn commands(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let _redis = start(pair, port);
    run(notes, "set", client(pair, port).args(["SET", "key", "value"]));
    run(notes, "get", client(pair, port).args(["GET", "key"]));
    run_with(notes, "set much", client(pair, port).args(["-x", "SET", "much"]), vec![b'm'; 4 << 20]);
    run(notes, "how much", client(pair, port).args(["STRLEN", "much"]));
    let all = finish(client(pair, port).args(["GET", "much"]), Vec::new());
    notes.note("all of it", all.stdout.iter().filter(|byte| **byte == b'm').count());
    let told = finish(client(pair, port).args(["CLIENT", "INFO"]), Vec::new());
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let ours = format!(" addr={}:", pair.client.address);
    notes.note(
        "the server knows its client",
        told.contains(&ours) && told.contains(&format!("laddr={}:", pair.web.address)),
    );
}

fn a_pipeline(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let _redis = start(pair, port);
    let mut commands = String::new();
    for number in 0..20_000 {
        write!(commands, "INCRBY sum {number}\r\n").unwrap();
    }
    run_with(notes, "20 000 commands", client(pair, port).arg("--pipe"), commands.into_bytes());
    run(notes, "sum", client(pair, port).args(["GET", "sum"]));
}

fn publish_and_subscribe(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let _redis = start(pair, port);
    let mut command = client(pair, port);
    command.args(["SUBSCRIBE", "news"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut subscriber = command.spawn().unwrap();
    let mut lines = BufReader::new(subscriber.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut hear = |count: usize| lines.by_ref().take(count).collect::<Vec<_>>();
    notes.note("subscribed", hear(3));
    for number in 0..20 {
        run(notes, "publish", client(pair, port).args(["PUBLISH", "news", &format!("item {number}")]));
        notes.note("heard", hear(3));
    }
    subscriber.kill().unwrap();
    subscriber.wait().unwrap();
}

/// It waits until there is something.
fn a_blocked_client(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let _redis = start(pair, port);
    let waiting = client(pair, port).args(["BLPOP", "queue", "50"]).stdout(Stdio::piped()).spawn().unwrap();
    run(notes, "push", client(pair, port).args(["RPUSH", "queue", "work"]));
    notes.note("popped", String::from_utf8(waiting.wait_with_output().unwrap().stdout).unwrap());
}

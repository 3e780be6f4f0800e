//! PostgreSQL: queries, COPY, a cancelled query, and notifications on a long-lived connection.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use agent_tests::{Notes, Pair, Process, compare, patterns};
use nix::sys::signal::Signal;
use nix::unistd::User;

use crate::DEVIATIONS;
use crate::running::{command, finish, note, run, run_failing, run_with, serve};

#[test]
fn postgresql() {
    compare(&[], patterns![a_database], DEVIATIONS);
}

/// A server that is asked to end, so that it takes its processes with it.
struct Server(Process);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGQUIT);
        self.0.end_within(Duration::from_secs(20));
    }
}

/// Where Debian has the newest server's programs.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path().join("bin"));
    versions.filter(|folder| folder.join("postgres").is_file()).max().unwrap()
}

/// `program` as a user that is not root, which PostgreSQL insists on.
fn as_nobody(command: &mut Command, program: &Path) {
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
}

fn start(pair: &Pair, port: u16) -> Server {
    let folder = pair.folder.join(format!("postgres-{port}"));
    fs::create_dir(&folder).unwrap();
    let nobody = User::from_name("nobody").unwrap().unwrap();
    chown(&folder, Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    let data = folder.join("data");
    let mut initdb = Command::new("setpriv");
    as_nobody(&mut initdb, &programs().join("initdb"));
    initdb.args(["--auth=trust", "--no-sync", "--locale=C", "--username=tester", "-D"]).arg(&data);
    let made = finish(initdb.current_dir(&folder), Vec::new());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let anybody = "host all all 0.0.0.0/0 trust\n";
    fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf")).unwrap().write_all(anybody.as_bytes()).unwrap();
    let mut postgres = pair.web.namespace.command("setpriv");
    as_nobody(&mut postgres, &programs().join("postgres"));
    postgres.args(["-p", &port.to_string(), "-c", "listen_addresses=0.0.0.0", "-c", "fsync=off", "-D"]).arg(&data);
    postgres.arg("-c").arg(format!("unix_socket_directories={}", folder.display())).current_dir(&folder);
    Server(serve(pair, "postgres", &mut postgres, port))
}

fn psql(pair: &Pair, port: u16) -> Command {
    database(pair, port, command(&pair.client, "psql"))
}

fn database(pair: &Pair, port: u16, mut psql: Command) -> Command {
    psql.args(["--no-psqlrc", "-At", "-U", "tester", "-d", "postgres", "-h", &pair.web.address.to_string()]);
    psql.args(["-p", &port.to_string()]);
    psql
}

fn a_database(pair: &Pair, notes: &mut Notes) {
    let port = pair.port();
    let _server = start(pair, port);
    let query = |notes: &mut Notes, what: &str, text: &str| run(notes, what, psql(pair, port).args(["-c", text]));
    query(notes, "who is who", "SELECT host(inet_client_addr()), host(inet_server_addr())");
    query(notes, "a table", "CREATE TABLE numbers AS SELECT n, repeat('x', 100) FROM generate_series(1, 50000) n");
    query(notes, "its sum", "SELECT sum(n), count(*) FROM numbers");
    run_failing(notes, "a mistake", psql(pair, port).args(["-c", "SELECT nothing"]));
    let copied = finish(psql(pair, port).args(["-c", "COPY numbers TO STDOUT"]), Vec::new());
    notes.note("copied out", (copied.status.code(), copied.stdout.len(), copied.stdout.split(|b| *b == b'\n').count()));
    let back = "TRUNCATE numbers; COPY numbers FROM STDIN; SELECT sum(n), count(*) FROM numbers";
    run_with(notes, "copied in", psql(pair, port).args(["-c", back]), copied.stdout);
    cancelled(pair, notes, port);
    notified(pair, notes, port);
}

/// psql cancels by another connection, which says which query it means.
fn cancelled(pair: &Pair, notes: &mut Notes, port: u16) {
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(50)' AND state = 'active'";
    // Not by `timeout`, which passes SIGINT on a second time.
    let mut long = database(pair, port, pair.client.namespace.command("psql"));
    let mut long = long.args(["-c", "SELECT pg_sleep(50)"]).stderr(Stdio::piped()).spawn().unwrap();
    agent_tests::wait::until("the query runs", || {
        let told = finish(psql(pair, port).args(["-c", sleeping]), Vec::new());
        (told.stdout == b"1\n").then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(long.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    long.wait().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut long.stderr.take().unwrap(), &mut said).unwrap();
    notes.note("cancelled", said);
}

/// One connection listens while others notify.
fn notified(pair: &Pair, notes: &mut Notes, port: u16) {
    let mut listener = psql(pair, port).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut say = listener.stdin.take().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines().map(Result::unwrap);
    writeln!(say, "LISTEN news;").unwrap();
    notes.note("listens", lines.next());
    for number in 0..5 {
        let text = format!("NOTIFY news, 'item {number}'");
        note(notes, "notify", &finish(psql(pair, port).args(["-c", &text]), Vec::new()));
        // psql tells what has come when it has done something.
        writeln!(say, "SELECT 'asked';").unwrap();
        let heard: Vec<String> = lines.by_ref().take(2).collect();
        let from = |line: &String| line.split(" received from server").next().unwrap_or_default().to_owned();
        notes.note("heard", heard.iter().map(from).collect::<Vec<_>>());
    }
    drop(say);
    notes.note("ends well", listener.wait().unwrap().success());
}

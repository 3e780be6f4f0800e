//! Programs in pods.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;

use agent_tests::{Notes, Pair, Pod, Process, wait};

/// After this a program that should have ended is ended, and its status says so.
const PATIENCE: &str = "60";

/// `program` in a pod's network, ended when it takes too long.
pub(crate) fn command(pod: &Pod, program: &str) -> Command {
    let mut command = pod.namespace.command("timeout");
    command.args(["--kill-after=5", PATIENCE, program]);
    command
}

/// Starts a server in the web's pod and returns when it accepts there.
pub(crate) fn serve(pair: &Pair, name: &str, command: &mut Command, port: u16) -> Process {
    let mut process = pair.start(name, command);
    let address = pair.at(&pair.web, port);
    wait::until("the server accepts", || {
        assert!(process.is_running(), "{name} has ended:\n{}", process.said());
        pair.web.namespace.within(|| TcpStream::connect(address)).ok()
    });
    process
}

/// Runs a program to its end, which must be a success, and notes what it said.
pub(crate) fn run(notes: &mut Notes, what: &str, command: &mut Command) {
    run_with(notes, what, command, Vec::new());
}

/// Likewise, with bytes for its standard input.
pub(crate) fn run_with(notes: &mut Notes, what: &str, command: &mut Command, input: Vec<u8>) {
    let output = finish(command, input);
    note(notes, what, &output);
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Likewise, with a program that must fail, by itself.
pub(crate) fn run_failing(notes: &mut Notes, what: &str, command: &mut Command) {
    let output = finish(command, Vec::new());
    note(notes, what, &output);
    let code = output.status.code();
    // 124 and more: `timeout` has ended it, or could not start it.
    assert!(code.is_some_and(|code| (1..124).contains(&code)), "{what}: {code:?}");
}

/// Runs a program to its end.
pub(crate) fn finish(command: &mut Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read its input closes it.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

pub(crate) fn note(notes: &mut Notes, what: &str, output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    notes.note(what, (output.status.code(), text(&output.stdout), text(&output.stderr)));
}

/// `http://<pod>:<port><path>`
pub(crate) fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

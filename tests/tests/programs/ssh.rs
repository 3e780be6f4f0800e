//! An SSH server: commands, their status, much input and output, and copies of files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_tests::traffic::Pattern;
use agent_tests::{Notes, Pair, Process, compare, patterns};

use crate::DEVIATIONS;
use crate::running::{command, finish, run, run_failing, run_with, serve};

const LARGE: usize = 8 << 20;

#[test]
fn openssh() {
    compare(&[], patterns![a_session], DEVIATIONS);
}

/// A server with keys of its own.
struct Sshd {
    folder: PathBuf,
    port: u16,
    /// Where it drops its privileges, if that was not there: Debian makes it when the service starts.
    made: Option<&'static Path>,
    _process: Process,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Another server that was started meanwhile may use it: then it stays.
        let _ = self.made.map(fs::remove_dir);
    }
}

fn start(pair: &Pair) -> Sshd {
    let port = pair.port();
    let folder = pair.folder.join(format!("ssh-{port}"));
    fs::create_dir(&folder).unwrap();
    for name in ["host", "user"] {
        let mut keygen = Command::new("ssh-keygen");
        let made = finish(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(name)), Vec::new());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let place = Path::new("/run/sshd");
    let made = fs::create_dir(place).is_ok().then_some(place);
    let f = folder.display();
    let config = format!(
        "Port {port}\nHostKey {f}/host\nPidFile none\nAuthorizedKeysFile {f}/user.pub\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPrintMotd no\nSubsystem sftp internal-sftp\n"
    );
    fs::write(folder.join("config"), config).unwrap();
    let program = ["/usr/sbin/sshd", "/usr/bin/sshd"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    let mut sshd = pair.web.namespace.command(program);
    sshd.args(["-D", "-e", "-f"]).arg(folder.join("config"));
    let process = serve(pair, "sshd", &mut sshd, port);
    Sshd { folder, port, made, _process: process }
}

impl Sshd {
    /// ssh or scp, with nothing of this machine's configuration.
    fn client(&self, pair: &Pair, program: &str) -> Command {
        let mut client = command(&pair.client, program);
        client.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        client.args(["-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-i"]).arg(self.folder.join("user"));
        client.args([if program == "scp" { "-P" } else { "-p" }, &self.port.to_string()]);
        client
    }
}

fn a_session(pair: &Pair, notes: &mut Notes) {
    let sshd = start(pair);
    let host = format!("root@{}", pair.web.address);
    let ssh = |command: &str| {
        let mut ssh = sshd.client(pair, "ssh");
        ssh.args([&host, command]);
        ssh
    };
    run(notes, "who is who", &mut ssh("set -- $SSH_CONNECTION; echo $1 $3"));
    run_failing(notes, "a status", &mut ssh("echo out; echo err >&2; exit 7"));
    let much = finish(&mut ssh("seq 1 200000"), Vec::new());
    let expected = (1..=200_000).map(|number| format!("{number}\n")).collect::<String>();
    notes.note("much output", (much.status.code(), much.stdout == expected.as_bytes()));
    run_with(notes, "much input", &mut ssh("sha256sum"), vec![b'x'; LARGE]);
    let echoed = finish(&mut ssh("cat"), vec![b'x'; LARGE]);
    notes.note("echoed", (echoed.status.code(), echoed.stdout.len()));

    let [from, there, back] = ["from", "there", "back"].map(|name| sshd.folder.join(name));
    Pattern::new(9).send(&mut fs::File::create(&from).unwrap(), LARGE).unwrap();
    let remote = format!("{host}:{}", there.display());
    run(notes, "copied there", sshd.client(pair, "scp").arg(&from).arg(&remote));
    run(notes, "copied back", sshd.client(pair, "scp").arg(&remote).arg(&back));
    let same = Pattern::new(9).expect(&mut fs::File::open(&back).unwrap(), LARGE).is_ok();
    notes.note("the same", same);
}

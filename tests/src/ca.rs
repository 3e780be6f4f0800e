//! The real CA, on node a.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::binary::mantle;
use crate::directory::Reader;
use crate::failure::Must as _;
use crate::process::Process;
use crate::wait;
use crate::world::{Node, Side, World};

/// The port where the CA answers.
const PORT: u16 = 15012;

/// A CA and its state, which outlives its process.
#[derive(Debug)]
pub struct Ca {
    node: Node,
    config: PathBuf,
    state: PathBuf,
    process: Option<Process>,
}

impl Ca {
    /// Configures a CA whose certificates live as long as `leaf_ttl`.
    pub(crate) fn new(world: &World, leaf_ttl: &str) -> Self {
        let (folder, node) = (world.folder(), world.node(Side::A).clone());
        let (config, state) = (folder.join("ca.yaml"), folder.join("ca-state"));
        let text = format!(
            "trust_domain: {}\nlisten: {}\nstate_dir: {}\ndirectory: {}\nleaf_ttl: {leaf_ttl}\n",
            crate::TRUST_DOMAIN,
            address(&node),
            state.display(),
            Reader::Ca.path(folder).display()
        );
        fs::write(&config, text).must(config.display());
        Self { node, config, state, process: None }
    }

    /// Starts it.
    pub fn start(&mut self, world: &World) {
        self.start_logging(world, "info");
    }

    /// Starts it, and has it log this, as `MANTLE_LOG` has it.
    pub fn start_logging(&mut self, world: &World, what: &str) {
        let mut command = self.command(&[]);
        command.arg("--config").arg(&self.config).env("MANTLE_LOG", what);
        self.process = Some(world.start("ca", &mut command));
    }

    /// Starts it without capabilities, as its unit does.
    pub fn start_confined(&mut self, world: &World) {
        let mut command = self.node.namespace.command("setpriv");
        command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]).arg(mantle());
        command.args(["ca", "--config"]).arg(&self.config);
        self.process = Some(world.start("ca", &mut command));
    }

    /// Sends it a signal, and waits for its end.
    #[track_caller]
    pub fn end_by(&mut self, signal: Signal) -> ExitStatus {
        let mut process = self.process.take().must("the CA does not run");
        process.signal(signal);
        process.end_within(Duration::from_secs(60))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        address(&self.node).parse().must("an address and a port")
    }

    /// Where it keeps its keys.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A join token for a node.
    pub fn token(&mut self, node: &str) -> String {
        wait::until("the CA gives a join token", || {
            if let Some(process) = &mut self.process {
                assert!(process.is_running(), "the CA has ended:\n{}", process.said());
            }
            let output = self.command(&["token"]).arg("--config").arg(&self.config).args(["--node", node]).output();
            let output = output.must("cannot run mantle");
            // Until the CA has made its state there is nothing to make a token from.
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Runs `mantle ca deny add` for one thing, such as `["--pod", "uid"]`, whether the CA runs or not.
    #[track_caller]
    pub fn deny(&self, what: [&str; 2]) {
        self.operate(&["deny", "add"], what, &["--reason", "test"]);
    }

    /// Runs `mantle ca` with these words: whether it succeeded, and what it said on standard error.
    pub fn operated(&self, words: &[&str]) -> (bool, String) {
        let output = self.command(&[]).args(words).arg("--config").arg(&self.config).output().must("cannot run mantle");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Takes that back.
    #[track_caller]
    pub fn allow(&self, what: [&str; 2]) {
        self.operate(&["deny", "remove"], what, &[]);
    }

    /// Runs `mantle ca deny import` for a revocation list of our own trust domain, whether the CA runs or not.
    #[track_caller]
    pub fn import_crl(&self, list: &Path) {
        let list = list.to_str().must("a path is text");
        self.operate(&["deny", "import"], ["--trust-domain", crate::TRUST_DOMAIN], &[list]);
    }

    /// Runs `mantle ca rotate` with these words. What it prints, or why it refuses.
    ///
    /// # Errors
    /// What it says on standard error.
    pub fn rotate(&self, words: &[&str]) -> Result<String, String> {
        let output = self.command(&["rotate"]).args(words).arg("--config").arg(&self.config).output();
        let output = output.must("cannot run mantle");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Runs `mantle ca issue` for a client's request and a certificate that lives so long, whether the CA runs or not; the chain goes
    /// to `out`.
    #[track_caller]
    pub fn issue(&self, csr: &Path, name: &str, ttl: &str, out: &Path) {
        let (csr, out) = (csr.to_str().must("a path is text"), out.to_str().must("a path is text"));
        self.operate(&["issue"], ["--name", name], &["--csr", csr, "--ttl", ttl, "--out", out]);
    }

    /// Runs `mantle ca federation` with one of its words for a trust domain, whether the CA runs or not.
    #[track_caller]
    pub fn federation(&self, word: &str, domain: &str, more: &[&str]) {
        self.operate(&["federation", word], ["--trust-domain", domain], more);
    }

    /// What it has said since it was started.
    pub fn said(&self) -> String {
        self.process.as_ref().must("the CA does not run").said()
    }

    /// Its process's id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().must("the CA does not run").id()
    }

    #[track_caller]
    fn operate(&self, words: &[&str], what: [&str; 2], more: &[&str]) {
        let output = self.command(words).arg("--config").arg(&self.config).args(what).args(more).output();
        let output = output.must("cannot run mantle");
        assert!(output.status.success(), "{words:?} {what:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.node.namespace.command(mantle());
        command.arg("ca").args(words);
        command
    }
}

/// Where the agents find the CA of a world.
pub(crate) fn address(node: &Node) -> String {
    format!("{}:{PORT}", node.address)
}

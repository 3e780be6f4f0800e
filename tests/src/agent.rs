//! The real agent of a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::binary::mantle;
use crate::ca;
use crate::cgroup::Cgroup;
use crate::directory::Reader;
use crate::failure::Must as _;
use crate::metrics::Metrics;
use crate::process::Process;
use crate::records::Records;
use crate::status::Status;
use crate::wait;
use crate::world::{Node, Side, World};

/// What an agent logs when its predecessor has been told to go.
const TOOK_OVER: &str = "took over";

/// What tests set of an agent's configuration.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Connections for each tunnel; 0 = no limit.
    pub max_uses: u32,
    /// How long an idle tunnel is kept.
    pub idle: &'static str,
    /// The lifetime that the agent asks the CA for.
    pub ttl: Option<&'static str>,
    /// How long connections have after SIGTERM.
    pub drain: &'static str,
    /// What is logged, as `MANTLE_LOG` has it.
    pub log: &'static str,
    /// The capabilities that it has, as setpriv(1) has them; all if unset.
    pub capabilities: Option<&'static str>,
    /// Lines that are added as they are.
    pub more: String,
}

/// A node's agent: its files, its kernel state, and, while it runs, its process.
#[derive(Debug)]
pub struct Agent {
    /// The node that it serves.
    pub node: Node,
    /// Its name for pins and locks.
    pub instance: String,
    /// What it says of connections.
    pub records: Records,
    folder: PathBuf,
    log: &'static str,
    capabilities: Option<&'static str>,
    process: Option<Process>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            max_uses: 0,
            idle: "15s",
            ttl: None,
            drain: "2s",
            log: "info,agent=debug",
            capabilities: None,
            more: String::new(),
        }
    }
}

impl AgentSettings {
    /// These, and metrics where [`Agent::metrics`] reads them.
    pub fn with_metrics(mut self) -> Self {
        self.more.push_str(&format!("metrics: {}\n", crate::metrics::address()));
        self
    }
}

impl Agent {
    /// Configures the agent of a node.
    pub(crate) fn new(world: &World, side: Side, settings: &AgentSettings) -> Self {
        let (folder, node) = (world.folder().to_owned(), world.node(side).clone());
        let instance = format!("{}-{}", world.name(), side.letter());
        let records = Records::at(folder.join(format!("records-{}.jsonl", side.letter())));
        let AgentSettings { log, capabilities, .. } = *settings;
        let agent = Self { node, instance, records, folder, log, capabilities, process: None };
        agent.configure(world, settings);
        agent
    }

    /// Writes the configuration anew; the next start reads it.
    pub fn configure(&self, world: &World, settings: &AgentSettings) {
        let (folder, letter) = (self.folder.display(), self.node.side.letter());
        let AgentSettings { max_uses, idle, drain, more, .. } = settings;
        let ttl = settings.ttl.map(|ttl| format!("  ttl: {ttl}\n")).unwrap_or_default();
        let text = format!(
            "instance: {}\nnode: {}\ntrust_domain: {}\ndirectory: {}\nstatus: {}\n\
             records: {folder}/records-{letter}.jsonl\nstate_dir: {folder}/state-{letter}\nrun_dir: {folder}/run\n\
             ca:\n  address: {}\n  join_token_file: {}\n{ttl}tunnel:\n  max_uses: {max_uses}\n  idle: {idle}\n\
             drain: {drain}\n{more}",
            self.instance,
            self.node.name,
            crate::TRUST_DOMAIN,
            Reader::Agent(self.node.side).path(&self.folder).display(),
            self.status_path().display(),
            ca::address(world.node(Side::A)),
            self.token_path().display(),
        );
        fs::write(self.config_path(), text).must(self.config_path().display());
    }

    /// Gives it a join token.
    pub(crate) fn give_token(&self, token: &str) {
        fs::write(self.token_path(), token).must(self.token_path().display());
    }

    /// Starts it and returns when it has said how it is.
    pub fn start(&mut self, world: &World) {
        self.start_only(world);
        wait::until("the agent says how it is", || self.status());
    }

    /// Starts it, and does not wait for anything.
    pub fn start_only(&mut self, world: &World) {
        // What the last process said must not be taken for this one's word.
        let _ = fs::remove_file(self.status_path());
        let mut command = self.command(&[]);
        command.env("MANTLE_LOG", self.log);
        self.process = Some(world.start(&self.process_name(), &mut command));
    }

    /// Starts another one that takes over from it, waits until that serves, and returns the one from before, which drains.
    #[track_caller]
    pub fn take_over(&mut self, world: &World) -> Process {
        let before = self.said().matches(TOOK_OVER).count();
        let mut command = self.command(&["--take-over"]);
        command.env("MANTLE_LOG", self.log);
        let old = self.process.replace(world.start(&self.process_name(), &mut command));
        wait::until("the successor serves", || {
            let process = self.process.as_mut().must("it was started");
            assert!(process.is_running(), "{} has ended:\n{}", self.instance, process.said());
            (self.said().matches(TOOK_OVER).count() > before).then_some(())
        });
        old.must("the agent does not run")
    }

    /// Starts it so that it takes over from the one that runs, if one does; returns that one.
    pub fn take_over_or_start(&mut self, world: &World) -> Option<Process> {
        let mut command = self.command(&["--take-over", "--or-start"]);
        command.env("MANTLE_LOG", self.log);
        self.process.replace(world.start(&self.process_name(), &mut command))
    }

    /// Starts another one, in this cgroup and with all capabilities, that is to take over from it, and returns the one from
    /// before, which still serves.
    #[track_caller]
    pub fn begin_to_take_over(&mut self, world: &World, cgroup: &Cgroup) -> Process {
        let mut command = cgroup.command(&self.node.namespace, mantle());
        command.args(["agent", "--take-over", "--config"]).arg(self.config_path()).env("MANTLE_LOG", self.log);
        self.process.replace(world.start(&self.process_name(), &mut command)).must("the agent does not run")
    }

    /// Ends it by SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.take().must("the agent does not run").kill();
    }

    /// Asks it to end, by SIGTERM, and waits for that.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().must("the agent does not run").signal(signal);
    }

    /// Moves its process into a cgroup.
    #[track_caller]
    pub fn enter(&self, cgroup: &Cgroup) {
        cgroup.admit(self.process.as_ref().must("the agent does not run").pid());
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        self.process.take().must("the agent does not run").end_within(Duration::from_secs(60))
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Whether it was started and not ended by its owner.
    pub(crate) fn has_process(&self) -> bool {
        self.process.is_some()
    }

    /// What it last said of itself, if it has.
    ///
    /// # Panics
    /// If it has ended by itself.
    #[track_caller]
    pub fn status(&mut self) -> Option<Status> {
        if let Some(process) = &mut self.process {
            assert!(process.is_running(), "{} has ended:\n{}", self.instance, process.said());
        }
        Status::read(&self.status_path())
    }

    /// Changes how many descriptors it may have. What it has stays.
    #[track_caller]
    pub fn limit_files(&self, most: u32) {
        self.process.as_ref().must("the agent does not run").limit_files(most);
    }

    /// How much CPU time it has used.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        self.process.as_ref().must("the agent does not run").cpu_time()
    }

    /// Everything that it has logged, across its restarts.
    pub fn said(&self) -> String {
        let path = self.folder.join(format!("{}.log", self.process_name()));
        fs::read_to_string(&path).unwrap_or_default()
    }

    /// Runs `mantle agent` with other words for the same configuration, to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().must("cannot run mantle")
    }

    /// Runs another of the operator's commands, such as `["certs"]`, for the same configuration, to its end.
    pub fn operate(&self, words: &[&str]) -> Output {
        let mut command = self.node.namespace.command(mantle());
        command.args(words).arg("--config").arg(self.config_path());
        command.output().must("cannot run mantle")
    }

    /// What it tells of its certificates: the rows of `mantle certs --json`.
    #[track_caller]
    pub fn certs(&self) -> Value {
        let output = self.operate(&["certs", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).must("`mantle certs --json` prints JSON")
    }

    /// Its metrics, at the address that [`AgentSettings::with_metrics`] has configured.
    ///
    /// # Panics
    /// If nobody shows them there.
    pub fn metrics(&self) -> Metrics {
        wait::until("the agent shows its metrics", || Metrics::read(&self.node.namespace))
    }

    /// Its process's id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().must("the agent does not run").id()
    }

    /// Where it answers an operator.
    pub fn admin_socket(&self) -> PathBuf {
        self.folder.join(format!("run/{}.admin.sock", self.instance))
    }

    /// `mantle agent <words> --config <its configuration>`, on its node.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.capabilities {
            None => self.node.namespace.command(mantle()),
            Some(capabilities) => {
                let mut command = self.node.namespace.command("setpriv");
                command.args(["--inh-caps=-all", &format!("--bounding-set={capabilities}"), "--"]).arg(mantle());
                command
            }
        };
        command.arg("agent").args(words).arg("--config").arg(self.config_path());
        command
    }

    /// Where its kernel state is pinned.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/mantle").join(&self.instance)
    }

    /// Where this version's maps and links are among them.
    pub fn layout(&self) -> PathBuf {
        self.pins().join(format!("abi{}", agent_common::ABI))
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.file("agent", "yaml")
    }

    fn status_path(&self) -> PathBuf {
        self.file("status", "json")
    }

    fn token_path(&self) -> PathBuf {
        self.file("token", "txt")
    }

    fn process_name(&self) -> String {
        format!("agent-{}", self.node.side.letter())
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{name}-{}.{kind}", self.node.side.letter()))
    }
}

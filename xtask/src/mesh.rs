//! Mantle in a world: the CA and two agents, their configuration, the directory that they read, what they report.

mod config;
mod report;

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::pins;
use crate::shell::{self, Context as _, Done, Failure};
use crate::world::namespace::Namespace;
use crate::world::process::Process;
use crate::world::{World, wait};

pub(crate) use config::{Mode, Pod};
pub(crate) use report::{Record, Status};

/// How long any one thing that Mantle does by itself may take here.
const SOON: Duration = Duration::from_secs(15);

/// What an agent logs when its predecessor has been told to go.
const TOOK_OVER: &str = "took over";

/// The CA, the agents, and the directory's two copies.
pub(crate) struct Mesh {
    mantle: PathBuf,
    folder: PathBuf,
    revision: u64,
    ca: Option<Process>,
    /// The agents of `node-a` and `node-b`.
    pub(crate) agents: Vec<Agent>,
}

/// One node's agent.
pub(crate) struct Agent {
    /// The node's name, and the instance's.
    pub(crate) node: &'static str,
    instance: String,
    place: Namespace,
    process: Option<Process>,
}

impl Agent {
    fn command(&self, mantle: &Path, folder: &Path) -> Command {
        let mut command = Command::new(mantle);
        command.arg("agent").arg("--config").arg(folder.join(format!("agent-{}.yaml", self.node)));
        command
    }

    fn process_name(&self) -> String {
        format!("agent-{}", self.node)
    }
}

impl Mesh {
    /// Writes every file that the CA and the agents of `nodes` need, with a directory that lists no pod.
    pub(crate) fn prepare(world: &World, mantle: PathBuf, nodes: [(&'static str, &Namespace); 2]) -> Done<Self> {
        let folder = world.folder().to_owned();
        write(&folder.join(pins::BINARY), &mantle.display().to_string())?;
        write(&folder.join("ca.yaml"), &config::ca(&folder))?;
        let mut agents = Vec::new();
        for (node, place) in nodes {
            let instance = pins::instance(&folder, node);
            write(&folder.join(format!("agent-{node}.yaml")), &config::agent(&folder, node, &instance))?;
            agents.push(Agent { node, instance, place: place.clone(), process: None });
        }
        let mut mesh = Self { mantle, folder, revision: 0, ca: None, agents };
        mesh.publish(&[])?;
        Ok(mesh)
    }

    /// Starts the CA on the first node, and gives each node a join token.
    pub(crate) fn start_ca(&mut self, world: &World) -> Done {
        let place = self.agents[0].place.clone();
        let config = self.folder.join("ca.yaml");
        let mut command = Command::new(&self.mantle);
        let mut ca = world.spawn("ca", &place, command.arg("ca").arg("--config").arg(&config))?;
        for agent in &self.agents {
            let token = self.folder.join(format!("token-{}", agent.node));
            let given = wait("the CA gives a join token", SOON, || {
                ca.check()?;
                // Until the CA has made its state, there is nothing to make a token from.
                Ok(shell::output(place_command(&place, &self.mantle).args(token_words(&config, agent.node))).ok())
            })?;
            fs::write(&token, given).context(token.display())?;
        }
        self.ca = Some(ca);
        Ok(())
    }

    /// Starts the agent of `self.agents[at]`, and returns at once.
    pub(crate) fn start_agent(&mut self, world: &World, at: usize) -> Done {
        let agent = &mut self.agents[at];
        // What the last process wrote must not be taken for the word of this one.
        remove(&self.folder.join(format!("status-{}.json", agent.node)))?;
        let command = agent.command(&self.mantle, &self.folder);
        agent.process = Some(world.spawn(&agent.process_name(), &agent.place, &command)?);
        Ok(())
    }

    /// Starts a successor of the agent of `self.agents[at]`, and returns when it serves and its predecessor has ended.
    pub(crate) fn replace_agent(&mut self, world: &World, at: usize) -> Done {
        let agent = &mut self.agents[at];
        let Some(predecessor) = agent.process.take() else {
            return Err(Failure::new(format!("{}: there is no agent to replace", agent.node)));
        };
        let took_over = |process: &Process| process.said().matches(TOOK_OVER).count();
        let before = took_over(&predecessor);
        let mut command = agent.command(&self.mantle, &self.folder);
        let successor = world.spawn(&agent.process_name(), &agent.place, command.arg("--take-over"))?;
        let successor = agent.process.insert(successor);
        wait("the successor serves", SOON, || {
            successor.check()?;
            Ok((took_over(successor) > before).then_some(()))
        })?;
        predecessor.ended(SOON)
    }

    /// The revision that was published last.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Ends an agent by `signal` and returns when its process is gone.
    pub(crate) fn end_agent(&mut self, at: usize, signal: Signal) -> Done {
        self.agents[at].process.take().map_or(Ok(()), |process| process.end(signal, SOON))
    }

    /// Writes the next revision of the directory: all `pods` for the agents, for the CA those that it is to know.
    pub(crate) fn publish(&mut self, pods: &[Pod]) -> Done<u64> {
        self.revision += 1;
        let known: Vec<Pod> = pods.iter().filter(|pod| pod.certified).cloned().collect();
        write(&self.folder.join("ca-directory.yaml"), &config::directory(self.revision, &known))?;
        write(&self.folder.join("directory.yaml"), &config::directory(self.revision, pods))?;
        Ok(self.revision)
    }

    /// Waits until `ready` of every agent's status, and fails early when a process has ended or the directory is bad.
    pub(crate) fn until(&mut self, what: &str, ready: impl Fn(&Status) -> bool) -> Done {
        wait(what, SOON, || {
            self.check()?;
            let mut all = true;
            for agent in &self.agents {
                let status = Status::read(&self.folder.join(format!("status-{}.json", agent.node)))?;
                all &= status.is_some_and(|status| ready(&status));
            }
            Ok(all.then_some(()))
        })
        .map_err(|failure| failure.before(self.statuses()))
    }

    /// Waits until both agents have `revision` and serve every pod that can be served.
    pub(crate) fn until_serving(&mut self, pods: &[Pod], revision: u64) -> Done {
        self.until("every agent serves its pods under the new revision", |status| {
            // A pod is in the status of its own node's agent only.
            let mut own = pods.iter().filter_map(|pod| Some((pod, status.state(&pod.uid)?)));
            own.all(|(pod, state)| state == "serving" || !pod.certified) && status.revision() >= revision
        })
    }

    /// Fails when a process of the mesh has ended by itself.
    pub(crate) fn check(&mut self) -> Done {
        let agents = self.agents.iter_mut().filter_map(|agent| agent.process.as_mut());
        self.ca.as_mut().into_iter().chain(agents).try_for_each(Process::check)
    }

    /// Every record that the agent has written.
    pub(crate) fn records(&self, at: usize) -> Done<Vec<Record>> {
        Record::read_all(&self.folder.join(format!("records-{}.jsonl", self.agents[at].node)))
    }

    /// The ids of the agents' processes.
    pub(crate) fn agent_ids(&self) -> Vec<u32> {
        self.agents.iter().filter_map(|agent| Some(agent.process.as_ref()?.id())).collect()
    }

    fn statuses(&self) -> String {
        let text = |agent: &Agent| {
            let path = self.folder.join(format!("status-{}.json", agent.node));
            let text = fs::read_to_string(path).unwrap_or_else(|_| "no status yet".to_owned());
            format!("{}: {}", agent.instance, text.trim())
        };
        self.agents.iter().map(text).collect::<Vec<_>>().join("\n")
    }
}

fn place_command(place: &Namespace, program: &Path) -> Command {
    place.command(&Command::new(program))
}

fn token_words(config: &Path, node: &str) -> [String; 6] {
    ["ca", "token", "--config", &config.display().to_string(), "--node", node].map(str::to_owned)
}

/// Writes a file that someone may be watching: at once or not at all.
fn write(path: &Path, text: &str) -> Done {
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh).context(fresh.display())?;
    file.write_all(text.as_bytes()).context(fresh.display())?;
    fs::rename(&fresh, path).context(path.display())
}

fn remove(path: &Path) -> Done {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::new(format!("{}: {error}", path.display()))),
        Ok(()) | Err(_) => Ok(()),
    }
}

//! A world with Mantle in it.

use crate::agent::{Agent, AgentSettings};
use crate::ca::Ca;
use crate::directory::{Directory, Mode};
use crate::wait;
use crate::world::{Pod, Side, World};

/// What tests set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long certificates live at most.
    pub leaf_ttl: &'static str,
    /// Both agents'.
    pub agent: AgentSettings,
}

/// The CA, an agent on each node, and the directory.
///
/// What uses the world is dropped before it.
#[derive(Debug)]
pub struct Mesh {
    /// The agents of nodes a and b.
    pub agents: [Agent; 2],
    /// The CA.
    pub ca: Ca,
    /// Who is where.
    pub directory: Directory,
    /// Nodes and pods.
    pub world: World,
}

impl Default for Settings {
    fn default() -> Self {
        Self { leaf_ttl: "12h", agent: AgentSettings::default() }
    }
}

impl Mesh {
    /// A CA and two agents that run, and no pods.
    pub fn start() -> Self {
        Self::start_with(&Settings::default())
    }

    /// A CA and two agents that run, and no pods.
    pub fn start_with(settings: &Settings) -> Self {
        let mut mesh = Self::prepare(settings);
        for agent in &mut mesh.agents {
            agent.start(&mesh.world);
        }
        mesh
    }

    /// A CA that runs, and two agents that are ready to be started.
    pub fn prepare(settings: &Settings) -> Self {
        let world = World::new();
        let directory = Directory::new(world.folder());
        let mut ca = Ca::new(&world, settings.leaf_ttl);
        ca.start(&world);
        let agents = [Side::A, Side::B].map(|side| Agent::new(&world, side, &settings.agent));
        for agent in &agents {
            agent.give_token(&ca.token(agent.node.name));
        }
        Self { agents, ca, directory, world }
    }

    /// The agent of a node.
    pub fn agent(&mut self, side: Side) -> &mut Agent {
        match side {
            Side::A => &mut self.agents[0],
            Side::B => &mut self.agents[1],
        }
    }

    /// Starts an agent again, and waits until it serves its pods as before.
    pub fn restart(&mut self, side: Side) {
        let Self { agents, world, .. } = self;
        agents[if side == Side::A { 0 } else { 1 }].start(world);
        self.in_force();
        self.until_serving();
    }

    /// Adds a pod that is enrolled and published before this returns.
    pub fn pod(&mut self, name: &str, side: Side) -> Pod {
        let pod = self.world.pod(name, side);
        self.enrol(&[&pod]);
        pod
    }

    /// Adds a pod that is strict from its first moment in the mesh.
    pub fn strict_pod(&mut self, name: &str, side: Side) -> Pod {
        let pod = self.pod(name, side);
        self.change(|directory| directory.entry(&pod).mode = Mode::Strict);
        pod
    }

    /// Lists pods' IPv6 addresses as well, and waits until they are served there.
    pub fn dual_stack(&mut self, pods: &[&Pod]) {
        self.change(|directory| {
            for pod in pods {
                directory.entry(pod).addresses.push(pod.address6.into());
            }
        });
        self.until_serving();
    }

    /// Enrols pods as an operator does: listed, then serving, then published, then in force everywhere.
    pub fn enrol(&mut self, pods: &[&Pod]) {
        self.change(|directory| {
            for pod in pods {
                directory.list(pod);
            }
        });
        self.until_serving();
        self.change(|directory| pods.iter().for_each(|pod| directory.entry(pod).serving = true));
    }

    /// Takes pods out again: withdrawn everywhere first, then removed.
    pub fn withdraw(&mut self, pods: &[&Pod]) {
        self.change(|directory| pods.iter().for_each(|pod| directory.entry(pod).serving = false));
        self.change(|directory| pods.iter().for_each(|pod| directory.remove(pod)));
    }

    /// Changes the directory, and waits until every agent that runs has it in force.
    #[track_caller]
    pub fn change(&mut self, change: impl FnOnce(&mut Directory)) {
        change(&mut self.directory);
        self.directory.publish();
        self.in_force();
    }

    /// Waits until every agent that runs has the directory's revision in force.
    #[track_caller]
    pub fn in_force(&mut self) {
        let revision = self.directory.revision();
        for agent in self.agents.iter_mut().filter(|agent| agent.has_process()) {
            wait::until("the agent has the directory's revision in force", || {
                let status = agent.status()?;
                assert_eq!(status.problem(), None, "{} reports a problem", agent.instance);
                (status.revision() >= revision).then_some(())
            });
        }
    }

    /// Waits until every agent that runs serves each of its pods that the CA knows.
    #[track_caller]
    pub fn until_serving(&mut self) {
        let entries = self.directory.entries.clone();
        for agent in self.agents.iter_mut().filter(|agent| agent.has_process()) {
            let own = entries.iter().filter(|entry| entry.node == agent.node.name && entry.certified);
            let uids: Vec<&str> = own.map(|entry| entry.uid.as_str()).collect();
            wait::until("the agent serves its pods", || {
                let status = agent.status()?;
                uids.iter().all(|uid| status.state_of(uid) == Some("serving")).then_some(())
            });
        }
    }
}

//! Hosts and pods: network namespaces, and the wires between them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use super::process;
use crate::shell::{self, Context as _, Done};

const NAMESPACES: &str = "/run/netns";

/// A network namespace with a name.
#[derive(Clone)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(super) fn make(name: String) -> Done<Self> {
        ip(&format!("netns add {name}"))?;
        let made = Self { name };
        made.ip("link set lo up")?;
        Ok(made)
    }

    /// The file by which the namespace is entered.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(NAMESPACES).join(&self.name)
    }

    /// `command`, inside this namespace. Only the network is entered: cgroups and bpffs stay in sight.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path().display())).arg("--");
        nsenter.arg(command.get_program()).args(command.get_args());
        nsenter.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        nsenter
    }

    /// Forwards packets, as a node does for its pods.
    pub(crate) fn forward(&self) -> Done {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        shell::output(&mut self.command(&shell)).map(drop)
    }

    /// Joins two nodes by a wire whose ends are both called `name`.
    pub(crate) fn join(&self, own: Ipv4Addr, other: &Self, others: Ipv4Addr, name: &str) -> Done {
        ip(&format!("link add {name} netns {} type veth peer name {name} netns {}", self.name, other.name))?;
        for (node, address) in [(self, own), (other, others)] {
            node.ip(&format!("address add {address}/24 dev {name}"))?;
            node.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Joins `pod` to this node: the pod gets `address`, and this node as its way to everywhere.
    pub(crate) fn adopt(&self, pod: &Self, address: Ipv4Addr, gateway: Ipv4Addr, name: &str) -> Done {
        ip(&format!("link add eth0 netns {} type veth peer name {name} netns {}", pod.name, self.name))?;
        self.ip(&format!("address add {gateway}/32 dev {name}"))?;
        self.ip(&format!("link set {name} up"))?;
        self.ip(&format!("route add {address}/32 dev {name}"))?;
        pod.ip(&format!("address add {address}/32 dev eth0"))?;
        pod.ip("link set eth0 up")?;
        pod.ip(&format!("route add {gateway}/32 dev eth0"))?;
        pod.ip(&format!("route add default via {gateway}"))
    }

    /// Sends what is for `network` by `gateway`.
    pub(crate) fn route(&self, network: &str, gateway: Ipv4Addr) -> Done {
        self.ip(&format!("route add {network} via {gateway}"))
    }

    /// Ends every process that is in here.
    pub(super) fn end_processes(&self) -> Done {
        let listed = shell::output(Command::new("ip").args(["netns", "pids", &self.name]))?;
        process::end(listed.split_whitespace().filter_map(|pid| pid.parse().ok()))
    }

    pub(super) fn remove(self) -> Done {
        ip(&format!("netns del {}", self.name))
    }

    fn ip(&self, words: &str) -> Done {
        ip(&format!("-n {} {words}", self.name))
    }
}

/// The namespaces of the world `name`.
pub(super) fn existing(name: &str) -> Done<Vec<Namespace>> {
    let prefix = format!("{name}-");
    // No folder: no namespace was ever given a name on this machine.
    let Ok(entries) = fs::read_dir(NAMESPACES) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.context(NAMESPACES)?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            found.push(Namespace { name });
        }
    }
    Ok(found)
}

fn ip(words: &str) -> Done {
    shell::output(Command::new("ip").args(words.split(' '))).map(drop)
}

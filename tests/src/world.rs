//! Two nodes, the wire between them, and pods.
//!
//! ```text
//! pod 10.78.1.n ─eth0── p1n ─┐ node-a 10.78.0.1 ──wire── wire── 10.78.0.2 node-b ┌─ p2n ──eth0─ pod 10.78.2.n
//! ```
//! Every world has these same addresses: they are in its own namespaces.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;

use crate::cgroup::Cgroup;
use crate::failure::Must as _;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::sweep::{self, Claim};

/// How many worlds there may be at once, whatever the number of test threads: every agent has programs at the one
/// cgroup root, and the kernel takes 64 there.
const WORLDS: usize = 4;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `node-a`
    A,
    /// `node-b`
    B,
}

/// A small network that lasts as long as this.
#[derive(Debug)]
pub struct World {
    name: String,
    claim: Claim,
    nodes: [Node; 2],
    pods: AtomicU32,
    _turn: Turn,
}

/// A host for pods.
#[derive(Clone, Debug)]
pub struct Node {
    /// Which one.
    pub side: Side,
    /// Its name in the directory.
    pub name: &'static str,
    /// Its address on the wire.
    pub address: Ipv4Addr,
    /// Its network.
    pub namespace: Namespace,
}

/// A pod, whose only way out is its node. Clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name in the directory, and its service account's.
    pub name: String,
    /// Its UID: no other pod of this run has it.
    pub uid: String,
    /// The node that it is on.
    pub side: Side,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its other address, which the directory lists for dual-stack pods only.
    pub address6: Ipv6Addr,
    /// Its network, with `eth0`.
    pub namespace: Namespace,
    /// The other end of `eth0`, on the node.
    pub interface: String,
}

impl Side {
    /// The node's name in the directory.
    pub fn node_name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    /// `a` or `b`.
    pub fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    /// The other node.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 1 or 2, as in addresses.
    fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }
}

impl World {
    /// Two nodes, joined, without pods.
    ///
    /// # Panics
    /// Without root.
    #[expect(clippy::new_without_default, reason = "a world is a heavy thing to make by default")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        prepare();
        let turn = Turn::wait();
        let name = format!("mt{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let claim = sweep::claim(&name);
        let nodes = [Side::A, Side::B].map(|side| Node::make(&name, side));
        let world = Self { name, claim, nodes, pods: AtomicU32::new(10), _turn: turn };
        world.join_nodes();
        world
    }

    /// The name with which everything of this world begins.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where this world's files are.
    pub fn folder(&self) -> &Path {
        &self.claim.folder
    }

    /// A node.
    pub fn node(&self, side: Side) -> &Node {
        match side {
            Side::A => &self.nodes[0],
            Side::B => &self.nodes[1],
        }
    }

    /// Adds a pod, with the next address of its node.
    pub fn pod(&self, name: &str, side: Side) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let last = u8::try_from(number).must("a world has room for 245 pods");
        self.pod_at(name, side, Ipv4Addr::new(10, 78, side.number(), last))
    }

    /// Adds a pod with this address; one that had it before must have been [removed](Pod::remove).
    pub fn pod_at(&self, name: &str, side: Side, address: Ipv4Addr) -> Pod {
        static UIDS: AtomicU32 = AtomicU32::new(1);
        let uid = UIDS.fetch_add(1, Ordering::Relaxed);
        let [.., last] = address.octets();
        let pod = Pod {
            name: name.to_owned(),
            uid: format!("{:08x}-0000-4000-8000-{uid:012x}", process::id()),
            side,
            address,
            address6: Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, side.number().into(), last.into()),
            namespace: Namespace::make(&format!("{}-{name}{uid}", self.name)),
            interface: format!("p{uid}"),
        };
        self.node(side).adopt(&pod);
        pod
    }

    /// Starts `program` with `words` in a namespace; its output goes to `<name>.log` in the folder.
    pub fn start(&self, name: &str, command: &mut Command) -> Process {
        Process::start(name, command, &self.log(name))
    }

    /// Makes a cgroup of this world's: `path` below the root, with the world's name before it.
    pub fn cgroup(&self, path: &str) -> Cgroup {
        Cgroup::make(&format!("{}-{path}", self.name))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.log"))
    }

    fn join_nodes(&self) {
        let [a, b] = &self.nodes;
        crate::namespace::ip(&format!(
            "link add wire netns {} type veth peer name wire netns {}",
            a.namespace.name(),
            b.namespace.name()
        ));
        for (own, other) in [(a, b), (b, a)] {
            own.namespace.ip(&format!("address add {}/24 dev wire", own.address));
            own.namespace.ip(&format!("-6 address add {}/64 dev wire nodad", own.address6()));
            own.namespace.ip("link set wire up");
            own.namespace.ip(&format!("route add {} via {}", other.network(), other.address));
            own.namespace.ip(&format!("-6 route add {} via {}", other.network6(), other.address6()));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let failed = thread::panicking();
        if failed {
            self.tell();
        }
        let problems = sweep::sweep(&self.name);
        assert!(failed || problems.is_empty(), "cannot clean up: {problems:?}");
    }
}

impl World {
    /// What the processes of a failed test said.
    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failed test")]
    fn tell(&self) {
        let Ok(entries) = std::fs::read_dir(self.folder()) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
            if ["log", "json", "jsonl"].contains(&kind) {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                eprintln!("--- {}\n{}", path.display(), text.trim_end());
            }
        }
    }
}

impl Node {
    fn make(world: &str, side: Side) -> Self {
        let namespace = Namespace::make(&format!("{world}-{}", side.letter()));
        namespace.set("net/ipv4/ip_forward", "1");
        namespace.set("net/ipv6/conf/all/forwarding", "1");
        Self { side, name: side.node_name(), address: Ipv4Addr::new(10, 78, 0, side.number()), namespace }
    }

    fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd78, 0, 0, 1, 0, 0, 0, self.side.number().into())
    }

    /// Its pods' addresses.
    fn network(&self) -> String {
        format!("10.78.{}.0/24", self.side.number())
    }

    fn network6(&self) -> String {
        format!("fd78::{}:0/112", self.side.number())
    }

    /// Joins a pod to this node.
    fn adopt(&self, pod: &Pod) {
        let (inside, interface) = (&pod.namespace, &pod.interface);
        crate::namespace::ip(&format!(
            "link add eth0 netns {} type veth peer name {interface} netns {}",
            inside.name(),
            self.namespace.name()
        ));
        let gateway = Ipv4Addr::new(169, 254, 1, 1);
        self.namespace.ip(&format!("address add {gateway}/32 dev {interface}"));
        self.namespace.ip(&format!("-6 address add fe80::1/64 dev {interface} nodad"));
        self.namespace.ip(&format!("link set {interface} up"));
        self.namespace.ip(&format!("route add {}/32 dev {interface}", pod.address));
        self.namespace.ip(&format!("-6 route add {}/128 dev {interface}", pod.address6));
        inside.ip(&format!("address add {}/32 dev eth0", pod.address));
        inside.ip(&format!("-6 address add {}/128 dev eth0 nodad", pod.address6));
        inside.ip("link set eth0 up");
        inside.ip(&format!("route add {gateway}/32 dev eth0"));
        inside.ip(&format!("route add default via {gateway}"));
        inside.ip("-6 route add default via fe80::1 dev eth0");
    }
}

impl Pod {
    /// Its address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// Its IPv6 address with a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.address6, port).into()
    }

    /// Sets a sysctl of its network; `name` is its path below `/proc/sys`.
    pub fn set(&self, name: &str, value: &str) {
        self.namespace.set(name, value);
    }

    /// Its identity under the trust domain of all tests.
    pub fn identity(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", crate::TRUST_DOMAIN, crate::POD_NAMESPACE, self.name)
    }

    /// Its name as records and status have it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", crate::POD_NAMESPACE, self.name)
    }

    /// Takes the pod away, as a node does that deletes it.
    pub fn remove(self) {
        self.namespace.ip("link del eth0");
        self.namespace.remove();
    }
}

/// What this process needs once.
fn prepare() {
    static ONCE: Once = Once::new();
    assert!(
        Uid::effective().is_root(),
        "the kernel tests load kernel programs and make network namespaces: run them as root (`cargo xtask test kernel`)"
    );
    ONCE.call_once(|| {
        sweep::sweep_dead();
        // A thousand connections have two ends here.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).must("cannot read the limit of open files");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).must("cannot raise the limit of open files");
    });
}

/// One of the [`WORLDS`] that there may be.
#[derive(Debug)]
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn wait() -> Self {
        let (taken, freed) = &TURNS;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = freed.wait_while(taken, |taken| *taken >= WORLDS).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (taken, freed) = &TURNS;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        freed.notify_one();
    }
}

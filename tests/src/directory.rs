//! The directory file, as an operator would keep it: one text for all, or one that differs by reader where a test is
//! about their disagreement.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::failure::Must as _;
use crate::world::{Pod, Side};

/// How a pod takes plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As ever.
    Permissive,
    /// Not at all.
    Strict,
    /// As ever, and its connections are not captured any more.
    Released,
}

/// What a pod's connections to the mesh do without an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// They are refused.
    Closed,
    /// They go in plaintext.
    Open,
}

/// Who reads a copy of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The CA.
    Ca,
    /// A node's agent.
    Agent(Side),
}

/// A pod, as the directory lists it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which pod.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// With the namespace its identity.
    pub service_account: String,
    /// Another cluster's, if it is not the own one.
    pub trust_domain: Option<String>,
    /// The node that it is on.
    pub node: String,
    /// The file of its network namespace.
    pub netns: PathBuf,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Permissive until it is changed.
    pub mode: Mode,
    /// Where it takes plaintext even so.
    pub plaintext_ports: Vec<u16>,
    /// Closed until it is changed.
    pub fail: Fail,
    /// Whether it is published.
    pub serving: bool,
    /// Whether the CA's copy has it.
    pub certified: bool,
}

/// A service, as the directory lists it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its addresses, each with the port at its endpoints.
    pub frontends: Vec<(SocketAddr, u16)>,
    /// Its pods' UIDs.
    pub pods: Vec<String>,
    /// Its plain endpoints.
    pub plain: Vec<String>,
}

/// What is published, and where.
#[derive(Debug)]
pub struct Directory {
    folder: PathBuf,
    revision: u64,
    /// The pods, in the order of the file.
    pub entries: Vec<Entry>,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
    /// The policies, each as the file has it, in braces.
    pub policies: Vec<String>,
}

impl Reader {
    const ALL: [Self; 3] = [Self::Ca, Self::Agent(Side::A), Self::Agent(Side::B)];

    /// Where this reader's copy is.
    pub(crate) fn path(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::Ca => "directory-ca.yaml".to_owned(),
            Self::Agent(side) => format!("directory-{}.yaml", side.letter()),
        })
    }
}

impl Entry {
    fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            service_account: pod.name.clone(),
            trust_domain: None,
            node: pod.side.node_name().to_owned(),
            netns: pod.namespace.path(),
            addresses: vec![pod.address.into()],
            mode: Mode::Permissive,
            plaintext_ports: Vec::new(),
            fail: Fail::Closed,
            serving: false,
            certified: true,
        }
    }

    fn write(&self, text: &mut String) {
        let mode = match self.mode {
            Mode::Permissive => "permissive",
            Mode::Strict => "strict",
            Mode::Released => "released",
        };
        let fail = match self.fail {
            Fail::Closed => "closed",
            Fail::Open => "open",
        };
        let Self { uid, name, service_account, node, addresses, plaintext_ports, serving, .. } = self;
        let (netns, namespace) = (self.netns.display(), crate::POD_NAMESPACE);
        let written = write!(
            text,
            "  - uid: {uid}\n    name: {name}\n    namespace: {namespace}\n    service_account: {service_account}\n    \
             node: {node}\n    netns: {netns}\n    addresses: {addresses:?}\n    mode: {mode}\n    \
             plaintext_ports: {plaintext_ports:?}\n    fail: {fail}\n    serving: {serving}\n"
        );
        written.must("text can always be appended");
        if let Some(domain) = &self.trust_domain {
            writeln!(text, "    trust_domain: {domain}").must("text can always be appended");
        }
    }
}

impl Service {
    /// A service without addresses and endpoints.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), frontends: Vec::new(), pods: Vec::new(), plain: Vec::new() }
    }

    /// With this address too.
    #[must_use]
    pub fn at(mut self, address: SocketAddr, target_port: u16) -> Self {
        self.frontends.push((address, target_port));
        self
    }

    /// With this pod of the directory behind it.
    #[must_use]
    pub fn with(mut self, pod: &Pod) -> Self {
        self.pods.push(pod.uid.clone());
        self
    }

    /// With this endpoint behind it, which is not enrolled.
    #[must_use]
    pub fn with_plain(mut self, endpoint: impl ToString) -> Self {
        self.plain.push(endpoint.to_string());
        self
    }

    /// As a reader sees it who knows these pods.
    fn write(&self, text: &mut String, known: &[Entry]) {
        let Self { name, plain, .. } = self;
        let pods: Vec<&String> = self.pods.iter().filter(|uid| known.iter().any(|entry| entry.uid == **uid)).collect();
        let mut frontends = String::new();
        for (at, target_port) in &self.frontends {
            let (ip, port) = (at.ip().to_string(), at.port());
            let written = writeln!(frontends, "      - {{address: {ip:?}, port: {port}, target_port: {target_port}}}");
            written.must("text can always be appended");
        }
        let written = write!(
            text,
            "  - name: {name}\n    namespace: {}\n    frontends:\n{frontends}    pods: {pods:?}\n    plain: {plain:?}\n",
            crate::POD_NAMESPACE
        );
        written.must("text can always be appended");
    }
}

impl Directory {
    /// A directory without pods, published.
    pub(crate) fn new(folder: &Path) -> Self {
        let (entries, services, policies) = (Vec::new(), Vec::new(), Vec::new());
        let mut directory = Self { folder: folder.to_owned(), revision: 0, entries, services, policies };
        directory.publish();
        directory
    }

    /// The revision that was published last.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Adds a pod: permissive, not published, known to the CA.
    pub fn list(&mut self, pod: &Pod) -> &mut Entry {
        self.entries.push(Entry::of(pod));
        self.entry(pod)
    }

    /// A pod's entry.
    ///
    /// # Panics
    /// If the pod is not listed.
    #[track_caller]
    pub fn entry(&mut self, pod: &Pod) -> &mut Entry {
        self.entries.iter_mut().find(|entry| entry.uid == pod.uid).must(format!("{} is not listed", pod.name))
    }

    /// Takes a pod out, of its services too.
    pub fn remove(&mut self, pod: &Pod) {
        self.entries.retain(|entry| entry.uid != pod.uid);
        self.services.iter_mut().for_each(|service| service.pods.retain(|uid| *uid != pod.uid));
    }

    /// A service.
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    pub fn service(&mut self, name: &str) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == name).must(format!("there is no service {name}"))
    }

    /// Writes the next revision for everyone. The CA's copy comes first: who asks it for a certificate has read that
    /// the pod is listed.
    pub fn publish(&mut self) -> u64 {
        self.publish_differing(|_, _| {})
    }

    /// Writes the next revision, after `change` of each reader's copy.
    pub fn publish_differing(&mut self, change: impl Fn(Reader, &mut Vec<Entry>)) -> u64 {
        self.revision += 1;
        for reader in Reader::ALL {
            let known = |entry: &&Entry| entry.certified || reader != Reader::Ca;
            let mut entries = self.entries.iter().filter(known).cloned().collect();
            change(reader, &mut entries);
            self.write_text(reader, &self.text(&entries));
        }
        self.revision
    }

    /// Writes any text as a reader's copy, at once or not at all.
    pub fn write_text(&self, reader: Reader, text: &str) {
        let path = reader.path(&self.folder);
        let fresh = path.with_extension("new");
        fs::write(&fresh, text).must(fresh.display());
        fs::rename(&fresh, &path).must(path.display());
    }

    fn text(&self, entries: &[Entry]) -> String {
        let Self { revision, services, policies, .. } = self;
        let mut text = format!("revision: {revision}\ntrust_domain: {}\n", crate::TRUST_DOMAIN);
        text.push_str(if entries.is_empty() { "pods: []\n" } else { "pods:\n" });
        for entry in entries {
            entry.write(&mut text);
        }
        text.push_str(if services.is_empty() { "services: []\n" } else { "services:\n" });
        for service in services {
            service.write(&mut text, entries);
        }
        text.push_str(if policies.is_empty() { "policies: []\n" } else { "policies:\n" });
        for policy in policies {
            writeln!(text, "  - {policy}").must("text can always be appended");
        }
        text
    }
}

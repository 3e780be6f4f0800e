//! `status.json`: what the directory's author may rely on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use agent_core::identity::PodUid;
use serde::{Serialize, Serializer};
use tracing::warn;

use super::connections::PodConnections;

/// How far a pod of this node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// The kernel's part is in place.
    Attached,
    /// It has a certificate as well.
    Certified,
    /// Its listeners are in their slots: it can be published.
    Serving,
    /// It is not enrolled; the reason says why.
    Refused,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodStatus {
    /// The pod.
    #[serde(serialize_with = "as_text")]
    pub uid: PodUid,
    /// `<namespace>/<name>`.
    pub pod: String,
    /// How far it has come.
    pub state: PodState,
    /// Why no further, where that is known.
    pub reason: Option<String>,
    /// Where it takes plaintext from anyone, also while it is strict.
    pub plaintext_ports: Vec<u16>,
}

/// What the kernel programs counted since the instance's pins were made, each by its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Connections that were refused.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Connections to the mesh, or into a strict pod, that passed in the clear because that was chosen.
    pub waivers: BTreeMap<&'static str, u64>,
    /// The connections beside the agent, by their pod's UID.
    pub connections: BTreeMap<String, PodConnections>,
    /// What the agent cannot do that was promised.
    pub warnings: Vec<String>,
    /// Records of connections that will never be written.
    pub records_lost: BTreeMap<&'static str, u64>,
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The directory revision in force, the kernel's part included.
    pub revision: u64,
    /// What keeps a newer one from being in force, if something does.
    pub problem: Option<String>,
    /// What was wrong with capture when it was looked at last, if something was.
    pub capture_problem: Option<String>,
    /// Each of the node's pods.
    pub pods: Vec<PodStatus>,
}

/// Whom this agent believes, and whether it would hear of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrustStatus {
    /// The CA's sequence that is in force; 0 before the CA has said anything.
    pub sequence: u64,
    /// Whether the CA would tell of a change now. If not, what was told last stays in force.
    pub connected: bool,
    /// Since when that is so, in seconds since 1970.
    pub since: u64,
    /// This node's clock less the CA's in milliseconds, as it was when the CA spoke last.
    pub skew_ms: Option<i64>,
    /// Why it is not connected, or why the CA's last word is not in force.
    pub problem: Option<String>,
}

#[derive(Serialize)]
struct Status<'a> {
    instance: &'a str,
    node: &'a str,
    revision: u64,
    problem: &'a Option<String>,
    capture_ok: bool,
    capture_problem: &'a Option<String>,
    trust: &'a TrustStatus,
    pods: &'a [PodStatus],
    #[serde(flatten)]
    counted: &'a Counted,
}

/// The status file. Readers see the old text or the new one, never a part.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    instance: String,
    node: String,
    written: Vec<u8>,
}

impl StatusFile {
    /// Nothing is written yet.
    pub fn new(path: &Path, instance: &str, node: &str) -> Self {
        Self { path: path.to_owned(), instance: instance.into(), node: node.into(), written: Vec::new() }
    }

    /// Somebody else may have written the file: the next status is written whether it has changed or not.
    pub fn forget(&mut self) {
        self.written.clear();
    }

    /// Writes the status if it has changed. A failure is logged, and tried again with the next change.
    pub fn write(&mut self, report: &Report, trust: &TrustStatus, counted: &Counted) {
        let Report { revision, problem, capture_problem, pods } = report;
        let (instance, node, capture_ok) = (&self.instance, &self.node, capture_problem.is_none());
        let revision = *revision;
        let status = Status { instance, node, revision, problem, capture_ok, capture_problem, trust, pods, counted };
        let Ok(mut text) = serde_json::to_vec(&status) else { return };
        text.push(b'\n');
        if text == self.written {
            return;
        }
        match replace(&self.path, &text) {
            Ok(()) => self.written = text,
            Err(error) => warn!(path = %self.path.display(), %error, "cannot write the status"),
        }
    }
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".status").tempfile_in(folder)?;
    file.write_all(text)?;
    file.persist(path)?;
    Ok(())
}

fn as_text<S: Serializer>(uid: &PodUid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(uid.as_str())
}

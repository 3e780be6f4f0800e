//! The CA's configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_core::document::{Node, Problems, Section, read};
use agent_core::identity::TrustDomain;

/// Everything that `ca.yaml` says.
#[derive(Clone, Debug)]
pub struct Config {
    /// The trust domain that this CA certifies.
    pub trust_domain: TrustDomain,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Keys, pins and tokens.
    pub state_dir: PathBuf,
    /// The CA's own copy of the directory file.
    pub directory: PathBuf,
    /// The longest life of a pod's certificate, and the one that is given if none is asked for.
    pub leaf_ttl: Duration,
}

impl Config {
    /// Reads `ca.yaml`. Relative paths are relative to `folder`, the file's own.
    ///
    /// # Errors
    /// Every mistake, each with its place and its fix.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Problems> {
        let root = read(text)?;
        let mut problems = Problems::default();
        let config = config(&root, folder, &mut problems);
        problems.or(config)
    }
}

fn config(root: &Node, folder: &Path, problems: &mut Problems) -> Option<Config> {
    let mut section = Section::of(root, "the configuration", problems)?;
    let trust_domain = section.required("trust_domain", problems);
    let listen = section.required("listen", problems);
    let state_dir = section.required("state_dir", problems);
    let directory = section.required("directory", problems);
    let leaf_ttl = section.optional("leaf_ttl");
    section.end(problems);
    let trust_domain: Option<TrustDomain> =
        trust_domain.and_then(|node| node.parse("`trust_domain`", str::parse, problems));
    let listen = listen.and_then(|node| node.socket_address("`listen`", problems));
    let state_dir = state_dir.and_then(|node| node.text("`state_dir`", problems)).map(|text| folder.join(text));
    let directory = directory.and_then(|node| node.text("`directory`", problems)).map(|text| folder.join(text));
    let twelve_hours = Duration::from_secs(12 * 60 * 60);
    let leaf_ttl = leaf_ttl.map_or(Some(twelve_hours), |node| node.duration("`leaf_ttl`", problems));
    Some(Config {
        trust_domain: trust_domain?,
        listen: listen?,
        state_dir: state_dir?,
        directory: directory?,
        leaf_ttl: leaf_ttl?,
    })
}

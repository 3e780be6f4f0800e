//! The CA's configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_core::document::{Node, Problems, Section, interpret};
use agent_core::identity::TrustDomain;

use crate::CaError;
use crate::limits::NodeLimit;
use crate::passphrase::Passphrase;
use crate::storage::Storage;

pub(crate) mod federation;

use self::federation::Settings;

/// No certificate is asked for, or given, for less.
const SHORTEST: Duration = Duration::from_secs(1);

/// Twice the pods that Kubernetes puts on a node.
const NODE_LIMIT: NodeLimit = NodeLimit { burst: 220, per_second: 5 };

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
    /// How many certificates one node may ask for.
    pub node_limit: NodeLimit,
    /// Where the passphrase of the CA's keys is, if they are under one.
    pub key_passphrase: Option<Passphrase>,
    /// How it meets other clusters' CAs.
    pub federation: Settings,
}

impl Config {
    /// Reads `ca.yaml`. Relative paths are relative to `folder`, the file's own.
    ///
    /// # Errors
    /// Every mistake, each with its place and its fix.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Problems> {
        interpret(text, |root, problems| config(root, folder, problems))
    }

    /// The state directory, made if it is not there.
    pub(crate) fn storage(&self) -> Result<Storage, CaError> {
        Ok(Storage::open(&self.state_dir)?.under(self.key_passphrase.clone()))
    }
}

fn config(root: &Node, folder: &Path, problems: &mut Problems) -> Option<Config> {
    let mut section = Section::of(root, "the configuration", problems)?;
    let trust_domain = section.required("trust_domain", problems);
    let listen = section.required("listen", problems);
    let state_dir = section.required("state_dir", problems);
    let directory = section.required("directory", problems);
    let leaf_ttl = section.optional("leaf_ttl");
    let node_limit = section.optional("node_limit");
    let (file, variable) = (section.optional("key_passphrase_file"), section.optional("key_passphrase_env"));
    let federation = section.optional("federation");
    section.end(problems);
    let federation = federation.map_or(Some(Settings::default()), |node| Settings::read(node, folder, problems));
    let trust_domain: Option<TrustDomain> =
        trust_domain.and_then(|node| node.parse("`trust_domain`", str::parse, problems));
    let listen = listen.and_then(|node| node.socket_address("`listen`", problems));
    let state_dir = state_dir.and_then(|node| node.text("`state_dir`", problems)).map(|text| folder.join(text));
    let directory = directory.and_then(|node| node.text("`directory`", problems)).map(|text| folder.join(text));
    let twelve_hours = Duration::from_secs(12 * 60 * 60);
    let leaf_ttl = leaf_ttl.map_or(Some(twelve_hours), |node| node.duration_from(SHORTEST, "`leaf_ttl`", problems));
    let node_limit = node_limit.map_or(Some(NODE_LIMIT), |node| read_limit(node, problems));
    let key_passphrase = passphrase(file, variable, folder, problems);
    Some(Config {
        trust_domain: trust_domain?,
        listen: listen?,
        state_dir: state_dir?,
        directory: directory?,
        leaf_ttl: leaf_ttl?,
        node_limit: node_limit?,
        key_passphrase: key_passphrase?,
        federation: federation?,
    })
}

/// At most one of both.
fn passphrase(
    file: Option<&Node>,
    variable: Option<&Node>,
    folder: &Path,
    problems: &mut Problems,
) -> Option<Option<Passphrase>> {
    match (file, variable) {
        (None, None) => Some(None),
        (Some(file), None) => {
            file.text("`key_passphrase_file`", problems).map(|path| Some(Passphrase::File(folder.join(path))))
        }
        (None, Some(name)) => {
            name.text("`key_passphrase_env`", problems).map(|name| Some(Passphrase::Environment(name.to_owned())))
        }
        (Some(_), Some(name)) => {
            problems.add(name.place, "`key_passphrase_env` is given beside `key_passphrase_file`: keep one of them");
            None
        }
    }
}

fn read_limit(node: &Node, problems: &mut Problems) -> Option<NodeLimit> {
    let mut section = Section::of(node, "`node_limit`", problems)?;
    let (burst, per_second) = (section.optional("burst"), section.optional("per_second"));
    section.end(problems);
    let number = |text: &str| match text.parse() {
        Ok(number @ 1..=1_000_000_u32) => Ok(number),
        _ => Err("must be a whole number from 1 to 1000000"),
    };
    let burst = burst.map_or(Some(NODE_LIMIT.burst), |node| node.parse("`burst`", number, problems));
    let per_second =
        per_second.map_or(Some(NODE_LIMIT.per_second), |node| node.parse("`per_second`", number, problems));
    Some(NodeLimit { burst: burst?, per_second: per_second? })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const GOOD: &str = "
trust_domain: demo.mantle
listen: 10.77.0.1:15012
state_dir: state
directory: /srv/directory.yaml
";

    fn check(text: &str, expect: &[&str]) {
        let problems = Config::parse(text, Path::new("/etc/mantle")).unwrap_err().to_string();
        let found: Vec<&str> = problems.lines().map(str::trim).collect();
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn a_configuration_is_read_and_paths_are_relative_to_its_file() {
        let read = |text: &str| Config::parse(text, Path::new("/etc/mantle")).unwrap();
        let config = read(GOOD);
        assert_eq!(config.trust_domain.as_str(), "demo.mantle");
        assert_eq!(config.listen, "10.77.0.1:15012".parse().unwrap());
        assert_eq!(config.state_dir, Path::new("/etc/mantle/state"));
        assert_eq!(config.directory, Path::new("/srv/directory.yaml"));
        assert_eq!(config.leaf_ttl, Duration::from_secs(12 * 60 * 60));
        assert_eq!(read(&format!("{GOOD}leaf_ttl: 6s\n")).leaf_ttl, Duration::from_secs(6));
        let passphrase = read(&format!("{GOOD}key_passphrase_file: passphrase\n")).key_passphrase;
        assert_eq!(passphrase, Some(Passphrase::File("/etc/mantle/passphrase".into())));
        assert_eq!(config.node_limit, NODE_LIMIT);
        let limit = read(&format!("{GOOD}node_limit: {{burst: 7}}\n")).node_limit;
        assert_eq!(limit, NodeLimit { burst: 7, ..NODE_LIMIT });
        check(
            &format!("{GOOD}node_limit: {{burst: 0}}\n"),
            &["line 6:21: `burst`: must be a whole number from 1 to 1000000 (found `0`)"],
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        check(
            "trust_domain: Demo\nlisten: 15012\nstate_dir: {}\nleaf_tll: 1h\nlisten: x\n",
            &[
                "line 1:1: `directory` is missing",
                "line 1:15: `trust_domain`: the trust domain is empty or has a character outside [a-z0-9._-] (found `Demo`)",
                "line 2:9: `listen`: must be an IP address and a port, such as 10.0.0.1:15012 (found `15012`)",
                "line 3:12: `state_dir` must be text",
                "line 4:1: unknown key `leaf_tll`; did you mean `leaf_ttl`?",
                "line 5:1: `listen` is given twice",
            ],
        );
    }

    #[test]
    fn a_certificate_lives_neither_no_time_nor_for_ever() {
        for (life, problem) in [
            ("0s", "must be 1s or longer"),
            ("999ms", "must be 1s or longer"),
            ("87601h", "must be at most 87600h, which is ten years"),
        ] {
            let expect = format!("line 6:11: `leaf_ttl`: {problem} (found `{life}`)");
            check(&format!("{GOOD}leaf_ttl: {life}\n"), &[&expect]);
        }
    }
}

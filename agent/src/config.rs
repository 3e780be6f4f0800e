//! The agent's configuration: what was written, then what it means.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use agent_core::document::{Node, Problems, Section, interpret};
use agent_core::identity::TrustDomain;

use crate::capture::CaptureConfig;
use crate::identity::IdentityConfig;
use crate::legacy::LegacyConfig;

pub use agent_core::document::parse_duration;

/// Everything that `agent.yaml` says; each part has its own slice.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name in the directory.
    pub node: String,
    /// The trust domain of this node's pods.
    pub trust_domain: TrustDomain,
    /// The directory file.
    pub directory: PathBuf,
    /// Where the status is written.
    pub status: PathBuf,
    /// Where records are appended; `-` is standard output.
    pub records: PathBuf,
    /// How long connections have to end after SIGTERM.
    pub drain: Duration,
    /// How often capture is looked at and probed.
    pub watchdog: Duration,
    /// Where metrics are shown to whoever asks; nowhere if unset.
    pub metrics: Option<SocketAddr>,
    /// The kernel's part.
    pub capture: CaptureConfig,
    /// Certificates.
    pub identity: IdentityConfig,
    /// Connections that are older than an enrolment.
    pub legacy: LegacyConfig,
    /// Tunnels.
    pub tunnel: TunnelConfig,
}

mod legacy;

/// The far end closes a tunnel that has been idle for 60 s, and must never be the first.
const LONGEST_IDLE: Duration = Duration::from_secs(45);

/// A look at capture takes some milliseconds.
const OFTEN_ENOUGH: Duration = Duration::from_millis(100);

/// What `unknown` can say: whether pods that are not classified may connect to the mesh.
const UNKNOWN: [(&str, bool); 2] = [("refuse", false), ("allow", true)];

/// How tunnels are used.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Connections that one tunnel may carry, one after the other; 0 = no limit.
    pub max_uses: u32,
    /// How long an idle tunnel is kept.
    pub idle: Duration,
    /// How old a connection may get, and a tunnel that takes another one; no limit if unset.
    pub max_age: Option<Duration>,
}

impl Config {
    /// Reads `agent.yaml`. Relative paths are relative to `folder`, the file's own.
    ///
    /// # Errors
    /// Every mistake, each with its place and its fix.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Problems> {
        interpret(text, |root, problems| config(root, folder, problems))
    }
}

fn config(root: &Node, folder: &Path, problems: &mut Problems) -> Option<Config> {
    let mut section = Section::of(root, "the configuration", problems)?;
    let capture = capture_config(&mut section, folder, problems);
    let node = section.required("node", problems);
    let trust_domain = section.required("trust_domain", problems);
    let directory = section.required("directory", problems);
    let status = section.required("status", problems);
    let records = section.required("records", problems);
    let state_dir = section.required("state_dir", problems);
    let ca = section.required("ca", problems);
    let legacy = section.optional("legacy");
    let tunnel = section.optional("tunnel");
    let drain = section.optional("drain");
    let watchdog = section.optional("watchdog");
    let metrics = section.optional("metrics");
    section.end(problems);

    let mut path = |node: &Node, what: &str| node.text(what, problems).map(|text| folder.join(text));
    let directory = directory.and_then(|node| path(node, "`directory`"));
    let status = status.and_then(|node| path(node, "`status`"));
    let state_dir = state_dir.and_then(|node| path(node, "`state_dir`"));
    let records = records.and_then(|node| node.text("`records`", problems)).map(|text| match text {
        "-" => PathBuf::from("-"),
        path => folder.join(path),
    });
    let node = node.and_then(|node| node.parse("`node`", node_name, problems));
    let trust_domain: Option<TrustDomain> =
        trust_domain.and_then(|node| node.parse("`trust_domain`", str::parse, problems));
    let tunnel = tunnel_config(tunnel, problems);
    let drain = drain.map_or(Some(Duration::from_secs(30)), |node| node.duration("`drain`", problems));
    let legacy = legacy::read(legacy, state_dir.as_deref(), problems);
    let watchdog =
        watchdog.map_or(Some(Duration::from_secs(10)), |node| node.duration_from(OFTEN_ENOUGH, "`watchdog`", problems));
    let metrics = metrics.map(|node| node.socket_address("`metrics`", problems));
    let ca = ca.and_then(|node| ca_section(node, folder, problems));
    let (node, trust_domain, (ca_address, join_token_file, ttl)) = (node?, trust_domain?, ca?);
    Some(Config {
        directory: directory?,
        status: status?,
        records: records?,
        drain: drain?,
        watchdog: watchdog?,
        metrics: metrics.map_or(Some(None), |address| address.map(Some))?,
        capture: capture?,
        legacy: legacy?,
        identity: IdentityConfig {
            node: node.clone(),
            trust_domain: trust_domain.clone(),
            state_dir: state_dir?,
            ca_address,
            join_token_file,
            ttl,
        },
        tunnel: tunnel?,
        node,
        trust_domain,
    })
}

fn capture_config(section: &mut Section<'_>, folder: &Path, problems: &mut Problems) -> Option<CaptureConfig> {
    let instance = section.required("instance", problems);
    let run_dir = section.optional("run_dir");
    let bpffs = section.optional("bpffs");
    let cgroup = section.optional("cgroup");
    let node_netns = section.optional("node_netns");
    let pods_cgroup = section.optional("pods_cgroup");
    let unknown = section.optional("unknown");

    let mut path = |node: &Node, what: &str| node.text(what, problems).map(|text| folder.join(text));
    let run_dir = run_dir.map_or(Some("/run/mantle".into()), |node| path(node, "`run_dir`"));
    let bpffs = bpffs.map_or(Some("/sys/fs/bpf".into()), |node| path(node, "`bpffs`"));
    let cgroup = cgroup.map(|node| path(node, "`cgroup`"));
    let node_netns = node_netns.map_or(Some("/proc/1/ns/net".into()), |node| path(node, "`node_netns`"));
    let pods_cgroup = pods_cgroup.map(|node| node.parse("`pods_cgroup`", below_root, problems));
    let unknown = unknown.map_or(Some(false), |node| node.choice("`unknown`", &UNKNOWN, problems));
    let instance = instance.and_then(|node| node.parse("`instance`", instance_name, problems));
    Some(CaptureConfig {
        instance: instance?,
        bpffs: bpffs?,
        run_dir: run_dir?,
        cgroup: cgroup.map_or(Some(None), |path| path.map(Some))?,
        node_netns: node_netns?,
        pods_cgroup: pods_cgroup.map_or(Some(None), |path| path.map(Some))?,
        allow_unknown: unknown?,
    })
}

type Ca = (SocketAddr, Option<PathBuf>, Option<Duration>);

fn ca_section(node: &Node, folder: &Path, problems: &mut Problems) -> Option<Ca> {
    let mut section = Section::of(node, "`ca`", problems)?;
    let address = section.required("address", problems);
    let token = section.optional("join_token_file");
    let ttl = section.optional("ttl");
    section.end(problems);
    let address = address.and_then(|node| node.socket_address("`ca.address`", problems));
    let token = token.map(|node| node.text("`ca.join_token_file`", problems).map(|text| folder.join(text)));
    let ttl = ttl.map(|node| node.duration("`ca.ttl`", problems));
    Some((address?, token.map_or(Some(None), |path| path.map(Some))?, ttl.map_or(Some(None), |ttl| ttl.map(Some))?))
}

fn tunnel_config(node: Option<&Node>, problems: &mut Problems) -> Option<TunnelConfig> {
    let defaults = TunnelConfig { max_uses: 0, idle: Duration::from_secs(15), max_age: None };
    let Some(node) = node else { return Some(defaults) };
    let mut section = Section::of(node, "`tunnel`", problems)?;
    let max_uses = section.optional("max_uses");
    let idle = section.optional("idle");
    let max_age = section.optional("max_age");
    section.end(problems);
    let small = |text: &str| text.parse::<u32>().map_err(|_| "must be a whole number, 0 (no limit) or more");
    let max_uses = max_uses.map_or(Some(0), |node| node.parse("`tunnel.max_uses`", small, problems));
    let idle = idle.map_or(Some(defaults.idle), |node| node.duration_up_to(LONGEST_IDLE, "`tunnel.idle`", problems));
    let max_age = max_age.map_or(Some(None), |node| node.duration("`tunnel.max_age`", problems).map(Some));
    Some(TunnelConfig { max_uses: max_uses?, idle: idle?, max_age: max_age? })
}

/// A cgroup's path as a path below the cgroup2 root.
fn below_root(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text.trim_start_matches('/'));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && path != Path::new("") {
        Ok(path.to_owned())
    } else {
        Err("must be a path below the cgroup2 root, such as /kubepods")
    }
}

/// A part of file names: it must not lead anywhere else.
fn instance_name(text: &str) -> Result<String, &'static str> {
    let allowed = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if allowed && text.len() <= 32 { Ok(text.to_owned()) } else { Err("must be 1 to 32 of a-z, 0-9 and `-`") }
}

fn node_name(text: &str) -> Result<String, &'static str> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    if text.bytes().all(allowed) && text.len() <= 253 {
        Ok(text.to_owned())
    } else {
        Err("must be a node's name: lower-case letters, digits, `-` and `.`")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const GOOD: &str = "
instance: node-a
node: node-a
trust_domain: demo.mantle
directory: directory.yaml
status: /var/lib/mantle/status.json
records: '-'
state_dir: state
ca:
  address: 10.77.0.1:15012
  join_token_file: token
tunnel:
  max_uses: 1
  max_age: 8h
";

    #[test]
    fn a_configuration_is_read_and_paths_are_relative_to_its_file() {
        let config = Config::parse(GOOD, Path::new("/etc/mantle")).unwrap();
        assert_eq!(config.directory, Path::new("/etc/mantle/directory.yaml"));
        assert_eq!(config.status, Path::new("/var/lib/mantle/status.json"));
        assert_eq!(config.records, Path::new("-"));
        assert_eq!(config.identity.join_token_file.as_deref(), Some(Path::new("/etc/mantle/token")));
        assert_eq!((config.tunnel.max_uses, config.tunnel.idle), (1, Duration::from_secs(15)));
        assert_eq!(config.tunnel.max_age, Some(Duration::from_secs(8 * 3600)));
        assert_eq!(config.capture.bpffs, Path::new("/sys/fs/bpf"));
        assert_eq!((config.capture.pods_cgroup, config.capture.allow_unknown), (None, false));
        let watched = Config::parse(&format!("{GOOD}pods_cgroup: /kubepods.slice\n"), Path::new("/")).unwrap();
        assert_eq!(watched.capture.pods_cgroup.as_deref(), Some(Path::new("kubepods.slice")));
    }

    #[test]
    fn metrics_are_shown_where_the_configuration_says_and_nowhere_else() {
        let read = |more: &str| Config::parse(&format!("{GOOD}{more}"), Path::new("/"));
        assert_eq!(read("").unwrap().metrics, None);
        assert_eq!(read("metrics: 127.0.0.1:15020\n").unwrap().metrics, Some(([127, 0, 0, 1], 15020).into()));
        let error = read("metrics: 15020\n").unwrap_err().to_string();
        assert!(error.contains("`metrics`: must be an IP address and a port"), "{error}");
    }

    #[test]
    fn the_examples_that_we_ship_are_right() {
        let etc = Path::new("/etc/mantle");
        let agent = Config::parse(include_str!("../../deploy/agent.yaml"), etc).unwrap();
        let ca = ca::config::Config::parse(include_str!("../../deploy/ca.yaml"), etc).unwrap();
        let directory = agent_core::directory::parse(include_str!("../../deploy/directory.yaml")).unwrap();
        assert_eq!(&agent.trust_domain, directory.trust_domain());
        assert_eq!(ca.trust_domain, agent.trust_domain);
        assert_eq!(ca.listen, agent.identity.ca_address);
        assert_eq!(directory.pods_on(&agent.node).count(), 1);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = GOOD
            .replace("instance: node-a", "instance: ../x")
            .replace("10.77.0.1:15012", "ca.example")
            .replace("max_uses: 1", "max_use: 1\n  idle: 46s")
            .replace("state_dir: state\n", "pods_cgroup: /../x\nunknown: ask\n");
        let problems = Config::parse(&text, Path::new("/")).unwrap_err().to_string();
        let found: Vec<&str> = problems.lines().map(str::trim).collect();
        assert_eq!(
            found,
            [
                "line 2:1: `state_dir` is missing",
                "line 2:11: `instance`: must be 1 to 32 of a-z, 0-9 and `-` (found `../x`)",
                "line 8:14: `pods_cgroup`: must be a path below the cgroup2 root, such as /kubepods (found `/../x`)",
                "line 9:10: `unknown`: must be one of: refuse, allow (found `ask`)",
                "line 11:12: `ca.address`: must be an IP address and a port, such as 10.0.0.1:15012 (found `ca.example`)",
                "line 14:3: unknown key `max_use`; did you mean `max_uses`?",
                "line 15:9: `tunnel.idle`: must be 45s or shorter (found `46s`)",
            ]
        );
    }
}

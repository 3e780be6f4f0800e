//! A private key is in the memory of who needs it, while it is needed, and nowhere else.
//!
//! The tests look into the agent's memory as root, find the keys there by their encoding, and know whose they are by the
//! CA's audit.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use agent_tests::memory::{Key, keys_in, places, writable};
use agent_tests::traffic::{self, Server};
use agent_tests::{AgentSettings, Mesh, Settings, Side, wait};
use nix::sys::signal::Signal;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

/// What comes before a P-256 point in a SubjectPublicKeyInfo.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// As its unit grants them; without CAP_SYS_PTRACE, which would look past everything.
const AGENTS_RIGHTS: &str = "-all,+bpf,+perfmon,+net_admin,+sys_admin";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash by which the CA's audit names a key.
fn name(key: &Key) -> String {
    hex(&Sha256::digest([&SPKI[..], &key.point].concat()))
}

fn keys_of(pid: u32) -> Vec<Key> {
    let mut keys: Vec<Key> = writable(pid).iter().flat_map(|piece| keys_in(piece)).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// The hashes of the keys that the CA has certified for a pod, in their order.
fn certified(mesh: &Mesh, uid: &str) -> Vec<String> {
    let said = mesh.ca.said();
    let lines = said.lines().filter(|line| ["audit", "issued", uid].iter().all(|word| line.contains(word)));
    let hash = |line: &str| {
        line.split(|letter: char| !letter.is_ascii_hexdigit()).find(|word| word.len() == 64).map(str::to_owned)
    };
    lines.filter_map(hash).collect()
}

/// The key that an agent uses for a pod now, and how many the pod has had. Of that one it has what it needs and no more: the
/// PKCS#8 for a successor, and aws-lc's.
fn current(mesh: &Mesh, side: Side, uid: &str) -> (Key, usize) {
    let agent = &mesh.agents[usize::from(side == Side::B)];
    let (key, count, copies) = wait::until("the pod's key is in use", || {
        let certified = certified(mesh, uid);
        let told = agent.certs();
        let row = told["certificates"].as_array()?.iter().find(|row| row["uid"] == uid)?;
        // Its serial number is in the line that names the key.
        let is_used = mesh.ca.said().lines().any(|line| {
            [certified.last().unwrap().as_str(), row["serial"].as_str().unwrap_or("none")]
                .iter()
                .all(|word| line.contains(word))
        });
        let key = keys_of(agent.pid()).into_iter().find(|key| Some(&name(key)) == certified.last())?;
        let copies = key.copies_in(agent.pid());
        is_used.then_some((key, certified.len(), copies))
    });
    assert_eq!(copies, 2, "a copy is left behind, or is missing");
    (key, count)
}

/// A process that sleeps, with no more than these rights.
struct Sleeper(Child);

impl Sleeper {
    fn start(rights: &str) -> Self {
        Self(confined(rights).args(["sleep", "600"]).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn confined(rights: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", &format!("--bounding-set={rights}"), "--"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Whether somebody of the same user and with the same rights may look into a process. Root's capability to do so is not among
/// them, so that the kernel goes by whether the process is dumpable: here as for its memory and for ptrace(2).
fn may_look(rights: &str, pid: u32) -> [bool; 3] {
    let looks = |what: &str| confined(rights).args(["readlink", &format!("/proc/{pid}/{what}")]).status().unwrap();
    ["exe", "cwd", "ns/net"].map(|what| looks(what).success())
}

fn cannot_be_dumped(rights: &str, pid: u32) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().rev().skip(1).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    let other = Sleeper::start(rights);
    let control = || (may_look(rights, other.0.id()) == [true; 3]).then_some(());
    wait::until("the control: another process can be looked at", control);
    assert_eq!(may_look(rights, pid), [false; 3]);
}

fn left_no_core(status: ExitStatus) {
    assert_eq!((status.signal(), status.core_dumped()), (Some(Signal::SIGABRT as i32), false), "{status}");
}

#[test]
fn neither_agent_nor_ca_leaves_a_core_or_can_be_looked_into() {
    let agent = AgentSettings { capabilities: Some(AGENTS_RIGHTS), ..AgentSettings::default() };
    let mut mesh = Mesh::prepare(&Settings { agent, ..Settings::default() });
    {
        let Mesh { agents, ca, world, .. } = &mut mesh;
        ca.kill();
        ca.start_confined(world);
        agents[0].start(world);
    }
    mesh.pod("client", Side::A);
    cannot_be_dumped(AGENTS_RIGHTS, mesh.agents[0].pid());
    cannot_be_dumped("-all", mesh.ca.pid());
    left_no_core(mesh.ca.end_by(Signal::SIGABRT));
    mesh.agents[0].signal(Signal::SIGABRT);
    left_no_core(mesh.agents[0].ended());
}

/// A secret as somebody might write it.
fn writings(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let decimal = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let mut writings = vec![
        ("raw", secret.to_vec()),
        ("hex", hex(secret).into_bytes()),
        ("upper-case hex", hex(secret).to_uppercase().into_bytes()),
        ("Debug", decimal.into_bytes()),
    ];
    // Where it begins within a group of three bytes is not known: what is the same whatever stands around it.
    writings.extend((0..3).map(|skipped| ("base64", base64(&secret[skipped..]))));
    writings
}

/// The groups that are whole.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| LETTERS[bits >> shift & 63])
    };
    bytes.chunks_exact(3).flat_map(group).collect()
}

/// By which writing the secret is in `text`, if it is.
fn shown(secret: &[u8], text: &[u8]) -> Option<&'static str> {
    // PEM breaks its lines.
    let unbroken: Vec<u8> = text.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect();
    let is_there = |writing: &[u8]| !places(text, writing).is_empty() || !places(&unbroken, writing).is_empty();
    writings(secret).into_iter().find(|(_, writing)| is_there(writing)).map(|(name, _)| name)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let below = |entry: fs::DirEntry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => files_below(&entry.path()),
        kind if kind.is_file() => vec![entry.path()],
        _ => Vec::new(),
    };
    entries.flat_map(below).collect()
}

/// Where keys of the node's and of the CA's are meant to lie.
fn is_home(path: &Path) -> bool {
    path.ends_with("node.key") || path.extension().is_some_and(|kind| kind == "pem")
}

#[test]
fn no_key_is_in_anything_that_is_written_or_told() {
    let agent = AgentSettings { log: "trace", ..AgentSettings::default() }.with_metrics();
    let mut mesh = Mesh::prepare(&Settings { leaf_ttl: "6s", agent });
    {
        let Mesh { agents, ca, world, .. } = &mut mesh;
        ca.kill();
        ca.start_logging(world, "trace");
        agents.iter_mut().for_each(|agent| agent.start(world));
    }
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut keys: Vec<Key> = Vec::new();
    let look = |mesh: &Mesh, keys: &mut Vec<Key>| {
        keys.extend(mesh.agents.iter().map(|agent| agent.pid()).chain([mesh.ca.pid()]).flat_map(keys_of));
        keys.sort();
        keys.dedup();
    };
    let mut told = Vec::new();
    for _ in 0..3 {
        look(&mesh, &mut keys);
        let known = certified(&mesh, &client.uid).len();
        wait::until("the pod has another key", || (certified(&mesh, &client.uid).len() > known).then_some(()));
        traffic::ask(&client, web.at(80), b"hello").unwrap();
        let agent = &mesh.agents[0];
        told.extend([agent.operate(&["certs"]).stdout, agent.certs().to_string().into_bytes()]);
        told.push(agent.metrics().text().as_bytes().to_vec());
        let Mesh { agents, world, .. } = &mut mesh;
        drop(agents[0].take_over(world));
    }
    look(&mesh, &mut keys);
    let names: Vec<String> = keys.iter().map(name).collect();
    let ours = certified(&mesh, &client.uid).into_iter().filter(|key| names.contains(key)).count();
    assert!(ours >= 2, "{ours} of the pod's keys were seen in memory");
    let files = files_below(mesh.world.folder());
    let homes = |path: &&PathBuf| is_home(path);
    let mut at_home: Vec<&PathBuf> = Vec::new();
    for home in files.iter().filter(homes) {
        let text = fs::read(home).unwrap();
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text).map(|key| key.secret_pkcs8_der().to_vec());
        let [key] = &keys_in(der.as_deref().unwrap_or(&text))[..] else { continue };
        assert!(shown(&key.secret, &text).is_some(), "the control: {}", home.display());
        keys.push(key.clone());
        at_home.push(home);
    }
    assert_eq!(at_home.len(), 4, "the nodes' keys, the root's and the issuing CA's: {at_home:?}");
    for key in &keys {
        for file in files.iter().filter(|path| !is_home(path)) {
            assert_eq!(shown(&key.secret, &fs::read(file).unwrap()), None, "{}", file.display());
        }
        for answer in &told {
            assert_eq!(shown(&key.secret, answer), None, "{}", String::from_utf8_lossy(answer));
        }
    }
}

#[test]
fn the_search_finds_what_is_written_in_any_way() {
    let secret: Vec<u8> = (0..32).map(|byte: u8| byte.wrapping_mul(37)).collect();
    let debug = format!("Key({secret:?})").into_bytes();
    assert_eq!(shown(&secret, &debug), Some("Debug"));
    assert_eq!(shown(&secret, hex(&secret).as_bytes()), Some("hex"));
    assert_eq!(shown(&secret, &[b"x", &secret[..], b"y"].concat()), Some("raw"));
    for before in 0..3 {
        let text = base64(&[&vec![b'x'; before][..], &secret, b"yyy"].concat());
        let broken = [&text[..20], b"\n", &text[20..]].concat();
        assert_eq!(shown(&secret, &broken), Some("base64"), "{before}");
    }
    assert_eq!(shown(&secret, &secret[..31]), None);
}

#[test]
fn a_key_that_was_replaced_is_in_no_memory_any_more() {
    let mut mesh = Mesh::start_with(&Settings { leaf_ttl: "8s", ..Settings::default() });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let pid = mesh.agents[0].pid();
    for _ in 0..3 {
        let (key, count) = current(&mesh, Side::A, &client.uid);
        traffic::ask(&client, web.at(80), b"hello").unwrap();
        wait::until("it is replaced", || (certified(&mesh, &client.uid).len() > count).then_some(()));
        wait::until("nothing is left of it", || (key.copies_in(pid) == 0).then_some(()));
    }
    let (key, _) = current(&mesh, Side::A, &client.uid);
    mesh.withdraw(&[&client]);
    wait::until("nothing is left of it once its pod is gone", || (key.copies_in(pid) == 0).then_some(()));
}

/// A key crosses from one process to the other as text.
#[test]
fn a_key_that_was_handed_over_is_where_it_is_used_and_nowhere_else() {
    let agent = AgentSettings { drain: "60s", ..AgentSettings::default() };
    let mut mesh = Mesh::start_with(&Settings { leaf_ttl: "12s", agent });
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let _echo = Server::echo(&web, 80);
    let mut stream = traffic::connect(&client, web.at(80)).unwrap();
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let (key, _) = current(&mesh, Side::A, &client.uid);
    let Mesh { agents, world, .. } = &mut mesh;
    let mut old = agents[0].take_over(world);
    let (first, second) = (old.id(), mesh.agents[0].pid());
    assert!(key.copies_in(second) > 0, "the control");
    for pid in [first, second] {
        wait::until("no text is left of it", || (key.hex_copies_in(pid) == 0).then_some(()));
    }
    for pid in [first, second] {
        wait::until("nothing is left of it once it is replaced", || (key.copies_in(pid) == 0).then_some(()));
    }
    drop(stream);
    assert!(old.end_within(Duration::from_secs(90)).success());
}

//! Another program's connect hook, which rewrites a service's address as a replacement of kube-proxy does, beside ours.
#![expect(unsafe_code, reason = "bpf(2) takes pointers to what outlives the call")]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_tests::traffic::{self, Server};
use agent_tests::{Capture, Mesh, Pod, Service, Settings, Side};
use nix::libc;

/// An address of nobody's (RFC 5737), so that a hook at the root meets these tests' connections alone.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 77), 80);

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const CGROUP_SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u64; 2],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach: u32,
}

/// And for BPF_LINK_CREATE.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, argument: &T) -> OwnedFd {
    // SAFETY: the argument is as long as is said, and what it points to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *argument, size_of::<T>()) };
    assert!(fd >= 0, "bpf(2) refuses: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

fn instruction(code: u8, registers: u8, offset: i16, value: u32) -> u64 {
    u64::from_le_bytes({
        let [a, b] = offset.to_le_bytes();
        let [c, d, e, f] = value.to_le_bytes();
        [code, registers, a, b, c, d, e, f]
    })
}

/// Turns connects to [`SERVICE`] into connects to the pod, for the tasks of a cgroup, as long as the link lives.
fn rewrite(cgroup: &Path, to: &Pod, port: u16) -> OwnedFd {
    let ip = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
    // In `struct bpf_sock_addr` the address is at 4, the port at 24.
    let program = [
        instruction(0x61, 0x12, 4, 0),                       // w2 = address
        instruction(0xb4, 0x03, 0, ip(*SERVICE.ip())),       // w3 = the service's
        instruction(0x5e, 0x32, 4, 0),                       // if w2 != w3: skip four
        instruction(0xb4, 0x03, 0, ip(to.address)),          // w3 = the pod's
        instruction(0x63, 0x31, 4, 0),                       // address = w3
        instruction(0xb4, 0x03, 0, u32::from(port.to_be())), // w3 = its port
        instruction(0x63, 0x31, 24, 0),                      // port = w3
        instruction(0xb4, 0x00, 0, 1),                       // allow
        instruction(0x95, 0x00, 0, 0),
    ];
    let licence = b"GPL\0";
    let load = Load {
        kind: CGROUP_SOCK_ADDR,
        count: u32::try_from(program.len()).unwrap(),
        instructions: program.as_ptr().addr() as u64,
        licence: licence.as_ptr().addr() as u64,
        log: [0; 2],
        kernel: 0,
        flags: 0,
        name: [0; 16],
        device: 0,
        attach: INET4_CONNECT,
    };
    let (loaded, target) = (bpf(BPF_PROG_LOAD, &load), File::open(cgroup).unwrap());
    let fd = |fd: i32| u32::try_from(fd).unwrap();
    let link =
        Link { program: fd(loaded.as_raw_fd()), target: fd(target.as_raw_fd()), attach: INET4_CONNECT, flags: 0 };
    bpf(BPF_LINK_CREATE, &link)
}

/// Two of these tests at once would meet each other's hooks.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer of whoever is behind the service.
fn ask(client: &Pod) -> io::Result<Vec<u8>> {
    traffic::ask(client, SocketAddr::V4(SERVICE), b"question")
}

#[test]
fn what_a_hook_before_ours_has_rewritten_is_captured_where_it_goes() {
    let _alone = alone();
    let mut mesh = Mesh::prepare(&Settings::default());
    let group = mesh.world.cgroup("hook");
    let root = group.path().parent().unwrap().to_owned();
    let web = mesh.world.pod("web", Side::B);
    let _link = rewrite(&root, &web, 8080);
    for agent in &mut mesh.agents {
        agent.start(&mesh.world);
    }
    let client = mesh.pod("client", Side::A);
    mesh.enrol(&[&web]);
    let _echo = Server::echo(&web, 8080);
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(ask(&client).unwrap(), b"question");
    let record = mesh.agents[0].records.wait(1, |record| record.close() == "finished").remove(0);
    assert_eq!(record.text("/destination/address"), web.at(8080).to_string());
    assert_eq!((wire.bytes_at(8080), wire.connections_to(8080)), (0, 0));
}

#[test]
fn a_service_that_the_directory_lists_is_captured_before_a_hook_after_ours_sees_it() {
    let _alone = alone();
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.pod("web", Side::B));
    let group = mesh.world.cgroup("hook");
    let root = group.path().parent().unwrap().to_owned();
    let _link = rewrite(&root, &web, 8080);
    let _echo = Server::echo(&web, 8080);
    let mut wire = Capture::on(&client.namespace, "eth0");
    // That service is none of Mantle's, and so is what becomes of it behind its back; the receiver can refuse it.
    assert_eq!(ask(&client).unwrap(), b"question");
    assert!(wire.shows(b"question"));
    mesh.change(|directory| directory.entry(&web).mode = agent_tests::Mode::Strict);
    assert_eq!(ask(&client).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let service = Service::new("web").at(SocketAddr::V4(SERVICE), 8080).with(&web);
    mesh.change(|directory| directory.services.push(service));
    let mut wire = Capture::on(&client.namespace, "eth0");
    assert_eq!(ask(&client).unwrap(), b"question");
    assert_eq!((wire.bytes_at(8080), wire.connections_to(8080)), (0, 0));
    let record = mesh.agents[0].records.wait(1, |record| record.close() == "finished").remove(0);
    assert_eq!(record.text("/service/frontend"), SERVICE.to_string());
}

#[test]
fn a_hook_at_a_containers_cgroup_comes_before_ours() {
    let _alone = alone();
    let mut mesh = Mesh::start();
    let (client, web) = (mesh.pod("client", Side::A), mesh.strict_pod("web", Side::B));
    let group = mesh.world.cgroup("container");
    let _link = rewrite(group.path(), &web, 8080);
    let _echo = Server::start(&web, "0.0.0.0:8080".parse().unwrap(), |mut stream, _| {
        io::Write::write_all(&mut stream, b"reached\n").unwrap();
    });
    let connect = format!("exec 3<>/dev/tcp/{}/{} && head -1 <&3", SERVICE.ip(), SERVICE.port());
    let mut bash = group.command(&client.namespace, "bash");
    let output = bash.args(["-c", &connect]).output().unwrap();
    assert_eq!(output.stdout, b"reached\n", "{output:?}");
    let record = mesh.agents[0].records.wait(1, |_| true).remove(0);
    assert_eq!(record.text("/destination/address"), web.at(8080).to_string());
}

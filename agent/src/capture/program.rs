//! The kernel programs: loaded on the pinned maps, and put into links that outlive the agent.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use agent_common::names;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramType, SkLookup, SockOps};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::StartError;
use super::links::{Pinned, Place, Seat};
use super::netns::Namespace;
use super::pins::Pins;
use super::pod::AttachError;
use super::syscall::LinkKind;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mantle-ebpf.o"));

const LOOKUP: &str = "mantle_sk_lookup";
const LOG_MAP: &str = "AYA_LOGS";
const AT_CGROUP: [&str; 5] =
    ["mantle_connect4", "mantle_connect6", "mantle_peername4", "mantle_peername6", "mantle_sock_ops"];

/// A program's name and its place at the cgroup root.
pub(super) type CgroupSeat = (&'static str, Seat);

/// What the connect programs do with a namespace that is not in `NETNS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnknownRule {
    /// The id of the cgroup below which pods' tasks are; 0 = no task is a pod's.
    pub(super) cgroup: u64,
    /// How many levels it is below the root.
    pub(super) level: u32,
    /// The cookie of the node's own namespace; 0 = not known.
    pub(super) node: u64,
    /// Not 0: pods that are not classified may connect to the mesh.
    pub(super) allow: u32,
}

/// Every map that is pinned, held open.
pub(super) fn pinned_maps(pins: &Pins) -> Result<Vec<Pinned>, StartError> {
    let open = |name: &str| Pinned::open(&pins.map(name)).map_err(|error| StartError::pins(&pins.map(name), error));
    names::MAPS.into_iter().map(open).collect()
}

/// Opens the pinned maps, or makes and pins them, and relocates the programs onto them. No program is loaded yet.
pub(super) fn load(pins: &Pins, unknown: &UnknownRule) -> Result<Ebpf, StartError> {
    let multipath = u32::from(has_multipath());
    let mut loader = loader(pins);
    loader
        .override_global(names::HAS_MULTIPATH, &multipath, true)
        .override_global(names::PODS_CGROUP, &unknown.cgroup, true)
        .override_global(names::PODS_LEVEL, &unknown.level, true)
        .override_global(names::NODE_COOKIE, &unknown.node, true)
        .override_global(names::ALLOW_UNKNOWN, &unknown.allow, true);
    loader.load(OBJECT).map_err(StartError::Object)
}

/// Whether a multipath socket can be told by its subflow. Without that its `getpeername` shows nobody.
fn has_multipath() -> bool {
    let helper = BpfHelper::BPF_FUNC_skc_to_mptcp_sock;
    is_helper_supported(ProgramType::CgroupSockAddr, helper).unwrap_or(false)
}

// What `AYA_LOG_LEVEL` can be; with `OFF` the verifier drops every log statement from the programs.
static OFF: u8 = 0;
static DEBUG: u8 = aya_log::Level::Debug as u8;

fn loader<'a>(pins: &Pins) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for name in names::MAPS.into_iter().chain([LOG_MAP]) {
        loader.map_pin_path(name, pins.map(name));
    }
    let level = if tracing::enabled!(target: "mantle_ebpf", tracing::Level::DEBUG) { &DEBUG } else { &OFF };
    loader.override_global(aya_log::LEVEL, level, false);
    loader
}

/// Loads the programs of the cgroup root and makes them effective there: in their pinned link, if it still sits at
/// this cgroup, else in a new one. What it comes to, also if it fails half-way, is in `seats`.
pub(super) fn attach_to_cgroup(
    object: &mut Ebpf,
    pins: &Pins,
    cgroup: &Path,
    seats: &mut Vec<CgroupSeat>,
) -> Result<(), StartError> {
    let root = File::open(cgroup).map_err(|e| StartError::System("cannot open the cgroup root", e))?;
    // A cgroup's id is its directory's inode (kernfs, 64 bit).
    let id = root.metadata().map_err(|e| StartError::System("cannot read the cgroup root", e))?.ino();
    // What the kernel refuses it refuses now, with everything as it was.
    for name in AT_CGROUP {
        let program = object.program_mut(name).ok_or(StartError::Ineffective(name))?;
        load_program(program).map_err(|error| StartError::Program(name, Box::new(error)))?;
    }
    for name in AT_CGROUP {
        let refused = |error| StartError::Program(name, Box::new(error));
        let program = object.program_mut(name).ok_or(StartError::Ineffective(name))?;
        let pin = pins.cgroup_link(name);
        let pinned = |result: io::Result<_>| result.map_err(|e| StartError::pins(&pin, e));
        let place = Place { pin: &pin, target: id, kind: LinkKind::Cgroup };
        let seat = match pinned(place.replace(program))? {
            Some(seat) => Some(seat),
            None => pinned(place.take(attach_program(program, &root).map_err(refused)?, program))?,
        };
        let seat = seat.ok_or(StartError::Ineffective(name))?;
        seats.retain(|(held, _)| *held != name);
        seats.push((name, seat));
    }
    Ok(())
}

/// Makes an instance of the lookup program for each pod.
///
/// A loader reads the types of the whole kernel when it is made, which takes longer than all the rest of an attachment;
/// our programs need none of them, so one loader serves all pods.
pub(super) struct PodPrograms(EbpfLoader<'static>);

impl PodPrograms {
    pub(super) fn new(pins: &Pins) -> Self {
        let mut loader = loader(pins);
        loader.btf(None);
        Self(loader)
    }

    /// Loads an instance for one pod and attaches it to the pod's namespace.
    pub(super) fn attach(&mut self, pins: &Pins, namespace: &Namespace, index: u32) -> Result<Seat, AttachError> {
        let mut object = self.load(namespace, index)?;
        let program = object.program_mut(LOOKUP).ok_or(AttachError::Kernel(io::ErrorKind::NotFound.into()))?;
        let pin = pins.pod_link(namespace.cookie());
        let place = Place { pin: &pin, target: namespace.inode(), kind: LinkKind::Netns };
        let seat = match place.replace(program).map_err(AttachError::Kernel)? {
            Some(seat) => Some(seat),
            None => place.take(attach_lookup(program, namespace)?, program).map_err(AttachError::Kernel)?,
        };
        seat.ok_or_else(|| AttachError::Kernel(io::Error::other("its link does not sit in its namespace")))
    }

    /// The same without a pin: it ends with the link that is returned.
    pub(super) fn attach_for_a_while(&mut self, namespace: &Namespace, index: u32) -> Result<FdLink, AttachError> {
        let mut object = self.load(namespace, index)?;
        let program = object.program_mut(LOOKUP).ok_or(AttachError::Kernel(io::ErrorKind::NotFound.into()))?;
        attach_lookup(program, namespace)
    }

    fn load(&mut self, namespace: &Namespace, index: u32) -> Result<Ebpf, AttachError> {
        // A loader keeps references to its globals until others take their place: twelve bytes for each attachment.
        let (cookie, index): &'static (u64, u32) = Box::leak(Box::new((namespace.cookie(), index)));
        self.0.override_global(names::POD_COOKIE, cookie, true).override_global(names::POD_INDEX, index, true);
        let mut object = self.0.load(OBJECT).map_err(|e| AttachError::Kernel(io::Error::other(e)))?;
        let program = object.program_mut(LOOKUP).ok_or(AttachError::Kernel(io::ErrorKind::NotFound.into()))?;
        load_program(program).map_err(|e| AttachError::Program(Box::new(e)))?;
        Ok(object)
    }
}

fn attach_lookup(program: &mut Program, namespace: &Namespace) -> Result<FdLink, AttachError> {
    let lookup: &mut SkLookup = program.try_into().map_err(|e| AttachError::Program(Box::new(e)))?;
    let attached = lookup.attach(namespace.as_fd()).and_then(|id| lookup.take_link(id));
    Ok(FdLink::from(attached.map_err(|e| AttachError::Program(Box::new(e)))?))
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "aya has a variant for each type of program; ours are three")]
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach_program(program: &mut Program, cgroup: &File) -> Result<FdLink, ProgramError> {
    // Links take no flags (several programs at one place is what they are for): `Single` passes none.
    let mode = CgroupAttachMode::Single;
    #[expect(clippy::wildcard_enum_match_arm, reason = "aya has a variant for each type of program; two attach here")]
    let link = match program {
        Program::CgroupSockAddr(program) => {
            let program: &mut CgroupSockAddr = program;
            let id = program.attach(cgroup, mode)?;
            FdLink::try_from(program.take_link(id)?)
        }
        Program::SockOps(program) => {
            let program: &mut SockOps = program;
            let id = program.attach(cgroup, mode)?;
            FdLink::try_from(program.take_link(id)?)
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    link.map_err(|_| ProgramError::UnexpectedProgramType)
}

/// Carries the kernel programs' debug lines into `tracing`.
pub(super) struct LogReader {
    task: tokio::task::JoinHandle<()>,
}

impl LogReader {
    /// Starts reading if there is a runtime to read on; the programs work without a reader.
    pub(super) fn start(object: &mut Ebpf) -> Option<Self> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let logger =
            EbpfLogger::init(object).inspect_err(|error| warn!(%error, "no log from the kernel programs")).ok()?;
        let task = runtime.spawn(async move {
            #[expect(deprecated, reason = "the logger owns its descriptor and keeps it as long as it lives")]
            let registered = AsyncFd::with_interest(logger, tokio::io::Interest::READABLE);
            let Ok(mut logger) = registered else { return };
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Some(Self { task })
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

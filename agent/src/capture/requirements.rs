//! What capture needs of the machine and the process, checked before anything is touched, reported all at once.

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};
use thiserror::Error;

use super::CaptureConfig;

/// Capabilities by number (capabilities(7)), each with what needs it.
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "to attach programs to cgroups and network namespaces, and to see what is attached"),
    (21, "CAP_SYS_ADMIN", "to enter a pod's network namespace, and to make one for probes"),
    (38, "CAP_PERFMON", "to load programs that compare pointers"),
    (39, "CAP_BPF", "to load programs and make maps"),
];

/// What watching for unknown pods needs besides.
const FOR_PODS: (u32, &str, &str) =
    (19, "CAP_SYS_PTRACE", "to see which pod a task in an unknown network namespace belongs to (`pods_cgroup`)");

/// What the programs are, each with the Linux release that brought it.
const PROGRAMS: [(ProgramType, &str); 3] = [
    (ProgramType::CgroupSockAddr, "cgroup socket address programs (Linux 4.17)"),
    (ProgramType::SockOps, "sock_ops programs (Linux 4.13)"),
    (ProgramType::SkLookup, "sk_lookup programs (Linux 5.9)"),
];

const MAPS: [(MapType, &str); 3] = [
    (MapType::SockMap, "SOCKMAP (Linux 4.14)"),
    (MapType::SkStorage, "socket storage (Linux 5.2)"),
    (MapType::RingBuf, "ring buffers (Linux 5.8)"),
];

const HELPERS: [(ProgramType, BpfHelper, &str); 4] = [
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_set_retval,
        "bpf_set_retval in connect hooks (Linux 5.18): a refusal must read ECONNREFUSED",
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
        "bpf_get_current_ancestor_cgroup_id in connect hooks (Linux 5.7)",
    ),
    (
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_pid_tgid,
        "bpf_get_current_pid_tgid in connect hooks (Linux 5.7)",
    ),
    (ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie in sock_ops (Linux 5.15)"),
];

/// One thing that is missing, and what to do about it.
#[derive(Debug, Error)]
pub enum Missing {
    /// A capability of the process.
    #[error("capability {name} ({why}): run as root, or add it to the service or container")]
    Capability {
        /// As in capabilities(7).
        name: &'static str,
        /// What it is for.
        why: &'static str,
    },
    /// The BPF file system.
    #[error("a BPF file system at {}: mount one there (`mount -t bpf bpf {}`), or set `bpffs`", .0.display(), .0.display())]
    Bpffs(PathBuf),
    /// The cgroup2 hierarchy.
    #[error("the cgroup2 root: mount it (`mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`), or set `cgroup`")]
    Cgroup,
    /// The configured cgroup is none.
    #[error("a cgroup2 directory at {} (from `cgroup`)", .0.display())]
    NotACgroup(PathBuf),
    /// The pods' cgroup is not there.
    #[error("the pods' cgroup {} (from `pods_cgroup`): start the agent once the node's runtime has made it", .0.display())]
    PodsCgroup(PathBuf),
    /// Something that the kernel is too old for, or was built without.
    #[error("kernel feature {0}: use a newer kernel, or one that has it configured")]
    Feature(&'static str),
    /// The kernel can't tell its types; programs with maps of typed values need it.
    #[error("BTF of the kernel at /sys/kernel/btf/vmlinux: use a kernel built with CONFIG_DEBUG_INFO_BTF")]
    Btf,
}

/// One line each.
pub(super) fn list(missing: &[Missing]) -> String {
    missing.iter().map(|what| format!("  - {what}")).collect::<Vec<_>>().join("\n")
}

/// The cgroup2 root, if everything is there.
pub(super) fn check(config: &CaptureConfig) -> Result<PathBuf, Vec<Missing>> {
    let pods = config.pods_cgroup.as_deref();
    let mut missing = missing_capabilities(CAPABILITIES.iter().chain(pods.map(|_| &FOR_PODS)));
    if !is_mount_of(&config.bpffs, BPF_FS_MAGIC) {
        missing.push(Missing::Bpffs(config.bpffs.clone()));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push(Missing::Btf);
    }
    missing.extend(missing_features().map(Missing::Feature));
    let cgroup = cgroup_root(config.cgroup.as_deref());
    if let (Ok(root), Some(pods)) = (&cgroup, pods) {
        let path = root.join(pods);
        if !is_mount_of(&path, CGROUP2_SUPER_MAGIC) {
            missing.push(Missing::PodsCgroup(path));
        }
    }
    match (cgroup, missing.is_empty()) {
        (Ok(cgroup), true) => Ok(cgroup),
        (Ok(_), false) => Err(missing),
        (Err(error), _) => {
            missing.push(error);
            Err(missing)
        }
    }
}

fn missing_capabilities<'a>(needed: impl Iterator<Item = &'a (u32, &'static str, &'static str)>) -> Vec<Missing> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = effective_capabilities(&status);
    let lacks = |&&(number, ..): &&(u32, &str, &str)| effective & (1 << number) == 0;
    needed.filter(lacks).map(|&(_, name, why)| Missing::Capability { name, why }).collect()
}

/// By trying, since distributions carry features back. A probe that fails tells nothing, and is no reason to refuse:
/// loading the programs will tell.
fn missing_features() -> impl Iterator<Item = &'static str> {
    let programs = PROGRAMS.into_iter().filter(|&(kind, _)| matches!(is_program_supported(kind), Ok(false)));
    let maps = MAPS.into_iter().filter(|&(kind, _)| matches!(is_map_supported(kind), Ok(false)));
    let helpers =
        HELPERS.into_iter().filter(|&(kind, helper, _)| matches!(is_helper_supported(kind, helper), Ok(false)));
    programs.map(|(_, what)| what).chain(maps.map(|(_, what)| what)).chain(helpers.map(|(.., what)| what))
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// The root of the whole hierarchy: our own mount may show only a part of it, process 1's does not.
fn cgroup_root(configured: Option<&Path>) -> Result<PathBuf, Missing> {
    if let Some(path) = configured {
        let is_cgroup = is_mount_of(path, CGROUP2_SUPER_MAGIC);
        return if is_cgroup { Ok(path.to_owned()) } else { Err(Missing::NotACgroup(path.to_owned())) };
    }
    let mounts = fs::read_to_string("/proc/1/mountinfo").map_err(|_| Missing::Cgroup)?;
    let mount_point = cgroup2_mount_point(&mounts).ok_or(Missing::Cgroup)?;
    // Process 1's root needs CAP_SYS_PTRACE to enter; without it our own mount will do, if it shows the real root.
    let candidates = [Path::new("/proc/1/root").join(mount_point.trim_start_matches('/')), mount_point.into()];
    candidates.into_iter().find(|path| is_cgroup_root(path)).ok_or(Missing::Cgroup)
}

/// In a cgroup namespace any cgroup can look like the root; only the real one has no `cgroup.events` (cgroup-v2.rst).
fn is_cgroup_root(path: &Path) -> bool {
    is_mount_of(path, CGROUP2_SUPER_MAGIC) && path.join("cgroup.procs").exists() && !path.join("cgroup.events").exists()
}

/// In mountinfo: `36 35 0:30 /root /mount/point options… - cgroup2 …` (proc_pid_mountinfo(5)); the root must be `/`.
fn cgroup2_mount_point(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then_some(mount_point)
    })
}

fn is_mount_of(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_root_is_found_on_unified_and_hybrid_hosts() {
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup2_mount_point(unified), Some("/sys/fs/cgroup"));
        let hybrid = "32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount_point(hybrid), Some("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_not_its_root() {
        let part = "41 31 0:37 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount_point(part), None);
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        assert_eq!(effective_capabilities("Name:\tx\nCapInh:\t00\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(effective_capabilities("nothing here"), 0);
    }
}

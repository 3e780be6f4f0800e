//! Which pod a cgroup is, by the names that kubelet gives the cgroups of pods.

use crate::identity::PodUid;

/// The cgroup v2 path in the text of `/proc/<pid>/cgroup` (cgroups(7): the line of hierarchy 0).
pub fn unified_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The pod whose cgroup this path is, or is in. Outer names come first: a pod can make cgroups within its own, and
/// name them as it likes.
pub fn pod_of(path: &str) -> Option<PodUid> {
    path.split('/').find_map(pod_named)
}

/// With the cgroupfs driver a pod's cgroup is `pod<UID>`, with systemd's `kubepods[-<class>]-pod<UID>.slice`, where
/// `_` stands for `-`.
fn pod_named(name: &str) -> Option<PodUid> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then(|| uid.parse().ok()).flatten()
}

/// A UUID, or the 32 hex digits of a static pod.
fn is_uid(text: &str) -> bool {
    let dashes = text.bytes().filter(|&byte| byte == b'-').count();
    let others_are_hex = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    others_are_hex && [(36, 4), (32, 0)].contains(&(text.len(), dashes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2b8a52-7f0e-4b0e-9a55-0c1f6e1d2a01";

    fn pod(path: &str) -> Option<String> {
        pod_of(path).map(|uid| uid.as_str().to_owned())
    }

    #[test]
    fn both_drivers_names_are_read() {
        assert_eq!(pod(&format!("/kubepods/besteffort/pod{UID}/0123abcd")).as_deref(), Some(UID));
        assert_eq!(pod(&format!("/../../pod{UID}")).as_deref(), Some(UID), "seen from another cgroup namespace");
        let slice = UID.replace('-', "_");
        let systemd =
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-1.scope");
        assert_eq!(pod(&systemd).as_deref(), Some(UID));
        let guaranteed = format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-1.scope");
        assert_eq!(pod(&guaranteed).as_deref(), Some(UID));
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod(&format!("/kubepods/pod{hash}")).as_deref(), Some(hash));
    }

    #[test]
    fn what_is_no_pods_name_is_none() {
        for path in
            ["/", "", "/kubepods", "/kubepods.slice", "/my-pods.slice", "/podman/x", "/kubepods/pod", "/a.slice"]
        {
            assert_eq!(pod(path), None, "{path}");
        }
    }

    #[test]
    fn a_pod_cannot_pass_for_another_by_a_cgroup_of_its_own() {
        let other = "ffffffff-7f0e-4b0e-9a55-0c1f6e1d2a01";
        assert_eq!(pod(&format!("/kubepods/pod{UID}/c/pod{other}")).as_deref(), Some(UID));
    }

    #[test]
    fn the_unified_hierarchys_line_is_found_on_hybrid_hosts() {
        assert_eq!(unified_path("12:cpu:/a\n1:name=systemd:/b\n0::/kubepods/x\n"), Some("/kubepods/x"));
        assert_eq!(unified_path("1:cpu:/a\n"), None);
    }
}

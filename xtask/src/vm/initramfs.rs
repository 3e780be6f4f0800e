//! The file system that a kernel starts with: what it takes to reach the host's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::shell::{self, Context as _, Done, Failure};
use crate::vm::kernel::Kernel;

/// What the host's file system is seen through, and what keeps it as it is.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

const INIT: &str = include_str!("init.sh");

/// Makes the archive for a kernel in `folder`; its last step is to run the script `then` of the host's.
pub(super) fn make(kernel: &Kernel, folder: &Path, then: &Path) -> Done<PathBuf> {
    let root = folder.join("initramfs");
    let _ = fs::remove_dir_all(&root);
    for name in ["bin", "modules", "proc", "dev", "host", "over", "new"] {
        let made = root.join(name);
        fs::create_dir_all(&made).context(made.display())?;
    }
    let busybox = shell::find("busybox").ok_or_else(|| Failure::new("there is no busybox"))?;
    copy(&busybox, &root.join("bin/busybox"))?;
    for (index, module) in kernel.modules(&MODULES)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        // The shell sorts by name.
        copy(module, &root.join("modules").join(format!("{index:02}-{name}")))?;
    }
    let init = root.join("init");
    let text = INIT.replace("@then@", &then.display().to_string());
    fs::write(&init, text).context(init.display())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context(init.display())?;
    pack(&root, &folder.join("initramfs.cpio"))
}

fn copy(from: &Path, to: &Path) -> Done {
    fs::copy(from, to).context(from.display()).map(drop)
}

/// As the kernel wants it (Documentation/driver-api/early-userspace/buffer-format.rst).
fn pack(root: &Path, archive: &Path) -> Done<PathBuf> {
    let find = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn();
    let mut find = find.context("cannot start find")?;
    let names = find.stdout.take().ok_or_else(|| Failure::new("find has no output"))?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "--create", "--format=newc"]).current_dir(root).stdin(names);
    cpio.stdout(fs::File::create(archive).context(archive.display())?);
    let packed = cpio.status().context("cannot start cpio")?;
    let found = find.wait().context("cannot wait for find")?;
    if packed.success() && found.success() {
        return Ok(archive.to_owned());
    }
    Err(Failure::new(format!("{} was not packed: find {found}, cpio {packed}", root.display())))
}

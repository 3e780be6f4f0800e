//! A kernel with its modules, out of its packages.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::say::Step;
use crate::shell::{self, Context as _, Done, Failure};
use crate::vm::debian::{Packages, Release};

/// A kernel that can be booted.
pub(super) struct Kernel {
    /// What it calls itself.
    pub(super) name: String,
    /// Its image, which a bootloader would load.
    pub(super) image: PathBuf,
    /// What modprobe(8) takes for the root: its modules are below `lib/modules` here.
    pub(super) root: PathBuf,
}

impl Kernel {
    /// Takes the kernel that an earlier run has unpacked, or unpacks it now.
    pub(super) fn unpacked(packages: &Packages, release: &Release) -> Done<Self> {
        let root = shell::target().join("vm").join("kernels").join(release.name());
        if !root.exists() {
            let step = Step::begin(format!("downloading Linux {release}"));
            let partial = root.with_extension("part");
            let _ = fs::remove_dir_all(&partial);
            packages.unpack(release, &partial)?;
            index_modules(&partial, &release.name())?;
            fs::rename(&partial, &root).context(root.display())?;
            step.done();
        }
        Self::at(root, release.name())
    }

    fn at(root: PathBuf, name: String) -> Done<Self> {
        let places = [root.join("boot").join(format!("vmlinuz-{name}")), modules(&root, &name).join("vmlinuz")];
        let image = places.into_iter().find(|path| path.is_file());
        let image =
            image.ok_or_else(|| Failure::new(format!("there is no image of a kernel in {}", root.display())))?;
        Ok(Self { name, image, root })
    }

    /// The files of these modules and of those that they need, in the order in which they can be inserted.
    pub(super) fn modules(&self, names: &[&str]) -> Done<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut modprobe = Command::new("modprobe");
            modprobe.args(["--show-depends", "--set-version", &self.name, "--dirname"]).arg(&self.root).arg(name);
            let said = shell::output(&mut modprobe)?;
            // `builtin name`, or `insmod path options…`.
            let paths = said.lines().filter_map(|line| line.strip_prefix("insmod ")?.split(' ').next());
            for path in paths.map(PathBuf::from) {
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

fn modules(root: &Path, name: &str) -> PathBuf {
    root.join("lib/modules").join(name)
}

/// Does what a package's installation would do: without an index modprobe(8) finds no module.
fn index_modules(root: &Path, name: &str) -> Done {
    let lib = root.join("lib");
    if !lib.exists() {
        symlink("usr/lib", &lib).context(lib.display())?;
    }
    shell::output(Command::new("depmod").arg("-b").arg(root).arg(name)).map(drop)
}

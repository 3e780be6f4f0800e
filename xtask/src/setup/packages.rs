//! Programs that come with the distribution.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::say::Step;
use crate::shell::{self, Context as _, Done, Failure};

/// A Debian package, and how to see that it is not needed any more.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) gives: Gives,
}

/// What shows that a package, or what does its work, is there.
pub(super) enum Gives {
    /// A program on the search path.
    Program(&'static str),
    /// Nothing that can be looked for: it is installed with the others.
    Nothing,
}

/// What the demo, the kernel tests and the benchmark use.
pub(super) const WORLD: [Package; 4] = [
    Package { name: "iproute2", gives: Gives::Program("ip") },
    Package { name: "util-linux", gives: Gives::Program("nsenter") },
    Package { name: "nginx-light", gives: Gives::Program("nginx") },
    Package { name: "tcpdump", gives: Gives::Program("tcpdump") },
];

/// Installs those of `packages` that are missing.
pub(super) fn install(packages: &[Package]) -> Done {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !package.is_there()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if shell::find("apt-get").is_none() {
        return Err(Failure::new(format!("this machine lacks what these Debian packages hold: {names}; install them")));
    }
    let step = Step::begin(format!("installing {names}"));
    let _quiet = NoServices::begin()?;
    apt("update", &[])?;
    apt("install", &missing)?;
    step.done();
    Ok(())
}

impl Package {
    fn is_there(&self) -> bool {
        match self.gives {
            Gives::Program(name) => shell::find(name).is_some(),
            Gives::Nothing => false,
        }
    }
}

fn apt(action: &str, packages: &[&str]) -> Done {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-y", "--no-install-recommends", action]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    shell::logged(&mut command, &shell::target().join("setup").join(format!("apt-{action}.log")))
}

/// While it lives, packages do not start their services: nginx is wanted as a program, not on this host's port 80.
struct NoServices {
    ours: bool,
}

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Done<Self> {
        if Path::new(Self::POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let mut file = fs::File::create(Self::POLICY).context(Self::POLICY)?;
        let guard = Self { ours: true };
        file.write_all(b"#!/bin/sh\nexit 101\n").context(Self::POLICY)?;
        file.set_permissions(fs::Permissions::from_mode(0o755)).context(Self::POLICY)?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(Self::POLICY);
        }
    }
}

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
    /// The service that comes with it, and that nobody asked for.
    pub(super) service: Option<&'static str>,
}

/// What shows that a package, or what does its work, is there.
pub(super) enum Gives {
    /// A program on the search path.
    Program(&'static str),
    /// `program` in a folder for each of its versions.
    Version { folder: &'static str, program: &'static str },
    /// Nothing that can be looked for: it is installed with the others.
    Nothing,
}

/// What the demo, the kernel tests and the benchmark use.
pub(super) const WORLD: [Package; 4] = [
    program("iproute2", "ip"),
    program("util-linux", "nsenter"),
    Package { service: Some("nginx"), ..program("nginx-light", "nginx") },
    program("tcpdump", "tcpdump"),
];

/// The real programs that the kernel tests try, without Mantle and with it.
pub(super) const PROGRAMS: [Package; 10] = [
    program("curl", "curl"),
    program("nftables", "nft"),
    Package { service: Some("redis-server"), ..program("redis-server", "redis-server") },
    Package {
        name: "postgresql",
        gives: Gives::Version { folder: "/usr/lib/postgresql", program: "bin/postgres" },
        service: Some("postgresql"),
    },
    program("openssh-client", "ssh"),
    Package { service: Some("ssh"), ..program("openssh-server", "sshd") },
    program("python3", "python3"),
    program("nodejs", "node"),
    program("default-jdk-headless", "javac"),
    program("golang-go", "go"),
];

/// What boots other kernels, and unpacks them.
pub(super) const MACHINES: [Package; 4] = [
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("busybox-static", "busybox"),
    program("cpio", "cpio"),
    program("kmod", "depmod"),
];

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, gives: Gives::Program(program), service: None }
}

/// Installs those of `packages` that are missing.
pub(super) fn install(packages: &[Package]) -> Done {
    let packages: Vec<&Package> = packages.iter().filter(|package| !package.is_there()).collect();
    let missing: Vec<&str> = packages.iter().map(|package| package.name).collect();
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
    packages.iter().filter_map(|package| package.service).try_for_each(disable)?;
    step.done();
    Ok(())
}

impl Package {
    fn is_there(&self) -> bool {
        match self.gives {
            Gives::Program(name) => shell::find(name).is_some(),
            Gives::Version { folder, program } => fs::read_dir(folder)
                .is_ok_and(|mut versions| versions.any(|it| it.is_ok_and(|it| it.path().join(program).is_file()))),
            Gives::Nothing => false,
        }
    }
}

/// Keeps a service that came with a package from starting with the machine.
fn disable(service: &str) -> Done {
    if shell::find("systemctl").is_none() {
        return Ok(());
    }
    let log = shell::target().join("setup").join(format!("disable-{service}.log"));
    shell::logged(Command::new("systemctl").args(["disable", service]), &log)
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

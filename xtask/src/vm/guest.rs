//! One virtual machine: a kernel, the host's file system as it is, and the tests.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::say;
use crate::shell::{self, Context as _, Done, Failure};
use crate::tally;
use crate::vm::initramfs;
use crate::vm::kernel::Kernel;
use crate::vm::outcome::{Outcome, Report};

const SCRIPT: &str = include_str!("tests.sh");

/// What executes a machine's instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Acceleration {
    /// This machine's processor.
    Kvm,
    /// qemu's compiler, which is some ten times slower.
    Tcg,
}

/// What runs in each machine.
pub(super) struct Tests {
    mantle: PathBuf,
    executable: PathBuf,
    /// The arguments of one run after the other.
    runs: Vec<Vec<String>>,
    /// How many tests must pass; a text chooses any number.
    expected: Option<u64>,
}

/// A machine that can be started.
pub(super) struct Guest<'a> {
    kernel: &'a Kernel,
    initramfs: PathBuf,
    folder: PathBuf,
    memory: String,
    expected: Option<u64>,
}

impl Tests {
    /// The tests whose names hold `text`.
    pub(super) fn holding(text: &str, mantle: PathBuf, executable: PathBuf) -> Self {
        Self { mantle, executable, runs: vec![vec![text.to_owned()]], expected: None }
    }

    /// Exactly these, all of which must be there; where `first` fails, `then` is not tried.
    pub(super) fn exactly(first: &str, then: &[&str], mantle: PathBuf, executable: PathBuf) -> Self {
        let run = |names: &[&str]| ["--exact"].iter().chain(names).map(|&word| word.to_owned()).collect();
        let expected = u64::try_from(then.len()).map(|number| number + 1).ok();
        Self { mantle, executable, runs: vec![run(&[first]), run(then)], expected }
    }

    fn script(&self, modules: &Path) -> String {
        let runs: Vec<String> = self.runs.iter().map(|words| format!("run {}", words.join(" "))).collect();
        let folder = shell::root().join("tests");
        let replace = |text: String, (name, path): (&str, &Path)| text.replace(name, &path.display().to_string());
        let text = SCRIPT.replace("@run@", &runs.join(" && ")).replace("@variables@", &variables());
        let paths: [(&str, &Path); 4] =
            [("@mantle@", &self.mantle), ("@modules@", modules), ("@folder@", &folder), ("@tests@", &self.executable)];
        paths.into_iter().fold(text, replace)
    }
}

impl<'a> Guest<'a> {
    /// Writes what a machine with so much `memory`, as qemu takes it, starts with.
    pub(super) fn prepare(kernel: &'a Kernel, tests: &Tests, memory: &str) -> Done<Self> {
        let folder = shell::target().join("vm").join("machines").join(&kernel.name);
        fs::create_dir_all(&folder).context(folder.display())?;
        let script = folder.join("tests.sh");
        fs::write(&script, tests.script(&kernel.root)).context(script.display())?;
        let initramfs = initramfs::make(kernel, &folder, &script)?;
        Ok(Self { kernel, initramfs, folder, memory: memory.to_owned(), expected: tests.expected })
    }

    /// Runs the machine until it switches itself off, or its time is up.
    pub(super) fn run(&self, acceleration: Acceleration) -> Done<Outcome> {
        let (said, console) = (self.folder.join("tests.log"), self.folder.join("console.log"));
        let mut log = File::create(&said).context(said.display())?;
        let mut qemu = self.qemu(acceleration, &console);
        let mut child = qemu.spawn().context("cannot start qemu")?;
        let output = child.stdout.take().ok_or_else(|| Failure::new("qemu has no output"))?;
        let mut report = Report::default();
        // A machine that crashes can say anything: bytes, not text.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            writeln!(log, "{line}").context(said.display())?;
            if line.starts_with("test ") && line.contains(" ... ") {
                say::line(&line);
            }
            report.read(line, tally::result);
        }
        let status = child.wait().context("cannot wait for qemu")?;
        let logs = format!("all of it: {}, {}", said.display(), console.display());
        Ok(report.outcome(self.expected, &format!("{status}; {logs}")))
    }

    fn qemu(&self, acceleration: Acceleration, console: &Path) -> Command {
        // In the foreground, so that a terminal's Ctrl-C reaches the machine as well.
        let mut qemu = Command::new("timeout");
        qemu.args(["--foreground", "--kill-after=10", acceleration.limit(), "qemu-system-x86_64"]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-m",
            &self.memory,
            "-smp",
            "2",
        ]);
        qemu.args(["-accel", acceleration.name(), "-cpu", "max"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&self.initramfs);
        // A crash ends the machine.
        qemu.args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        let share = "local,path=/,mount_tag=host,readonly=on,security_model=none,multidevs=remap";
        qemu.args(["-virtfs", share]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        qemu
    }
}

/// What says here how much a test is to do says it in the machine as well.
fn variables() -> String {
    let numbers = env::vars().filter(|(name, value)| name.starts_with("MANTLE_TEST_") && value.parse::<u64>().is_ok());
    numbers.map(|(name, value)| format!("export {name}={value}\n")).collect()
}

/// The best that this machine has. Only where the processor itself can do it does KVM boot a distribution's kernel.
pub(super) fn acceleration() -> Acceleration {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let can = processor.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let may = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if can && may { Acceleration::Kvm } else { Acceleration::Tcg }
}

impl Acceleration {
    /// How many seconds a machine may take.
    fn limit(self) -> &'static str {
        match self {
            Self::Kvm => "300",
            Self::Tcg => "1800",
        }
    }

    /// As qemu names it.
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Acceleration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "this machine's processor (KVM)",
            Self::Tcg => "qemu's emulation (there is no KVM here that boots them): this takes some minutes for each",
        })
    }
}

//! Debian's packaged kernels, from the machine's own mirror, by an apt configuration of our own below `target`.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::say::{self, Step};
use crate::shell::{self, Context as _, Done, Failure};

/// Where kernels are looked for. A suite that the mirror has no more is left out, and with it its kernels.
const SUITES: [&str; 5] = ["bullseye", "bookworm", "trixie", "trixie-backports", "sid"];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How the names of the packages begin into which an image is split.
const PARTS: [&str; 3] = ["linux-base-", "linux-binary-", "linux-modules-"];

/// How long a list of packages is good.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// The kernels that there are.
pub(super) struct Packages {
    folder: PathBuf,
    releases: Vec<Release>,
}

/// A kernel as Debian names it, such as `6.1.0-50` or `6.12.95+deb12`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Release(String);

impl Packages {
    /// Asks the mirror, at most once a day.
    pub(super) fn list() -> Done<Self> {
        let folder = shell::target().join("vm").join("apt");
        let mut packages = Self { folder, releases: Vec::new() };
        packages.refresh()?;
        let said = shell::output(packages.apt("apt-cache").args(["pkgnames", "linux-image-"]))?;
        packages.releases = said.lines().filter_map(Release::of_package).collect();
        packages.releases.sort_by_key(Release::numbers);
        Ok(packages)
    }

    /// The latest release of a series (`6.1`), or of all (`newest`).
    pub(super) fn release(&self, name: &str) -> Done<Release> {
        let mut latest_first = self.releases.iter().rev();
        let found = latest_first.find(|release| name == "newest" || release.series() == name);
        found.cloned().ok_or_else(|| {
            let mut series: Vec<&str> = self.releases.iter().map(Release::series).collect();
            series.dedup();
            Failure::new(format!("Debian packages no kernel {name} here; there are {}, newest", series.join(", ")))
        })
    }

    /// Downloads a kernel, and unpacks it into `folder`.
    pub(super) fn unpack(&self, release: &Release, folder: &Path) -> Done {
        let archives = folder.with_extension("debs");
        for made in [folder, &archives] {
            fs::create_dir_all(made).context(made.display())?;
        }
        let image = release.package();
        // Newer packages have only these; the base has the list of what is built in.
        let depends = shell::output(self.apt("apt-cache").args(["depends", &image]))?;
        let parts = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let parts = parts.filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
        let mut download = self.apt("apt-get");
        download.args(["-q", "download", &image]).args(parts).current_dir(&archives);
        shell::logged(&mut download, &self.folder.join("download.log"))?;
        for entry in fs::read_dir(&archives).context(archives.display())? {
            let archive = entry.context(archives.display())?.path();
            shell::output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(folder))?;
        }
        fs::remove_dir_all(&archives).context(archives.display())
    }

    fn refresh(&self) -> Done {
        let asked = self.folder.join("asked");
        let age = asked.metadata().and_then(|data| data.modified()).map(|at| at.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age < FRESH) {
            return Ok(());
        }
        let step = Step::begin("asking Debian's mirror for kernels");
        let folders = ["state/lists/partial", "cache/archives/partial", "parts"];
        for folder in folders.map(|name| self.folder.join(name)) {
            fs::create_dir_all(&folder).context(folder.display())?;
        }
        let mirror = mirror()?;
        let sources = SUITES.map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"));
        let list = self.folder.join("sources.list");
        fs::write(&list, sources.concat()).context(list.display())?;
        match shell::logged(self.apt("apt-get").args(["-q", "update"]), &self.folder.join("update.log")) {
            Ok(()) => _ = File::create(&asked).context(asked.display())?,
            // What was not had is missed when it is wanted.
            Err(failure) => say::line(format!("not every suite could be had: {failure}")),
        }
        step.done();
        Ok(())
    }

    /// `program` with our configuration; proxies and the like stay the machine's.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folders = [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "parts"),
            ("Dir::State", "state"),
            ("Dir::Cache", "cache"),
        ];
        for (name, folder) in folders {
            let mut option = OsString::from(format!("{name}="));
            option.push(self.folder.join(folder));
            command.arg("-o").arg(option);
        }
        // Its own user may not write where the repository is.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        command
    }
}

/// The mirror that the machine has Debian's packages from.
fn mirror() -> Done<String> {
    let targets = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"];
    let said = shell::output(Command::new("apt-get").arg("indextargets").args(targets))?;
    let mirror = said.lines().next().map(str::to_owned);
    mirror.ok_or_else(|| {
        Failure::new("apt knows no mirror of Debian, from which the kernels would come: add one to its sources")
    })
}

impl Release {
    fn of_package(name: &str) -> Option<Self> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
        let plain = version.starts_with(|first: char| first.is_ascii_digit());
        let flavoured = ["-cloud", "-rt", "-unsigned"].iter().any(|flavour| version.ends_with(flavour));
        (plain && !flavoured).then(|| Self(version.to_owned()))
    }

    /// Whether this kernel is of the series `oldest`, or of a later one.
    pub(super) fn is_at_least(&self, oldest: [u64; 2]) -> bool {
        self.numbers() >= oldest.into()
    }

    /// What the kernel calls itself, and its modules' folder.
    pub(super) fn name(&self) -> String {
        format!("{}-amd64", self.0)
    }

    fn package(&self) -> String {
        format!("linux-image-{}", self.name())
    }

    /// Its first two numbers, by which people name it.
    fn series(&self) -> &str {
        let end = self.0.match_indices(['.', '-', '+']).nth(1).map_or(self.0.len(), |(at, _)| at);
        &self.0[..end]
    }

    fn numbers(&self) -> Vec<u64> {
        let digits = self.0.split(|letter: char| !letter.is_ascii_digit());
        digits.filter_map(|digits| digits.parse().ok()).collect()
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_packages_names_and_the_latest_is_chosen() {
        let names = [
            "linux-image-6.12.95+deb12-amd64",
            "linux-image-6.1.0-50-amd64",
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.12.117+deb13-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.1.0-50-rt-amd64",
            "linux-image-6.1.0-50-amd64-dbg",
            "linux-image-amd64",
        ];
        let mut releases: Vec<Release> = names.into_iter().filter_map(Release::of_package).collect();
        releases.sort_by_key(Release::numbers);
        let packages = Packages { folder: PathBuf::new(), releases };
        let chosen =
            |name| packages.release(name).map_or_else(|failure| failure.to_string(), |found| found.to_string());
        assert_eq!(chosen("6.1"), "6.1.0-50");
        assert_eq!(chosen("6.12"), "6.12.117+deb13");
        assert_eq!(chosen("newest"), "6.12.117+deb13");
        let missing = chosen("5.10");
        assert!(missing.contains("there are 6.1, 6.12, newest"), "{missing}");
    }

    #[test]
    fn a_later_series_is_later_whatever_its_length() {
        let release = |version: &str| Release(version.to_owned());
        assert!(release("6.1.0-50").is_at_least([6, 1]) && release("7.3-rc7").is_at_least([6, 1]));
        assert!(release("6.12.95+deb12").is_at_least([6, 2]));
        assert!(!release("5.10.0-32").is_at_least([6, 1]));
    }
}

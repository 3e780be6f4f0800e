//! Other programs: how they are found, started, and how their failure is told.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::say;

/// How often a long, quiet command says that it is still at work.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// Why a command ended: text for the person who ran it, with what to do where that is known.
#[derive(Debug)]
pub(crate) struct Failure(String);

/// The outcome of a piece of automation.
pub(crate) type Done<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same, with what was being done in front.
    pub(crate) fn before(&self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {self}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Puts what was being done in front of why it failed.
pub(crate) trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Done<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Done<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// The cargo that runs this command, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` describes this crate in the environment; a build that it starts must not see that.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_BIN_NAME" {
            command.env_remove(&name);
        }
    }
    command.current_dir(root());
    command
}

/// Where `program` is, as a shell would find it, the administrator's folders included.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// Runs `command` with its output on ours.
pub(crate) fn run(command: &mut Command) -> Done {
    let status = command.status().context(format!("cannot start {}", words(command)))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure(format!("`{}` ended with {status}", words(command))))
}

/// Runs `command` and gives what it printed; on failure its error output is the reason.
pub(crate) fn output(command: &mut Command) -> Done<String> {
    let output = command.stdin(Stdio::null()).output().context(format!("cannot start {}", words(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure(format!("`{}` ended with {}: {}", words(command), output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, which takes long and says much: the output goes to `log`, and a line now and then to the reader.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Done {
    let what = words(command);
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).context(format!("cannot create {}", folder.display()))?;
    }
    let mut file = File::create(log).context(format!("cannot create {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let mut child = command.spawn().context(format!("cannot start {what}"))?;
    // Our copies of the pipe's writing end would keep it open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut spoke = Instant::now();
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if spoke.elapsed() >= SIGN_OF_LIFE {
            say::line(format!("… {}", line.trim()));
            spoke = Instant::now();
        }
        writeln!(file, "{line}").context(format!("cannot write {}", log.display()))?;
    }
    let status = child.wait().context(format!("cannot wait for {what}"))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure(format!("`{what}` ended with {status}:\n{}\n(all of it: {})", tail(log), log.display())))
}

/// The command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

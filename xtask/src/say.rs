//! What the commands print, all in one place, so that every command speaks alike.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool's output")]

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// A piece of work that is announced when it begins, and timed.
pub(crate) struct Step {
    started: Instant,
    name: String,
}

impl Step {
    /// Announces `name`, which reads as a sentence's beginning ("unit tests", "installing nginx").
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        println!("{} {name}", paint(Colour::Bold, "==>"));
        Self { started: Instant::now(), name }
    }

    /// Says that the work is done, and how long it took.
    pub(crate) fn done(self) {
        let took = seconds(self.started.elapsed());
        println!("{} {} ({took})", paint(Colour::Green, " ok"), self.name);
    }
}

/// One line of narration.
pub(crate) fn line(text: impl AsRef<str>) {
    println!("    {}", text.as_ref());
}

/// One line that is not indented: for text that a machine reads, and for tables.
pub(crate) fn plain(text: impl AsRef<str>) {
    println!("{}", text.as_ref());
}

/// A heading above a part of a longer story.
pub(crate) fn heading(text: impl AsRef<str>) {
    println!("\n{}", paint(Colour::Bold, text.as_ref()));
}

/// Something that was checked and held.
pub(crate) fn check(text: impl AsRef<str>) {
    println!("  {} {}", paint(Colour::Green, "ok"), text.as_ref());
}

/// What ended the command.
pub(crate) fn failure(failure: &dyn fmt::Display) {
    let _ = std::io::stdout().flush();
    eprintln!("{} {failure}", paint(Colour::Red, "failed:"));
}

/// A duration as people say it.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60)
}

enum Colour {
    Bold,
    Green,
    Red,
}

fn paint(colour: Colour, text: &str) -> String {
    if !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Bold => "1",
        Colour::Green => "32",
        Colour::Red => "31",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

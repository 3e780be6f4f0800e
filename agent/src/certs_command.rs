//! `mantle certs`: the certificates of a node's pods.

use std::path::PathBuf;

use clap::Args;

use crate::admin::{self, Row};
use crate::app::{self, AppError};
use crate::ca_commands::{moment, print};

/// So much of an anchor's hash tells it from others.
const SHORT: usize = 12;

/// The arguments of `mantle certs`.
#[derive(Debug, Args)]
pub struct Certs {
    /// The agent's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print everything as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// `mantle certs`.
///
/// # Errors
/// [`AppError`].
pub fn run(certs: &Certs) -> Result<(), AppError> {
    let (text, told) = admin::ask_certs(&app::admin_socket(&certs.config)?)?;
    if certs.json {
        return print(&text.trim_end());
    }
    match (told.ca_connected, told.ca_problem.as_deref()) {
        (true, None) => {}
        (true, Some(what)) => app::say(&format!("mantle: not all that the CA told last is in force: {what}")),
        (false, why) => {
            let why = why.unwrap_or("it has not answered yet");
            app::say(&format!("mantle: the CA does not tell the agent of changes of trust: {why}"));
        }
    }
    if told.certificates.is_empty() {
        return print(&format!("agent {} has no pods: the directory lists none on node {}", told.instance, told.node));
    }
    print(&table(&told.certificates))
}

const HEAD: [&str; 8] = ["IDENTITY", "POD", "STATE", "SERIAL", "NOT AFTER", "LEFT", "NEXT RENEWAL", "ANCHOR"];

/// Columns that are as wide as their longest text; beneath a row, what is wrong with it.
fn table(rows: &[Row]) -> String {
    let head = HEAD.map(str::to_owned);
    let told: Vec<[String; 8]> = rows.iter().map(columns).collect();
    let widths: [usize; 8] = std::array::from_fn(|at| {
        told.iter().chain([&head]).map(|row| row[at].chars().count()).max().unwrap_or_default()
    });
    let line = |row: &[String; 8]| {
        let padded = row.iter().zip(widths).map(|(text, width)| format!("{text:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&head)];
    for (row, columns) in rows.iter().zip(&told) {
        lines.push(line(columns));
        lines.extend(row.error.iter().map(|error| format!("    last error: {error}")));
        lines.extend(row.advice.iter().map(|advice| format!("    what to do: {advice}")));
    }
    lines.join("\n")
}

fn columns(row: &Row) -> [String; 8] {
    let text = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let pod = row.namespace.as_deref().zip(row.name.as_deref());
    [
        row.identity.clone(),
        pod.map_or_else(|| row.uid.clone(), |(namespace, name)| format!("{namespace}/{name} ({})", row.uid)),
        row.state.clone(),
        text(row.serial.as_deref()),
        row.not_after.map_or_else(|| "-".to_owned(), moment),
        row.seconds_left.map_or_else(|| "-".to_owned(), duration),
        row.next_renewal.map_or_else(|| "-".to_owned(), moment),
        text(row.anchor.as_deref().map(|anchor| anchor.get(..SHORT).unwrap_or(anchor))),
    ]
}

/// The two largest units.
fn duration(seconds: u64) -> String {
    let minutes = seconds / 60;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, hours, _, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_wrong_beneath_its_row() {
        let good = Row {
            identity: "spiffe://x.org/ns/shop/sa/web".into(),
            namespace: Some("shop".into()),
            name: Some("web".into()),
            uid: "uid-1".into(),
            state: "valid".into(),
            serial: Some("0aff".into()),
            not_after: Some(1_700_000_000),
            seconds_left: Some(5 * 3600 + 61),
            next_renewal: Some(1_600_000_000),
            anchor: Some("0123456789abcdef".into()),
            error: None,
            advice: None,
        };
        let mut bad = Row { state: "backoff".into(), name: None, uid: "uid-2".into(), ..good.clone() };
        (bad.serial, bad.not_after, bad.seconds_left, bad.next_renewal, bad.anchor) = (None, None, None, None, None);
        (bad.error, bad.advice) = (Some("why".into()), Some("this".into()));
        let expected = "\
IDENTITY                       POD               STATE    SERIAL  NOT AFTER             LEFT  NEXT RENEWAL          ANCHOR
spiffe://x.org/ns/shop/sa/web  shop/web (uid-1)  valid    0aff    2023-11-14T22:13:20Z  5h1m  2020-09-13T12:26:40Z  0123456789ab
spiffe://x.org/ns/shop/sa/web  uid-2             backoff  -       -                     -     -                     -
    last error: why
    what to do: this";
        assert_eq!(table(&[good, bad]), expected);
    }

    #[test]
    fn a_duration_has_its_two_largest_units() {
        let told = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 90_061].map(duration);
        assert_eq!(told, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h", "1d1h"]);
    }
}

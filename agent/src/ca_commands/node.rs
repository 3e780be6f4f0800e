//! `mantle ca node …`.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use ca::operate::NodeLine;
use clap::{Args, Subcommand};

use super::{moment, operate, print, read_config};
use crate::app::{AppError, say};

/// A CA that runs accepts within this.
const ANSWER: Duration = Duration::from_secs(1);

/// What to do with nodes that have joined.
#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// Print the nodes that have joined, one a line: name, key, what its agents have in force.
    List {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Forget a node's key: whatever has it can neither attest, sign nor watch any more. The node needs a new join token.
    /// What its pods hold stays good until it ends; `mantle ca deny add --node` cuts them off at once.
    Evict(One),
    /// Give a node no new certificates. It goes on with those that it has, until they end.
    Quarantine {
        #[command(flatten)]
        one: One,
        /// Why: for the list and the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Give it certificates again.
    Release(One),
}

#[derive(Debug, Args)]
pub(super) struct One {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The node's name.
    #[arg(value_name = "NAME")]
    node: String,
}

impl Node {
    pub(super) fn run(self) -> Result<(), AppError> {
        match self {
            Self::List { config } => {
                let config = read_config(&config)?;
                let lines = operate::nodes(&config)?;
                if TcpStream::connect_timeout(&config.listen, ANSWER).is_err() {
                    let listen = config.listen;
                    say(&format!(
                        "mantle: no CA answers at {listen} from here: this is what the one that ran last noted"
                    ));
                }
                for line in lines {
                    print(&told(&line))?;
                }
                Ok(())
            }
            Self::Evict(One { config, node }) => {
                operate::evict(&read_config(&config)?, &node)?;
                print(&format!(
                    "{node} is evicted; to have it back, make it a token with `mantle ca token --node {node}`"
                ))
            }
            Self::Quarantine { one: One { config, node }, reason } => {
                operate::quarantine(&read_config(&config)?, &node, &reason)?;
                print(&format!("{node} is in quarantine; end that with `mantle ca node release {node}`"))
            }
            Self::Release(One { config, node }) => {
                operate::release(&read_config(&config)?, &node)?;
                print(&format!("{node} gets certificates again"))
            }
        }
    }
}

fn told(line: &NodeLine) -> String {
    let seen = match (line.is_connected, line.last_seen) {
        (true, _) => "watches".to_owned(),
        (false, 0) => "never watched".to_owned(),
        (false, last) => format!("last seen {}", moment(last)),
    };
    let mut text = format!("{} key {} sequence {} of {}, {seen}", line.name, line.key, line.sequence, line.newest);
    if let Some(reason) = &line.quarantine {
        text.push_str(&format!(", in quarantine: {reason}"));
    }
    if !line.rejected.is_empty() {
        text.push_str(&format!(", rejects it: {}", line.rejected));
    }
    text
}

//! `mantle ca federation …` and `mantle ca bundle`.

use std::path::{Path, PathBuf};

use agent_core::identity::TrustDomain;
use ca::federation::{self, Line, Source, Wish};
use clap::{Args, Subcommand, ValueEnum};

use super::{moment, print, read_config};
use crate::app::{AppError, system};

/// What to do with other clusters.
#[derive(Debug, Subcommand)]
pub(super) enum Federation {
    /// Believe another trust domain by its own bundle, or take a newer one. Agents are told within a second.
    Add {
        #[command(flatten)]
        one: One,
        /// Its bundle: what `mantle ca bundle` prints there, brought by a way that you trust.
        #[arg(long, value_name = "FILE", required_unless_present = "endpoint")]
        bundle: Option<PathBuf>,
        /// Its bundle endpoint, which the CA asks for newer ones. Left out: the one that it has stays, unless it is disabled (`remove` forgets
        /// it).
        #[arg(long, value_name = "URL", requires = "profile")]
        endpoint: Option<String>,
        /// How that endpoint proves itself.
        #[arg(long, value_enum, requires = "endpoint")]
        profile: Option<Profile>,
        /// With `https_spiffe`: the endpoint's SPIFFE ID, such as spiffe://b.example.org/ca/bundle.
        #[arg(long, value_name = "SPIFFE-ID", required_if_eq("profile", "https_spiffe"))]
        endpoint_id: Option<String>,
    },
    /// Print the trust domains that are federated with, one a line.
    List {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Cut a trust domain off: nobody of it is believed any more, and its connections end within seconds. To have it back, add it
    /// with a new bundle.
    Disable(One),
    /// Forget a trust domain; it is then one like any other of which nobody is believed.
    Remove(One),
}

/// Of SPIFFE Federation, §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Profile {
    /// By a certificate that the Web's roots vouch for.
    HttpsWeb,
    /// By its SPIFFE ID.
    HttpsSpiffe,
}

#[derive(Debug, Args)]
pub(super) struct One {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The trust domain, such as b.example.org.
    #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
    trust_domain: TrustDomain,
}

impl Federation {
    pub(super) fn run(self) -> Result<(), AppError> {
        match self {
            Self::Add { one: One { config, trust_domain }, bundle, endpoint, profile, endpoint_id } => {
                let source = match (endpoint, profile, endpoint_id) {
                    (Some(url), Some(Profile::HttpsSpiffe), Some(endpoint)) => {
                        Some(Source::HttpsSpiffe { url, endpoint })
                    }
                    (Some(url), Some(Profile::HttpsWeb), None) => Some(Source::HttpsWeb { url }),
                    (None, None, None) => None,
                    _ => {
                        let words = "`--endpoint-id` is for `--profile https_spiffe` alone".to_owned();
                        return Err(ca::CaError::Refused(words).into());
                    }
                };
                let wish = Wish { trust_domain, source, bundle };
                let source = federation::add(&read_config(&config)?, &wish)?;
                print(&format!("{} is federated with, {}", wish.trust_domain, from(&source)))
            }
            Self::List { config, json } => list(&config, json),
            Self::Disable(One { config, trust_domain: domain }) => {
                match federation::disable(&read_config(&config)?, &domain)? {
                    true => print(&format!("nobody of {domain} is believed from now on")),
                    false => print(&format!("{domain} was disabled before; see `mantle ca federation list`")),
                }
            }
            Self::Remove(One { config, trust_domain: domain }) => {
                federation::remove(&read_config(&config)?, &domain)?;
                print(&format!("{domain} is federated with no more"))
            }
        }
    }
}

/// Our own bundle, for other clusters.
pub(super) fn bundle(config: &Path, pem: bool) -> Result<(), AppError> {
    let config = read_config(config)?;
    let text = match pem {
        true => federation::own_pem(&config)?,
        false => federation::own(&config)?.to_json().map_err(ca::CaError::from)?,
    };
    print(&text.trim_end())
}

fn list(config: &Path, json: bool) -> Result<(), AppError> {
    let lines = federation::list(&read_config(config)?)?;
    if json {
        let text = serde_json::to_string_pretty(&lines).map_err(std::io::Error::from);
        return print(&text.map_err(system("cannot print"))?);
    }
    lines.iter().try_for_each(|line| print(&told(line)))
}

fn from(source: &Source) -> String {
    match source {
        Source::File => "by file".to_owned(),
        Source::HttpsWeb { url } => format!("from {url}"),
        Source::HttpsSpiffe { url, endpoint } => format!("from {url} as {endpoint}"),
    }
}

fn told(line: &Line) -> String {
    let source = from(&line.source);
    let sequence = line.sequence.map_or("no sequence".to_owned(), |sequence| format!("sequence {sequence}"));
    let mut text = format!("{} {source}, {sequence}, {} anchors", line.trust_domain, line.anchors);
    if let Some(poll) = &line.poll {
        let last =
            poll.last_success.map_or("never brought one".to_owned(), |last| format!("brought one {}", moment(last)));
        text.push_str(&format!(", {last}, asked next {}", moment(poll.next)));
        if let Some(error) = &poll.last_error {
            text.push_str(&format!(", last error: {error}"));
        }
    }
    if let Some(disabled) = &line.disabled {
        text.push_str(&format!(", disabled {} by {}", moment(disabled.since), disabled.who));
    }
    text
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|error: agent_core::identity::IdentityError| error.to_string())
}

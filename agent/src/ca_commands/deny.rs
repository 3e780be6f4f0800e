//! `mantle ca deny …`.

use std::path::PathBuf;

use agent_core::directory::Pod;
use agent_core::identity::TrustDomain;
use ca::config::Config;
use ca::deny::{Denied, NotDeniable};
use ca::revoking::{self, Imported, Wish};
use clap::{Args, Subcommand};

use super::{moment, operate, print, read_config};
use crate::app::{self, AppError, say};

/// What to do with the deny-list.
#[derive(Debug, Subcommand)]
pub(super) enum Deny {
    /// Deny an identity, a pod, a key, a certificate, a node or a trust domain to every agent, until it is removed.
    Add {
        #[command(flatten)]
        what: What,
        /// Why: for the list and the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Deny our own trust domain, or a root of it, too: that ends every connection of the mesh.
        #[arg(long)]
        force: bool,
    },
    /// Take it back: it may connect again, if its certificate is good.
    Remove {
        #[command(flatten)]
        what: What,
    },
    /// Deny every certificate that a revocation list (CRL) revokes. Bring each new list as it comes: none is fetched.
    ///
    /// The list is a full one, in DER or PEM, in force, 1 MiB at most, and signed by a CA of the trust domain: our own root or issuing
    /// CA, an anchor of one that is federated with, or whom `--issuer` shows. It is taken whole or not at all. Its serial numbers are
    /// denied for the trust domain, whoever of it issued them, and stay so until they are removed: no list takes anything back.
    Import(Import),
    /// Print the list, one entry a line: when, by whom, what, why.
    List {
        /// The CA's configuration (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Where a revocation list is, and whose.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The list: DER, or one `X509 CRL` in PEM; at most 1 MiB.
    #[arg(value_name = "FILE")]
    list: PathBuf,
    /// Whose certificates it is about; by default our own trust domain's.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// Its issuer's certificate, where that is an intermediate that the CA does not have, and up to four above it (PEM).
    #[arg(long, value_name = "PEM")]
    issuer: Option<PathBuf>,
}

/// Exactly one thing.
#[derive(Debug, Args)]
pub(super) struct What {
    /// The CA's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    kind: Kind,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Kind {
    /// Everybody with this identity, such as spiffe://example.org/ns/shop/sa/web.
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<String>,
    /// One pod, by its UID; its siblings go on.
    #[arg(long, value_name = "UID")]
    pod: Option<String>,
    /// A leaf's, an intermediate's or an anchor's key: SHA-256 of its SubjectPublicKeyInfo, 64 hex digits.
    #[arg(long, value_name = "HASH")]
    key: Option<String>,
    /// One certificate, a leaf's or an intermediate's, by its serial number in hex; of another trust domain DOMAIN/SERIAL.
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,
    /// Every pod that the directory has on this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Everybody of a trust domain.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
}

impl Deny {
    pub(super) fn run(self) -> Result<(), AppError> {
        match self {
            Self::Add { what, reason, force } => {
                let config = read_config(&what.config)?;
                let what = what.kind.denied(&config).map_err(ca::CaError::from)?;
                if !force && is_everybody(&config, &what) {
                    let words = format!(
                        "{what} is this CA's own (root): no pod could connect to any other. Say `--force` if it is to be so"
                    );
                    return Err(ca::CaError::Refused(words).into());
                }
                let is_new = operate::deny(&config, what.clone(), &reason)?;
                if let Some(doubt) = doubt(&config, &what) {
                    say(&format!("mantle: {doubt}: is it what you mean? It is denied all the same"));
                }
                match is_new {
                    true => print(&format!("{what} is denied from now on; take it back with `mantle ca deny remove`")),
                    false => print(&format!("{what} was denied before; see `mantle ca deny list`")),
                }
            }
            Self::Remove { what } => {
                let config = read_config(&what.config)?;
                let what = what.kind.denied(&config).map_err(ca::CaError::from)?;
                if !operate::allow(&config, &what)? {
                    let words = format!("{what} is not denied: see `mantle ca deny list` for what is");
                    return Err(ca::CaError::Refused(words).into());
                }
                print(&format!("{what} is denied no more"))
            }
            Self::Import(import) => import.run(),
            Self::List { config } => {
                for line in operate::denied(&read_config(&config)?)? {
                    print(&format!("{} {} {}: {}", moment(line.since), line.by, line.what, line.reason))?;
                }
                Ok(())
            }
        }
    }
}

/// Whether nobody is left: our own trust domain, or a root of it.
fn is_everybody(config: &Config, what: &Denied) -> bool {
    match what {
        Denied::TrustDomain(domain) => *domain == config.trust_domain.as_str(),
        // What can't be looked at keeps nobody from a denial.
        Denied::Key(key) => {
            ca::rotating::status(config).is_ok_and(|status| [status.old_anchor, status.new_anchor].contains(key))
        }
        Denied::Identity(_) | Denied::Pod(_) | Denied::Serial { .. } | Denied::Node(_) => false,
    }
}

/// Why it may be a slip of the pen: nothing that is known here is denied by it. Keys and serial numbers are in no list.
fn doubt(config: &Config, what: &Denied) -> Option<String> {
    let directory = app::read(&config.directory).ok().and_then(|text| agent_core::directory::parse(&text).ok());
    let has = |is_it: &dyn Fn(&Pod) -> bool| {
        directory.as_ref().is_none_or(|directory| directory.pods().any(|pod| is_it(pod)))
    };
    let joined = operate::nodes(config).unwrap_or_default();
    let is_joined = |node: &String| joined.iter().any(|line| line.name == *node);
    let known = match what {
        Denied::Key(_) | Denied::Serial { .. } => true,
        Denied::Pod(uid) => has(&|pod| pod.uid.as_str() == uid),
        Denied::Identity(identity) => {
            let is_outside = identity.split('/').nth(3) == Some("outside");
            is_outside || has(&|pod| pod.identity.as_str() == identity)
        }
        Denied::Node(node) => has(&|pod| pod.node == *node) || is_joined(node),
        Denied::TrustDomain(domain) => {
            let others = ca::federation::list(config);
            *domain == config.trust_domain.as_str()
                || others.is_ok_and(|others| others.iter().any(|line| line.trust_domain == *domain))
        }
    };
    let place =
        if matches!(what, Denied::TrustDomain(_)) { "this CA does not believe" } else { "the directory does not have" };
    (!known).then(|| format!("{place} {what}"))
}

impl Import {
    fn run(self) -> Result<(), AppError> {
        let config = read_config(&self.config)?;
        let trust_domain = self.trust_domain.unwrap_or_else(|| config.trust_domain.clone());
        let wish = Wish { list: self.list, trust_domain, issuer: self.issuer };
        let Imported { number, issuer, new, known, revokes_issuing } = revoking::import(&config, &wish)?;
        print(&format!("CRL {number} of {issuer}: {new} denied from now on, {known} were denied before"))?;
        if revokes_issuing {
            let what = "it revokes the issuing CA that is in use: nobody is believed by it any more; make another one";
            print(&format!("{what} with `mantle ca rotate issuing`"))?;
        }
        Ok(())
    }
}

impl Kind {
    /// The one that was given: clap has seen to that.
    fn denied(self, config: &Config) -> Result<Denied, NotDeniable> {
        let Self { identity, pod, key, serial, node, trust_domain } = self;
        let identity = identity.map(|text| Denied::identity(&text));
        let pod = pod.map(|text| Denied::pod(&text));
        let key = key.map(|text| Denied::key(&text));
        let serial = serial.map(|text| Denied::serial(&text, &config.trust_domain));
        let node = node.map(|text| Denied::node(&text));
        let given = identity.or(pod).or(key).or(serial).or(node);
        given.unwrap_or_else(|| Denied::trust_domain(&trust_domain.unwrap_or_default()))
    }
}

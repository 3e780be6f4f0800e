//! Mantle's certificate authority, `ca.v1`: a node proves itself, and gets certificates for the pods that run on it.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | `ca.yaml` |
//! | [`wire`] | the gRPC service, as generated |
//! | `authority` | root and issuing CA, and what their certificates look like |
//! | [`issuing`], [`ends`] | another issuing CA under the same root, and when it is time for one |
//! | [`chain`] | how much of a certificate chain is looked at |
//! | `csr`, `claims` | what a certificate request must be, and whose key it is |
//! | `crl`, [`revoking`] | what a certificate revocation list must be, and what it denies |
//! | `limits`, `turns` | how much a node may ask for, how much is worked on at once, and whose turn it is |
//! | `keys`, `passphrase` | private keys as files, under a passphrase |
//! | [`state_files`] | files that nobody else may change, and keys that nobody else may read |
//! | `state`, `storage` | tokens, pinned node keys and what Watch tells: one writer at a time, under a file lock |
//! | `current` | state and authority as they are, followed while the CA runs |
//! | [`deny`] | the deny-list |
//! | [`federation`] | other clusters: their bundles, and ours for them |
//! | `bundle` | a trust domain's anchors in the form in which they are exchanged |
//! | `agents`, `watching` | what the agents are told, and what they answered |
//! | [`operate`] | what `mantle ca …` asks for, whether the CA runs or not |
//! | [`outside`] | certificates for clients that are no pods |
//! | `rotation`, [`rotating`] | root rotation: what follows what, and the steps |
//! | [`token`] | join tokens |
//! | `service`, `server` | the four calls, and TLS below them |
//! | `upkeep` | what falls due while the CA runs |
//! | `connection`, `places` | how long a connection may be, and how many there may be |

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

mod agents;
mod audit;
mod authority;
mod bundle;
#[cfg(test)]
#[path = "../../fuzz/checks/bundle.rs"]
mod bundle_check;
pub mod chain;
mod claims;
pub mod config;
mod connection;
mod crl;
#[cfg(test)]
#[path = "../../fuzz/checks/crl.rs"]
mod crl_check;
mod csr;
#[cfg(test)]
#[path = "../../fuzz/checks/csr.rs"]
mod csr_check;
mod current;
pub mod deny;
#[cfg(test)]
#[path = "../../fuzz/checks/der_tree.rs"]
mod der_tree;
mod directory;
pub mod ends;
pub mod federation;
#[cfg(test)]
mod freed;
pub mod issuing;
mod keys;
mod limits;
pub mod operate;
pub mod outside;
mod passphrase;
mod peer;
pub mod pem;
mod places;
pub mod revoking;
pub mod rotating;
mod rotation;
mod server;
mod service;
mod stamp;
mod state;
pub mod state_files;
mod storage;
pub mod token;
mod turns;
mod upkeep;
mod watching;

pub use authority::Brought;
pub use limits::NodeLimit;
pub use passphrase::Passphrase;
pub use state::roots::Phase;

/// The service's messages, client and server, generated from `proto/ca.proto`.
#[expect(missing_docs, clippy::all, clippy::allow_attributes_without_reason, reason = "generated; see proto/ca.proto")]
pub mod wire {
    tonic::include_proto!("ca.v1");

    /// What a node's key signs in `Attest`: bound to the nonce, the node and the request, and good for nothing else.
    pub fn attest_message(nonce: &[u8], node: &str, csr: &[u8]) -> Vec<u8> {
        use sha2::{Digest as _, Sha256};
        [b"mantle ca.v1 attest\0", nonce, &*Sha256::digest(node), &*Sha256::digest(csr)].concat()
    }
}

/// Why the CA does not run.
#[derive(Debug, Error)]
pub enum CaError {
    /// The state directory can't be used.
    #[error(transparent)]
    State(#[from] state_files::StateError),
    /// A file of the state is not what it should be.
    #[error("{} is damaged: {what}; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory file can't be used.
    #[error("cannot use the directory {}: {what}", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Keys or certificates can't be made.
    #[error("cannot make a key or certificate: {0}")]
    Crypto(String),
    /// The address can't be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, std::io::Error),
    /// The node's name is none.
    #[error("`{0}` is no node name: lower-case letters, digits, `-` and `.`")]
    Node(String),
    /// A key's passphrase is missing or wrong.
    #[error("{0}")]
    Passphrase(String),
    /// What an operator brings can't be used.
    #[error("{}: {what}", path.display())]
    Brought {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        what: String,
    },
    /// There is one already.
    #[error("there is a CA in `state_dir` already: to give it another root, use `mantle ca rotate start --root …`")]
    IsMade,
    /// The rotation can't take that step now.
    #[error("{0}")]
    Rotation(String),
    /// Nothing can be issued that ends before its issuer does.
    #[error(
        "nothing can be issued: the issuing CA ends at {0}. Make another one under the same root with `mantle ca rotate issuing`"
    )]
    IssuerEnds(String),
    /// Somebody else writes the state, and goes on doing so.
    #[error("another `mantle ca` is at work on the state and does not end: `fuser -v {}` names it", .0.display())]
    NoTurn(PathBuf),
    /// There is no CA in the state directory yet.
    #[error("there is no CA in {} yet: start it once with `mantle ca --config FILE`, or see `state_dir`", .0.display())]
    NoCa(PathBuf),
    /// That cannot be denied.
    #[error(transparent)]
    NotDeniable(#[from] deny::NotDeniable),
    /// A trust domain's bundle can't be used.
    #[error(transparent)]
    Bundle(#[from] bundle::BundleError),
    /// What was asked for may not be.
    #[error("{0}")]
    Refused(String),
    /// The server failed.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

impl CaError {
    /// Says which key it is about.
    fn of(self, key: &str) -> Self {
        if let Self::Passphrase(what) = self { Self::Passphrase(format!("{key}: {what}")) } else { self }
    }
}

/// Runs the CA until `stop` resolves. Keys are made on the first start.
///
/// # Errors
/// [`CaError`].
pub async fn run(config: config::Config, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), CaError> {
    server::run(config, stop).await
}

/// Starts a CA with a root and an issuing CA that an operator brings; the state directory has none yet.
///
/// # Errors
/// [`CaError`].
pub fn import(config: &config::Config, brought: &Brought) -> Result<(), CaError> {
    authority::Authority::import(&config.storage()?, &config.trust_domain, brought)
}

/// Makes a join token for a node, good for one use. Works whether the CA runs or not.
///
/// # Errors
/// [`CaError`].
pub fn create_token(config: &config::Config, node: &str, ttl: Duration) -> Result<String, CaError> {
    if !token::is_node_name(node) {
        return Err(CaError::Node(node.to_owned()));
    }
    let storage = config.storage()?;
    let authority = authority::Authority::open(&storage, &config.trust_domain)?;
    let token = token::JoinToken::generate(node, authority.root_key_hash());
    storage.change(|state| state.add_token(&token, ttl))?;
    Ok(token.to_string())
}

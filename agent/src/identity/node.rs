//! This node: its own key, and the hash of the root by which it knows its CA. Both lie in the state directory, so that a
//! killed agent returns by itself.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use ca::state_files::{self, StateError};
use ca::token::JoinToken;
use thiserror::Error;
use tracing::warn;
use zeroize::Zeroizing;

use super::IdentityConfig;
use super::roots::Roots;

/// In bytes: more than a token with the longest name has.
const LONGEST_TOKEN: u16 = 1024;

/// Why this node has no identity of its own.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The state can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The token's file can't be read.
    #[error("cannot read the join token in {}: {source}; `mantle ca token --node NAME` makes one", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A file of the state is not what it should be.
    #[error("{} is damaged; move it away and join this node again with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Nothing says which CA to believe.
    #[error(
        "this node has not joined: make a token with `mantle ca token --node {0}` and name its file in `ca.join_token_file`"
    )]
    NotJoined(String),
    /// The file has no token in it.
    #[error("{}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What it should be.
        source: ca::token::NotAToken,
    },
    /// The token is another node's.
    #[error("the join token is for node {found}, this is node {wanted}")]
    OtherNode {
        /// The token's.
        found: String,
        /// As configured.
        wanted: String,
    },
    /// The key can't be made.
    #[error("cannot make the node's key")]
    Key,
}

/// This node's key and what it knows of its CA.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) name: String,
    key: Arc<EcdsaKeyPair>,
    pub(super) roots: Roots,
    /// Only until the first attestation has succeeded, and when the CA does not know the key any more.
    pub(super) join_token: Option<Zeroizing<String>>,
    pub(super) token_file: Option<PathBuf>,
}

impl Node {
    /// Reads the state, or makes it.
    pub(super) fn open(config: &IdentityConfig) -> Result<Self, IdentityError> {
        let folder = &config.state_dir;
        state_files::open_folder(folder)?;
        let key = node_key(&folder.join("node.key"))?;
        let path = folder.join("root.hash");
        let kept = Roots::kept(&path)?;
        let token = config.join_token_file.as_deref().map(|path| read_token(path, &config.node)).transpose();
        let token = match (token, &kept) {
            (Ok(token), _) => token.flatten(),
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => {
                warn!(%error, "the join token is not used: this node has joined before");
                None
            }
        };
        // Our CA is not told another one's secret.
        let token = token.filter(|token| {
            let ours = kept.as_ref().is_none_or(|kept| kept.has(&token.root_key_hash()));
            if !ours {
                warn!("the join token is not used: {}", of_another_root(&path));
            }
            ours
        });
        let roots = kept.or_else(|| token.as_ref().map(|token| Roots::told(&path, token.root_key_hash())));
        let roots = roots.ok_or_else(|| IdentityError::NotJoined(config.node.clone()))?;
        let join_token = token.map(|token| Zeroizing::new(token.to_string()));
        let (name, token_file) = (config.node.clone(), config.join_token_file.clone());
        Ok(Self { name, key: Arc::new(key), roots, join_token, token_file })
    }

    /// The public key, an uncompressed point.
    pub(super) fn public_key(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    /// Signs with the node's key.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.key.sign(&SystemRandom::new(), message).ok().map(|signature| signature.as_ref().to_vec())
    }

    /// The CA has let this node in: from now on its key is enough.
    pub(super) fn joined(&mut self) {
        if self.join_token.take().is_none() {
            return;
        }
        if let Err(error) = self.roots.keep() {
            warn!(%error, "the next start needs the token again");
        }
    }

    /// The CA does not let this node in. An operator may have brought a token since: the next attempt is made with that. Says what
    /// would help.
    pub(super) fn turned_away(&mut self) -> String {
        let name = &self.name;
        let Some(path) = &self.token_file else {
            return format!(
                "make a token there (`mantle ca token --node {name}`), name its file in `ca.join_token_file`, and start again"
            );
        };
        // A pipe that nobody writes to would stop all that this thread does.
        if fs::metadata(path).is_ok_and(|file| !file.is_file()) {
            let path = path.display();
            return format!(
                "{path} is no file that can be read again: start again with a new token there (`mantle ca token --node {name}`)"
            );
        }
        let token = read_token(path, name).map(|token| {
            let ours = token.filter(|token| self.roots.has(&token.root_key_hash()));
            ours.ok_or_else(|| of_another_root(self.roots.path()))
        });
        match token {
            Ok(Ok(token)) => {
                self.join_token = Some(Zeroizing::new(token.to_string()));
                let path = path.display();
                format!(
                    "make a new token there (`mantle ca token --node {name}`) and put it into {path}: the next attempt is made with it"
                )
            }
            Ok(Err(why)) => format!("the token in {} is not used: {why}", path.display()),
            Err(error) => format!("its token is not used: {error}"),
        }
    }
}

fn of_another_root(kept: &Path) -> String {
    format!(
        "it is of another root than the one this node has joined; if the CA's root was replaced while this node was away, remove {} and \
         start again",
        kept.display()
    )
}

fn node_key(path: &Path) -> Result<EcdsaKeyPair, IdentityError> {
    let der = match state_files::read_key(path)? {
        Some(der) => der,
        None => {
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
            let key = key.map_err(|_| IdentityError::Key)?;
            let der = Zeroizing::new(key.as_ref().to_vec());
            state_files::write(path, &der)?;
            der
        }
    };
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
        .map_err(|_| IdentityError::Damaged { path: path.to_owned() })
}

fn read_token(path: &Path, node: &str) -> Result<Option<JoinToken>, IdentityError> {
    let wrong = |source| IdentityError::TokenFile { path: path.to_owned(), source };
    let mut text = Zeroizing::new(String::with_capacity(LONGEST_TOKEN.into()));
    File::open(path).map_err(wrong)?.take(LONGEST_TOKEN.into()).read_to_string(&mut text).map_err(wrong)?;
    let token: JoinToken = text.parse().map_err(|source| IdentityError::Token { path: path.to_owned(), source })?;
    if token.node() != node {
        return Err(IdentityError::OtherNode { found: token.node().to_owned(), wanted: node.to_owned() });
    }
    Ok(Some(token))
}

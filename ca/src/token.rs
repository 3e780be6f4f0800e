//! Join tokens: `mantle1.<node>.<secret>.<hash of the root's key>`. Good for one node, one use, and a short time.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::fill;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

pub use agent_core::identity::KeyHash;

const PREFIX: &str = "mantle1.";

/// Whether the text can be a node's name. Whatever else a stranger says as one is neither looked up nor logged.
pub(crate) fn is_node_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed)
}

/// The text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this is no join token: it looks like mantle1.<node>.<secret>.<hash>; make one with `mantle ca token`")]
pub struct NotAToken;

/// A join token. Its secret is wiped when it is dropped, and never shown by `Debug`.
pub struct JoinToken {
    node: String,
    secret: Zeroizing<[u8; 32]>,
    root_key_hash: KeyHash,
}

impl JoinToken {
    /// A fresh one.
    pub(crate) fn generate(node: &str, root_key_hash: KeyHash) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        // The generator aborts the process rather than to give out what can be guessed.
        #[expect(
            clippy::expect_used,
            reason = "aws-lc's generator does not fail; without randomness nothing may go on"
        )]
        fill(&mut *secret).expect("the system's random generator works");
        Self { node: node.to_owned(), secret, root_key_hash }
    }

    /// The node that it is for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The hash of the root's key, by which the node knows the CA.
    pub fn root_key_hash(&self) -> KeyHash {
        self.root_key_hash
    }

    /// What is kept of the secret.
    pub(crate) fn secret_hash(&self) -> KeyHash {
        Sha256::digest(*self.secret).into()
    }

    /// Whether this is the token of which that was kept.
    pub(crate) fn matches(&self, kept: &KeyHash) -> bool {
        verify_slices_are_equal(&self.secret_hash(), kept).is_ok()
    }
}

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(NotAToken)?;
        // A node's name may have dots in it; the two fields behind it have none.
        let (rest, hash) = rest.rsplit_once('.').ok_or(NotAToken)?;
        let (node, secret) = rest.rsplit_once('.').ok_or(NotAToken)?;
        if !is_node_name(node) {
            return Err(NotAToken);
        }
        let secret = Zeroizing::new(from_hex(secret).ok_or(NotAToken)?);
        Ok(Self { node: node.to_owned(), secret, root_key_hash: from_hex(hash).ok_or(NotAToken)? })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}.{}", self.node, to_hex(&*self.secret), to_hex(&self.root_key_hash))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    // A text that grows leaves parts of itself behind, and it may be a key's.
    let mut text = String::with_capacity(2 * bytes.len());
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.for_each(|digit| text.extend(char::from_digit(digit.into(), 16)));
    text
}

/// 32 bytes from lower-case hex.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_token_survives_being_written_and_names_its_node() {
        let token = JoinToken::generate("node-b.example", [7; 32]);
        let read: JoinToken = format!("{token}\n").parse().unwrap();
        assert_eq!((read.node(), read.root_key_hash()), ("node-b.example", [7; 32]));
        assert!(read.matches(&token.secret_hash()));
        assert!(!JoinToken::generate("node-b.example", [7; 32]).matches(&token.secret_hash()));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "mantle1.", "mantle1.a.b.c", "mantle2.node.00.00", "mantle1..x.y"] {
            assert_eq!(text.parse::<JoinToken>().err(), Some(NotAToken), "{text}");
        }
    }

    #[test]
    fn a_nodes_name_is_short_and_plain() {
        for name in ["a", "node-b.example", &"a".repeat(253)] {
            assert!(is_node_name(name), "{name}");
        }
        for name in ["", "Node", "node/b", "node_b", "node\n", "n\u{f6}de", &"a".repeat(254)] {
            assert!(!is_node_name(name), "{name:?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = JoinToken::generate("node", [7; 32]);
        assert!(!format!("{token:?}").contains(&to_hex(&*token.secret)));
    }
}

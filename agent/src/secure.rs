//! Mutual TLS between agents: who the peer is, and records over one socket.
//!
//! TLS 1.3 only, both sides verified, no resumption, no early data, no SNI. Nothing outside this module and the CA's
//! client imports rustls.

mod certificate;
mod channel;
mod client;
mod credentials;
mod der;
mod ending;
mod handshake;
mod liveness;
mod path;
mod provider;
mod refusal;
mod session;
mod shape;
mod trust;
mod verifier;
mod verify;
mod wire;

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
#[path = "../../fuzz/checks/verify.rs"]
mod verify_check;

pub use channel::{Channel, Received};
pub use client::{Client, ClientError};
pub use credentials::{Credentials, CredentialsError, Terms};
pub use ending::{ChannelError, Ending};
pub use handshake::{HandshakeError, accept, connect};
pub use liveness::{Path, Watch, has_vanished};
pub use refusal::VerifyError;
pub use trust::{Distrust, Ends, Trust, TrustError, Withdrawn};

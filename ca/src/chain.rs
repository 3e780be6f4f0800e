//! How much of a chain of certificates is looked at. webpki bounds the signatures that it checks, and hardly the ways that it
//! tries: a hundred authorities of one name, which anybody can make, cost it a tenth of a second.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

/// As many as agents take, beside the first.
pub const MOST_INTERMEDIATES: usize = 5;
/// In bytes, all together.
pub const LONGEST: usize = 32 * 1024;

/// More or longer certificates than anybody needs: the fault of who shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate chain is too long")]
pub struct TooLong;

impl From<TooLong> for CertificateError {
    fn from(error: TooLong) -> Self {
        Self::Other(OtherError(Arc::new(error)))
    }
}

/// To be asked before a chain is looked at.
///
/// # Errors
/// [`TooLong`].
pub fn check(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), TooLong> {
    let length: usize = intermediates.iter().chain([leaf]).map(|certificate| certificate.len()).sum();
    if intermediates.len() > MOST_INTERMEDIATES || length > LONGEST { Err(TooLong) } else { Ok(()) }
}

/// Asks another verifier, but not about a chain that is too long.
#[derive(Debug)]
pub(crate) struct Bounded(pub(crate) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Bounded {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check(end_entity, intermediates).map_err(CertificateError::from)?;
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_agents_take_are_looked_at_and_no_more() {
        let one = |length: usize| CertificateDer::from(vec![0; length]);
        let checked = |count: usize, length: usize| check(&one(100), &vec![one(length); count]);
        assert_eq!((checked(0, 0), checked(5, 100)), (Ok(()), Ok(())));
        assert_eq!(checked(6, 100), Err(TooLong));
        assert_eq!((checked(4, 8000), checked(5, 8000)), (Ok(()), Err(TooLong)));
        assert_eq!(check(&one(LONGEST), &[]), Ok(()));
        assert_eq!(check(&one(LONGEST + 1), &[]), Err(TooLong));
    }
}

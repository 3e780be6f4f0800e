//! Whether the far end is the one bundle endpoint that it should be: an X509-SVID with exactly that identity, under the anchors of
//! that identity's own trust domain.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;

use agent_core::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::chain;
use crate::deny::serial_of;
use crate::token::KeyHash;

/// The context-specific tag of a `uniformResourceIdentifier` (RFC 5280 §4.2.1.6).
const URI_TAG: u32 = 6;

/// Why the far end is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotTheEndpoint {
    #[error("its certificate, or one above it, is malformed or too long")]
    Malformed,
    #[error("its certificate has {0} URI names, not one")]
    UriCount(usize),
    #[error("it is {0}, expected was {1}")]
    OtherIdentity(String, SpiffeId),
    #[error("its certificate's key usage is not critical, lacks digitalSignature, or lets it sign certificates")]
    KeyUsage,
    #[error("a certificate above its own may not sign certificates")]
    Intermediate,
    #[error("its key or certificate, or one above it, is denied")]
    Denied,
    #[error("its certificate was not issued by an anchor that we have of its trust domain: {0}")]
    Path(webpki::Error),
}

/// The question that rustls asks.
#[derive(Debug)]
pub(crate) struct EndpointVerifier {
    anchors: Vec<CertificateDer<'static>>,
    expected: SpiffeId,
    denied: Denials,
    algorithms: WebPkiSupportedAlgorithms,
}

/// What vouches for no endpoint of a trust domain, nor is its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Denials {
    pub(crate) keys: HashSet<KeyHash>,
    /// Of that trust domain's certificates, in hex.
    pub(crate) serials: HashSet<String>,
}

impl Denials {
    /// Whether the other one denies all of this.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.keys.is_subset(&other.keys) && self.serials.is_subset(&other.serials)
    }

    fn has_key_of(&self, certificate: &X509Certificate<'_>) -> bool {
        let key: KeyHash = Sha256::digest(certificate.public_key().raw).into();
        self.keys.contains(&key)
    }

    /// A leaf's or an intermediate's.
    fn has(&self, certificate: &X509Certificate<'_>) -> bool {
        self.has_key_of(certificate) || self.serials.contains(&serial_of(certificate))
    }
}

impl EndpointVerifier {
    /// `anchors` are those of the expected identity's trust domain. Nothing that is `denied` vouches for it, nor is its own.
    pub(crate) fn new(
        anchors: Vec<CertificateDer<'static>>,
        expected: SpiffeId,
        denied: Denials,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Arc<Self> {
        Arc::new(Self { anchors, expected, denied, algorithms })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), NotTheEndpoint> {
        chain::check(leaf, intermediates).map_err(|_| NotTheEndpoint::Malformed)?;
        let parsed = read(leaf)?;
        self.check_name(&parsed)?;
        check_usage(&parsed)?;
        if self.denied.has(&parsed) {
            return Err(NotTheEndpoint::Denied);
        }
        // webpki knows no anchor's dates.
        let is_valid = |anchor: &&CertificateDer<'_>| {
            let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            let now = x509_parser::time::ASN1Time::from_timestamp(seconds);
            let anchor = X509Certificate::from_der(anchor);
            anchor.is_ok_and(|(_, anchor)| {
                now.is_ok_and(|now| anchor.validity().is_valid_at(now)) && !self.denied.has_key_of(&anchor)
            })
        };
        let anchors: Vec<_> =
            self.anchors.iter().filter(is_valid).filter_map(|anchor| anchor_from_trusted_cert(anchor).ok()).collect();
        let spoiled = Cell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            let judged = path.intermediate_certificates().try_for_each(|one| self.check_intermediate(&one.der()));
            spoiled.set(judged.as_ref().err().cloned());
            judged.map_err(|_| webpki::Error::UnknownIssuer)
        };
        let usage = KeyUsage::server_auth();
        let verified = EndEntityCert::try_from(leaf).and_then(|leaf| {
            leaf.verify_for_usage(self.algorithms.all, &anchors, intermediates, now, usage, None, Some(&judge))
                .map(drop)
        });
        verified.map_err(|error| spoiled.take().unwrap_or(NotTheEndpoint::Path(error)))
    }

    fn check_intermediate(&self, der: &CertificateDer<'_>) -> Result<(), NotTheEndpoint> {
        let parsed = read(der)?;
        if !may_sign(&parsed) {
            return Err(NotTheEndpoint::Intermediate);
        }
        if self.denied.has(&parsed) { Err(NotTheEndpoint::Denied) } else { Ok(()) }
    }

    /// URIs are counted by their tag: a parser that skips one that is not text would see one where there are two.
    fn check_name(&self, leaf: &X509Certificate<'_>) -> Result<(), NotTheEndpoint> {
        let names = leaf.subject_alternative_name().map_err(|_| NotTheEndpoint::Malformed)?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let is_uri = |name: &&GeneralName<'_>| match name {
            GeneralName::URI(_) => true,
            GeneralName::Invalid(tag, _) => tag.0 == URI_TAG,
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => false,
        };
        let uris: Vec<_> = names.iter().filter(is_uri).collect();
        match uris.as_slice() {
            [GeneralName::URI(uri)] if *uri == self.expected.as_str() => Ok(()),
            [GeneralName::URI(uri)] => {
                let found = uri.escape_debug().to_string();
                Err(NotTheEndpoint::OtherIdentity(found, self.expected.clone()))
            }
            [_] => Err(NotTheEndpoint::Malformed),
            uris => Err(NotTheEndpoint::UriCount(uris.len())),
        }
    }
}

fn read<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, NotTheEndpoint> {
    let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| NotTheEndpoint::Malformed)?;
    let is_whole = rest.is_empty() && parsed.extensions_map().is_ok();
    if is_whole { Ok(parsed) } else { Err(NotTheEndpoint::Malformed) }
}

fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), NotTheEndpoint> {
    let usage = leaf.key_usage().map_err(|_| NotTheEndpoint::Malformed)?.ok_or(NotTheEndpoint::KeyUsage)?;
    let bits = usage.value;
    let wanted = usage.critical && bits.digital_signature() && !bits.key_cert_sign() && !bits.crl_sign();
    if wanted { Ok(()) } else { Err(NotTheEndpoint::KeyUsage) }
}

fn may_sign(parsed: &X509Certificate<'_>) -> bool {
    let usage = parsed.key_usage().ok().flatten();
    parsed.is_ca() && usage.is_some_and(|usage| usage.value.key_cert_sign())
}

impl ServerCertVerifier for EndpointVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.verify(end_entity, intermediates, now);
        verdict.map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use rcgen::string::Ia5String;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
        PKCS_ECDSA_P256_SHA256, SanType,
    };
    use rustls::crypto::aws_lc_rs;
    use std::time::Duration;
    use time::OffsetDateTime;

    type Bend = fn(&mut CertificateParams);

    const ID: &str = "spiffe://b.test/ca/bundle";

    fn uri(text: &str) -> SanType {
        SanType::URI(Ia5String::try_from(text).unwrap())
    }

    fn authority(name: &str, bend: Bend) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        bend(&mut params);
        (params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// What is said of a leaf under an intermediate under a root, each bent.
    fn verdict(root: Bend, intermediate: Bend, leaf: Bend) -> Result<(), NotTheEndpoint> {
        verdict_without(&|_| Denials::default(), root, intermediate, leaf)
    }

    /// The same, with something of the three certificates (root, intermediate, leaf) denied.
    fn verdict_without(
        denied: &dyn Fn([&X509Certificate<'_>; 3]) -> Denials,
        root: Bend,
        intermediate: Bend,
        leaf: Bend,
    ) -> Result<(), NotTheEndpoint> {
        let ((root, root_key), (middle, middle_key)) = (authority("root", root), authority("middle", intermediate));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let anchor = root.self_signed(&root_key).unwrap().der().clone();
        let middle_der = middle.signed_by(&middle_key, &Issuer::new(root, root_key)).unwrap().der().clone();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(ID)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf(&mut params);
        let leaf = params.signed_by(&key, &Issuer::new(middle, middle_key)).unwrap().der().clone();
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let [(_, one), (_, two), (_, three)] =
            [&anchor, &middle_der, &leaf].map(|der| X509Certificate::from_der(der).unwrap());
        let denied = denied([&one, &two, &three]);
        let verifier = EndpointVerifier::new(vec![anchor.clone()], ID.parse().unwrap(), denied, algorithms);
        verifier.verify(&leaf, &[middle_der], UnixTime::now())
    }

    #[test]
    fn the_endpoint_has_one_name_and_that_is_its_own() {
        let leaf = |bend: Bend| verdict(|_| (), |_| (), bend);
        assert_eq!(leaf(|_| ()), Ok(()));
        assert_eq!(leaf(|leaf| leaf.subject_alt_names.push(SanType::DnsName("b.test".try_into().unwrap()))), Ok(()));
        assert_eq!(leaf(|leaf| leaf.subject_alt_names.clear()), Err(NotTheEndpoint::UriCount(0)));
        let two: [Bend; 2] = [
            |leaf| leaf.subject_alt_names.push(uri("https://b.test")),
            |leaf| leaf.subject_alt_names.insert(0, uri("spiffe://b.test/other")),
        ];
        for bend in two {
            assert_eq!(leaf(bend), Err(NotTheEndpoint::UriCount(2)));
        }
        let others: [(Bend, &str); 3] = [
            (|leaf| leaf.subject_alt_names = vec![uri("spiffe://b.test/ca/server")], "spiffe://b.test/ca/server"),
            (|leaf| leaf.subject_alt_names = vec![uri("spiffe://B.test/ca/bundle")], "spiffe://B.test/ca/bundle"),
            (|leaf| leaf.subject_alt_names = vec![uri("spiffe://b.test/ca/bundle/")], "spiffe://b.test/ca/bundle/"),
        ];
        for (bend, found) in others {
            let other = NotTheEndpoint::OtherIdentity(found.to_owned(), ID.parse().unwrap());
            assert_eq!(leaf(bend), Err(other));
        }
    }

    #[test]
    fn no_denied_key_vouches_for_the_endpoint_nor_is_its_own() {
        let without = |which: usize| {
            let key = |all: [&X509Certificate<'_>; 3]| Sha256::digest(all[which].public_key().raw).into();
            let denied = |all: [&X509Certificate<'_>; 3]| Denials { keys: [key(all)].into(), ..Denials::default() };
            verdict_without(&denied, |_| (), |_| (), |_| ())
        };
        assert!(matches!(without(0), Err(NotTheEndpoint::Path(_))));
        assert_eq!(without(1), Err(NotTheEndpoint::Denied));
        assert_eq!(without(2), Err(NotTheEndpoint::Denied));
    }

    #[test]
    fn no_denied_certificate_vouches_for_the_endpoint_nor_is_its_own() {
        let without = |which: usize| {
            let denied = |all: [&X509Certificate<'_>; 3]| {
                let serials = [serial_of(all[which])].into();
                Denials { serials, ..Denials::default() }
            };
            verdict_without(&denied, |_| (), |_| (), |_| ())
        };
        assert_eq!(without(0), Ok(()), "an anchor is believed by its key, not by its certificate");
        assert_eq!(without(1), Err(NotTheEndpoint::Denied));
        assert_eq!(without(2), Err(NotTheEndpoint::Denied));
        let another = Denials { serials: ["01".to_owned()].into(), ..Denials::default() };
        assert_eq!(verdict_without(&|_| another.clone(), |_| (), |_| (), |_| ()), Ok(()));
    }

    #[test]
    fn the_endpoint_signs_handshakes_and_no_certificates() {
        let leaf = |bend: Bend| verdict(|_| (), |_| (), bend);
        let wrong: [Bend; 3] = [
            |leaf| leaf.key_usages.clear(),
            |leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            |leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign),
        ];
        for bend in wrong {
            assert_eq!(leaf(bend), Err(NotTheEndpoint::KeyUsage));
        }
        let path = |verdict| matches!(verdict, Err(NotTheEndpoint::Path(_)));
        assert!(path(leaf(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))));
        assert!(path(leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])));
        assert!(path(leaf(|leaf| leaf.not_after = OffsetDateTime::now_utc() - Duration::from_secs(9))));
    }

    #[test]
    fn who_is_above_it_may_sign_and_has_not_ended() {
        let middle = |bend: Bend| verdict(|_| (), bend, |_| ());
        assert_eq!(
            middle(|middle| middle.key_usages = vec![KeyUsagePurpose::CrlSign]),
            Err(NotTheEndpoint::Intermediate)
        );
        assert!(matches!(middle(|middle| middle.is_ca = IsCa::ExplicitNoCa), Err(NotTheEndpoint::Path(_))));
        let root = |bend: Bend| verdict(bend, |_| (), |_| ());
        let ended: Bend = |root| root.not_after = OffsetDateTime::now_utc() - Duration::from_secs(9);
        assert!(matches!(root(ended), Err(NotTheEndpoint::Path(_))), "webpki knows no anchor's dates");
    }
}

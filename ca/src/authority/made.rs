//! A root with its issuing CA, or another issuing CA under the root that is there: made or brought, and not written yet. None of
//! it is done while others wait for the state.

use std::path::{Path, PathBuf};

use agent_core::identity::TrustDomain;
use rcgen::{BasicConstraints, Issuer, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::generation::{
    Brought, Fault, Generation, ISSUER_LIFE, Names, ROOT_LIFE, brought_wrong, ca_params, check_new, root_key_hash,
};
use super::{BACKDATE, crypto};
use crate::CaError;
use crate::ends::moment;
use crate::keys::{self, Key};
use crate::passphrase::Passphrase;
use crate::storage::Storage;
use crate::token::KeyHash;

/// All files of a generation.
pub(crate) struct Made {
    pub(crate) root: CertificateDer<'static>,
    /// As it is written, like the other one. None if it is kept elsewhere.
    root_key: Option<Zeroizing<Vec<u8>>>,
    issuing: CertificateDer<'static>,
    issuing_key: Zeroizing<Vec<u8>>,
}

impl Made {
    /// A new root with a new issuing CA.
    pub(crate) fn generate(trust_domain: &TrustDomain, passphrase: Option<&Passphrase>) -> Result<Self, CaError> {
        let now = OffsetDateTime::now_utc();
        let key = Key::generate()?;
        let mut params = ca_params(trust_domain, "root", BasicConstraints::Constrained(1))?;
        (params.not_before, params.not_after) = (now - BACKDATE, now + ROOT_LIFE);
        let root = params.self_signed(&key).map_err(crypto)?.der().clone();
        let root_key = Some(keys::seal(&key, passphrase)?);
        Ok(Self { root_key, ..Self::under(root, key, trust_domain, passphrase)? })
    }

    /// A new issuing CA under a root, which may end before it would. The root's key is not kept.
    pub(crate) fn under(
        root: CertificateDer<'static>,
        root_key: Key,
        trust_domain: &TrustDomain,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, CaError> {
        let now = OffsetDateTime::now_utc();
        let (_, parsed) = X509Certificate::from_der(&root).map_err(crypto)?;
        if root_key.subject_public_key_info() != parsed.public_key().raw {
            return Err(CaError::Refused(
                "the key is not the root's: bring the one whose certificate is here".to_owned(),
            ));
        }
        let root_end = OffsetDateTime::from_unix_timestamp(parsed.validity().not_after.timestamp()).map_err(crypto)?;
        if root_end <= now {
            return Err(CaError::Refused(format!(
                "the root itself has ended, at {}: see RUNBOOK.md",
                moment(root_end)
            )));
        }
        let key = Key::generate()?;
        let mut params = ca_params(trust_domain, "issuing", BasicConstraints::Constrained(0))?;
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (now - BACKDATE, (now + ISSUER_LIFE).min(root_end));
        let issuer = Issuer::from_ca_cert_der(&root, root_key).map_err(crypto)?;
        let issuing = params.signed_by(&key, &issuer).map_err(crypto)?.der().clone();
        let issuing_key = keys::seal(&key, passphrase)?;
        Ok(Self { root, root_key: None, issuing, issuing_key })
    }

    /// What an operator brings, if it can be used.
    pub(crate) fn bring(
        trust_domain: &TrustDomain,
        brought: &Brought,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, CaError> {
        let (root, issuing) = (one(&brought.root)?, one(&brought.issuing_cert)?);
        let wrong = |fault: Fault| match fault {
            Fault::Root(what) => brought_wrong(&brought.root, what),
            Fault::Issuing(what) => brought_wrong(&brought.issuing_cert, what),
            Fault::Key(what) => brought_wrong(&brought.issuing_key, what),
        };
        check_new(&root, &issuing).map_err(wrong)?;
        let key = keys::bring(&brought.issuing_key, passphrase)?;
        let issuing_key = keys::seal(&key, passphrase)?;
        Generation::new(root.clone(), issuing.clone(), key, trust_domain).map_err(wrong)?;
        Ok(Self { root, root_key: None, issuing, issuing_key })
    }

    /// Takes over the root's key as it lies in the files of a generation, if it is there.
    pub(crate) fn with_root_key_of(self, storage: &Storage, number: u32) -> Result<Self, CaError> {
        let root_key = storage.read_key(&Names::of(number).root_key)?;
        Ok(Self { root_key: root_key.or(self.root_key), ..self })
    }

    /// Writes all files of a generation.
    pub(crate) fn write(&self, storage: &Storage, number: u32) -> Result<(), CaError> {
        let names = Names::of(number);
        if let Some(key) = &self.root_key {
            storage.write(&names.root_key, key)?;
        }
        storage.write(&names.root, pem(&self.root)?.as_bytes())?;
        storage.write(&names.issuing_key, &self.issuing_key)?;
        storage.write(&names.issuing, pem(&self.issuing)?.as_bytes())
    }

    /// The hash of the root's key.
    pub(crate) fn root_key_hash(&self) -> Result<KeyHash, CaError> {
        root_key_hash(&self.root)
    }
}

/// Makes a root and an issuing CA.
pub(crate) fn create(storage: &Storage, trust_domain: &TrustDomain, number: u32) -> Result<(), CaError> {
    Made::generate(trust_domain, storage.passphrase())?.write(storage, number)
}

/// Takes what an operator brings, if it can be used.
pub(crate) fn bring(
    storage: &Storage,
    trust_domain: &TrustDomain,
    number: u32,
    brought: &Brought,
) -> Result<(), CaError> {
    Made::bring(trust_domain, brought, storage.passphrase())?.write(storage, number)
}

/// The one certificate of a file: what stands behind it would be dropped in silence.
fn one(path: &PathBuf) -> Result<CertificateDer<'static>, CaError> {
    let certificate = CertificateDer::from_pem_file(path).map_err(|error| brought_wrong(path, error.to_string()))?;
    let count = CertificateDer::pem_file_iter(Path::new(path)).map_or(0, Iterator::count);
    if count == 1 {
        return Ok(certificate);
    }
    Err(brought_wrong(path, format!("it has {count} certificates; it must have one")))
}

pub(crate) fn pem(der: &CertificateDer<'_>) -> Result<String, CaError> {
    let document = pkcs8::Document::try_from(&**der).map_err(crypto)?;
    document.to_pem("CERTIFICATE", pkcs8::LineEnding::LF).map_err(crypto)
}

//! The CA's private keys as files: PKCS#8 in PEM, under a passphrase if the configuration names one (PBES2, RFC 8018).

use aws_lc_rs::rand::fill;
use pkcs5::pbes2;
use pkcs8::der::pem::LineEnding;
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tracing::info;
use zeroize::{Zeroize as _, Zeroizing};

use crate::CaError;
use crate::passphrase::Passphrase;
use crate::state_files;
use crate::storage::Storage;

const PLAIN: &str = "PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// A private key that is wiped when it is dropped.
pub(crate) struct Key(KeyPair);

impl Key {
    /// A fresh one: P-256.
    pub(crate) fn generate() -> Result<Self, CaError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|error| CaError::Crypto(error.to_string()))
    }

    /// PKCS#8.
    pub(crate) fn der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Looks at a key that is not needed: whoever may read it can be any CA of this domain. One that lies open although there is a
/// passphrase is put under it.
pub(crate) fn look_after(storage: &Storage, name: &str) -> Result<(), CaError> {
    let is_open = storage.read_key(name)?.is_some_and(|text| !text.starts_with(b"-----BEGIN ENCRYPTED"));
    if is_open && storage.passphrase().is_some() {
        read(storage, name)?;
    }
    Ok(())
}

/// Reads a key; `None` if it is not there. One that lies open although there is a passphrase is put under it.
pub(crate) fn read(storage: &Storage, name: &str) -> Result<Option<Key>, CaError> {
    let Some(text) = storage.read_key(name)? else { return Ok(None) };
    let damaged = |what: String| CaError::Damaged { path: storage.path(name), what };
    let (key, was_open) = parse(&text, storage.passphrase()).map_err(|error| match error {
        NoKey::Damaged(what) => damaged(what),
        NoKey::Passphrase(error) => error.of(name),
    })?;
    if was_open && storage.passphrase().is_some() {
        write(storage, name, &key)?;
        info!(target: "audit", name, "a key that lay open is under the passphrase now");
    }
    Ok(Some(key))
}

/// Writes a key, under the passphrase if there is one.
pub(crate) fn write(storage: &Storage, name: &str, key: &Key) -> Result<(), CaError> {
    storage.write(name, &seal(key, storage.passphrase())?)
}

/// A key as it is written. Under a passphrase that takes a second: it is not done while others wait for their turn.
pub(crate) fn seal(key: &Key, passphrase: Option<&Passphrase>) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let mut text = match passphrase {
        None => plain(key)?,
        Some(passphrase) => encrypt(key, &passphrase.read()?)?,
    };
    Ok(Zeroizing::new(std::mem::take(&mut *text).into_bytes()))
}

/// Why a text is no key.
enum NoKey {
    Damaged(String),
    Passphrase(CaError),
}

/// A key from PEM, and whether it lay open.
fn parse(text: &[u8], passphrase: Option<&Passphrase>) -> Result<(Key, bool), NoKey> {
    let damaged = |error: &dyn std::fmt::Display| NoKey::Damaged(error.to_string());
    let text = std::str::from_utf8(text).map_err(|_| damaged(&"it is no PEM"))?;
    let (label, document) = SecretDocument::from_pem(text).map_err(|error| damaged(&error))?;
    let was_open = label == PLAIN;
    let der = match label {
        PLAIN => document.to_bytes(),
        ENCRYPTED => {
            let hint = "it is encrypted: name its passphrase in `key_passphrase_file` or `key_passphrase_env`";
            let passphrase = passphrase.ok_or_else(|| NoKey::Passphrase(CaError::Passphrase(hint.to_owned())))?;
            decrypt(&document, &passphrase.read().map_err(NoKey::Passphrase)?)?
        }
        other => return Err(damaged(&format!("it is a `{other}`, not a `{PLAIN}`"))),
    };
    let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(der.as_slice())).map_err(|error| damaged(&error))?;
    Ok((Key(key), was_open))
}

/// A key that an operator brings.
pub(crate) fn bring(path: &std::path::Path, passphrase: Option<&Passphrase>) -> Result<Key, CaError> {
    let wrong = |what: String| CaError::Refused(format!("{}: {what}", path.display()));
    let text = state_files::read_key(path)?.ok_or_else(|| wrong("there is no such file".to_owned()))?;
    let (key, _) = parse(&text, passphrase).map_err(|error| match error {
        NoKey::Damaged(what) => wrong(format!("{what}; a key must be PKCS#8 in PEM (`openssl pkcs8 -topk8`)")),
        NoKey::Passphrase(error) => error.of(&path.display().to_string()),
    })?;
    Ok(key)
}

fn decrypt(document: &SecretDocument, passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, NoKey> {
    let damaged = |error: &dyn std::fmt::Display| NoKey::Damaged(error.to_string());
    let encrypted = EncryptedPrivateKeyInfo::try_from(document.as_bytes()).map_err(|error| damaged(&error))?;
    let der = encrypted.encryption_algorithm.decrypt(passphrase, encrypted.encrypted_data);
    der.map(Zeroizing::new).map_err(|_| {
        NoKey::Passphrase(CaError::Passphrase("the passphrase is not the one that it was encrypted with".to_owned()))
    })
}

fn plain(key: &Key) -> Result<Zeroizing<String>, CaError> {
    let der = key.der();
    // rcgen's own PEM leaves copies behind.
    let text = SecretDocument::try_from(der.as_slice()).and_then(|document| document.to_pem(PLAIN, LineEnding::LF));
    text.map_err(|error| CaError::Crypto(error.to_string()))
}

fn encrypt(key: &Key, passphrase: &[u8]) -> Result<Zeroizing<String>, CaError> {
    let crypto = |error: &dyn std::fmt::Display| CaError::Crypto(error.to_string());
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    fill(&mut salt).and_then(|()| fill(&mut iv)).map_err(|error| crypto(&error))?;
    // scrypt as its authors recommend it now: 128 MiB.
    let parameters =
        pbes2::Parameters::scrypt_aes256cbc(Default::default(), &salt, &iv).map_err(|error| crypto(&error))?;
    let der = key.der();
    let encrypted = parameters.encrypt(passphrase, &der).map_err(|error| crypto(&error))?;
    let document = EncryptedPrivateKeyInfo { encryption_algorithm: parameters.into(), encrypted_data: &encrypted };
    let document = SecretDocument::try_from(document).map_err(|error| crypto(&error))?;
    document.to_pem(ENCRYPTED, LineEnding::LF).map_err(|error| crypto(&error))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::freed::Look;

    /// A state directory whose keys are under that passphrase.
    fn storage(folder: &std::path::Path, passphrase: &str) -> Storage {
        let file = folder.join("passphrase");
        state_files::write(&file, passphrase.as_bytes()).unwrap();
        Storage::open(&folder.join("state")).unwrap().under(Some(Passphrase::File(file)))
    }

    fn key() -> Key {
        Key::generate().unwrap()
    }

    #[test]
    fn a_key_under_a_passphrase_is_read_with_it_and_not_without() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, key) = (storage(folder.path(), "open sesame\n"), key());
        write(&ours, "key.pem", &key).unwrap();
        let text = std::fs::read_to_string(ours.path("key.pem")).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{text}");
        let read = |storage: &Storage| read(storage, "key.pem").map(|key| key.unwrap().der());
        assert_eq!(read(&storage(folder.path(), "open sesame")).unwrap(), key.der());
        let error = read(&storage(folder.path(), "open barley")).unwrap_err().to_string();
        assert!(error.contains("not the one that it was encrypted with"), "{error}");
        let error = read(&storage(folder.path(), "\n")).unwrap_err().to_string();
        assert!(error.contains("there is no passphrase in the file"), "{error}");
        let error = read(&ours.clone().under(None)).unwrap_err().to_string();
        assert!(error.contains("`key_passphrase_file`"), "{error}");
    }

    #[test]
    fn a_key_that_lies_open_is_put_under_a_new_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, key) = (storage(folder.path(), "open sesame"), key());
        write(&ours.clone().under(None), "key.pem", &key).unwrap();
        assert_eq!(read(&ours, "key.pem").unwrap().unwrap().der(), key.der());
        assert!(read(&ours.clone().under(None), "key.pem").is_err());
        assert_eq!(read(&ours, "key.pem").unwrap().unwrap().der(), key.der());
    }

    #[test]
    fn a_key_is_wiped_wherever_it_was_written_or_read() {
        let folder = tempfile::tempdir().unwrap();
        let under = storage(folder.path(), "open sesame");
        let look = Look::begin();
        for storage in [under.clone().under(None), under] {
            let key = key();
            key.sign(b"a message").unwrap();
            write(&storage, "key.pem", &key).unwrap();
            drop(read(&storage, "key.pem").unwrap().unwrap());
            drop(bring(&storage.path("key.pem"), storage.passphrase()).unwrap());
            let der = key.der();
            drop(key);
            assert!(!look.has_seen(&der), "{:?}", storage.passphrase());
        }
    }
}

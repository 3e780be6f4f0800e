//! A private key from PEM (RFC 7468) without a copy that is left behind: libraries free the text that they gathered as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

/// The first private key in the text, wiped when it is dropped; `None` if there is none, or it is encrypted.
pub fn private_key(text: &[u8]) -> Option<Zeroizing<PrivateKeyDer<'static>>> {
    let mut lines = std::str::from_utf8(text).ok()?.lines().map(str::trim);
    let label = lines.find_map(|line| {
        let label = line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
        label.ends_with("PRIVATE KEY").then_some(label)
    })?;
    // As large as they will be.
    let mut base64 = Zeroizing::new(Vec::with_capacity(text.len()));
    let end = lines.find(|line| {
        let is_end = line.starts_with("-----END ");
        if !is_end {
            base64.extend_from_slice(line.as_bytes());
        }
        is_end
    });
    end?;
    let mut der = Zeroizing::new(vec![0; text.len()]);
    let length = STANDARD.decode_slice(&*base64, &mut der).ok()?;
    der.truncate(length);
    let der = std::mem::take(&mut *der);
    Some(Zeroizing::new(match label {
        "PRIVATE KEY" => PrivatePkcs8KeyDer::from(der).into(),
        "EC PRIVATE KEY" => PrivateSec1KeyDer::from(der).into(),
        "RSA PRIVATE KEY" => PrivatePkcs1KeyDer::from(der).into(),
        _ => {
            drop(Zeroizing::new(der));
            return None;
        }
    }))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::freed::Look;

    #[test]
    fn a_key_is_read_as_others_read_it_and_wiped() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        // What others have written they have left behind: looked at is what comes after.
        let (text, der) = (pair.serialize_pem(), pair.serialize_der());
        let before = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let long = text.replace('\n', "").replace("KEY-----M", "KEY-----\nM").replace("-----END", "\n-----END");
        for text in [text.clone(), text.replace('\n', "\r\n"), format!("{before}{text}"), long] {
            let look = Look::begin();
            let key = private_key(text.as_bytes()).unwrap();
            assert!(!look.has_seen(&der));
            drop(look);
            assert_eq!(*key, PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap());
        }
        let sec1 = text.replace("PRIVATE KEY", "EC PRIVATE KEY");
        assert!(matches!(*private_key(sec1.as_bytes()).unwrap(), PrivateKeyDer::Sec1(_)), "by its label");
    }

    #[test]
    fn what_is_none_is_not_taken() {
        let text = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let cut = text.split("-----END").next().unwrap();
        let encrypted = text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let bent = text.replacen("MIGH", "M*GH", 1);
        for text in [cut, &encrypted, &bent, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(private_key(text.as_bytes()).is_none(), "{text}");
        }
    }
}

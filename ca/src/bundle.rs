//! A trust domain's bundle as SPIFFE writes it (Trust Domain and Bundle, §4): a JWK set whose `x509-svid` entries are the
//! anchors. Read strictly: of two readers none may see another bundle than the other.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use thiserror::Error;

use self::json::Json;

pub(crate) mod anchor;
mod json;

pub use self::anchor::AnchorError;

/// In bytes, of the JSON.
pub(crate) const LONGEST: usize = 256 * 1024;
/// More than any root rotation needs.
pub(crate) const MOST_ANCHORS: usize = 32;
/// The `use` of an X.509 authority.
const X509: &str = "x509-svid";
/// Key types (RFC 7518 §6.1, RFC 8037, and that of ML-DSA); others are passed over.
const KEY_TYPES: [&str; 4] = ["EC", "RSA", "OKP", "AKP"];

/// A trust domain's anchors. Which domain's they are is not in it: whoever reads one knows that beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Counts up with every change; none if the domain does not count.
    pub sequence: Option<u64>,
    /// How often it is worth asking for a new one.
    pub refresh_hint: Option<Duration>,
    /// CA certificates, each once, in the order of their bytes. None: nobody of the domain is to be believed.
    pub anchors: Vec<CertificateDer<'static>>,
}

/// Why a bundle is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// More than is read.
    #[error("the bundle has more than {LONGEST} bytes")]
    TooLong,
    /// Not JSON, or JSON that could be read in two ways.
    #[error("the bundle is not strict JSON: {0}")]
    Json(String),
    /// Some other JSON.
    #[error("the bundle is no JWK set: it must be an object with a list `keys`")]
    NotABundle,
    /// No whole number.
    #[error("`{0}` must be a whole number from 0 to 18446744073709551615")]
    Number(&'static str),
    /// More than are kept.
    #[error("the bundle has more than {MOST_ANCHORS} anchors")]
    TooMany,
    /// One of the keys is wrong.
    #[error("`keys`, entry {0}: {1}")]
    Entry(usize, EntryError),
}

/// What is wrong with one of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// Some other JSON.
    #[error("it is no object with texts `kty` and `use`")]
    NotAKey,
    /// X509-SVID §6.2: such an entry has none.
    #[error("an X.509 authority must not have a `kid`")]
    KeyId,
    /// Consumers would take the first, or all.
    #[error("`x5c` must be a list of exactly one certificate in base64")]
    Chain,
    /// The certificate is none to believe.
    #[error("its certificate is no anchor: {0}")]
    Anchor(#[from] AnchorError),
    /// One reader would take this key, another one that.
    #[error("its key is not the certificate's")]
    OtherKey,
}

impl Bundle {
    /// Of these anchors.
    pub fn new(sequence: u64, refresh_hint: Option<Duration>, mut anchors: Vec<CertificateDer<'static>>) -> Self {
        anchors.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
        anchors.dedup();
        Self { sequence: Some(sequence), refresh_hint, anchors }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`BundleError`]: one bad anchor spoils the whole.
    pub fn parse(json: &[u8]) -> Result<Self, BundleError> {
        if json.len() > LONGEST {
            return Err(BundleError::TooLong);
        }
        let value = json::read(json).map_err(|error| BundleError::Json(error.to_string()))?;
        let members = value.object().ok_or(BundleError::NotABundle)?;
        let keys = members.get("keys").and_then(Json::list).ok_or(BundleError::NotABundle)?;
        let mut anchors = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            anchors.extend(entry(key).map_err(|error| BundleError::Entry(at + 1, error))?);
        }
        let number = |name| members.get(name).map(|value| value.whole().ok_or(BundleError::Number(name))).transpose();
        let refresh_hint = number("spiffe_refresh_hint")?.map(Duration::from_secs);
        let bundle = Self { sequence: number("spiffe_sequence")?, ..Self::new(0, refresh_hint, anchors) };
        if bundle.anchors.len() > MOST_ANCHORS { Err(BundleError::TooMany) } else { Ok(bundle) }
    }

    /// As others read it: JSON, with a line break at its end.
    ///
    /// # Errors
    /// [`BundleError`], if an anchor's key has no JWK or there are too many.
    pub fn to_json(&self) -> Result<String, BundleError> {
        if self.anchors.len() > MOST_ANCHORS {
            return Err(BundleError::TooMany);
        }
        let written = |(at, anchor): (usize, &CertificateDer<'static>)| {
            let key = anchor::jwk(anchor).map_err(|error| BundleError::Entry(at + 1, error.into()))?;
            Ok(Written { usage: X509, key, x5c: [STANDARD.encode(anchor)] })
        };
        let document = Document {
            keys: self.anchors.iter().enumerate().map(written).collect::<Result<_, _>>()?,
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: self.refresh_hint.map(|hint| hint.as_secs()),
        };
        let text = serde_json::to_string_pretty(&document).map_err(|error| BundleError::Json(error.to_string()))?;
        Ok(text + "\n")
    }
}

#[derive(Serialize)]
struct Document {
    keys: Vec<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Serialize)]
struct Written {
    #[serde(rename = "use")]
    usage: &'static str,
    #[serde(flatten)]
    key: BTreeMap<&'static str, String>,
    x5c: [String; 1],
}

/// The anchor that an entry is; none if it is a key of another kind, or for something else.
fn entry(key: &Json) -> Result<Option<CertificateDer<'static>>, EntryError> {
    let members = key.object().ok_or(EntryError::NotAKey)?;
    let text = |name| members.get(name).map(|value| value.text().ok_or(EntryError::NotAKey)).transpose();
    let (Some(usage), Some(kind)) = (text("use")?, text("kty")?) else { return Ok(None) };
    if usage != X509 || !KEY_TYPES.contains(&kind) {
        return Ok(None);
    }
    if members.contains_key("kid") {
        return Err(EntryError::KeyId);
    }
    let chain = members.get("x5c").and_then(Json::list).ok_or(EntryError::Chain)?;
    let [certificate] = chain else { return Err(EntryError::Chain) };
    let der = certificate.text().and_then(|text| STANDARD.decode(text).ok()).ok_or(EntryError::Chain)?;
    let certificate = CertificateDer::from(der);
    let expected = anchor::jwk(&certificate)?;
    // RFC 7517 §4.7: what is said of the key beside the certificate must be true.
    let is_true = |(name, value): (&&str, &String)| {
        members.get(*name).map_or(*name != "kty", |said| said.text() == Some(value.as_str()))
    };
    if expected.iter().all(is_true) { Ok(Some(certificate)) } else { Err(EntryError::OtherKey) }
}

/// As JWKs write bytes.
fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

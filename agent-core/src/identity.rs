//! Names that a certificate can carry: trust domains, SPIFFE IDs and pod UIDs. Parsed once, always valid.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Why a text is not a SPIFFE ID, trust domain or pod UID (SPIFFE-ID §2, canonical form only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Longer than the standard lets an implementation have to support.
    #[error("longer than {0} bytes")]
    TooLong(usize),
    /// Not `spiffe://`, in lower case.
    #[error("does not begin with `spiffe://`")]
    Scheme,
    /// The trust domain is empty or has a character outside `[a-z0-9._-]`.
    #[error("the trust domain is empty or has a character outside [a-z0-9._-]")]
    TrustDomain,
    /// The path is missing, or has an empty, `.`, `..` or ill-charactered segment.
    #[error("the path is missing, or a segment is empty, `.`, `..` or has a character outside [A-Za-z0-9._-]")]
    Path,
    /// The UID is empty or has a character outside `[A-Za-z0-9-]`.
    #[error("the pod UID is empty or has a character outside [A-Za-z0-9-]")]
    PodUid,
}

/// A SPIFFE trust domain (SPIFFE-ID §2.1): 1 to 255 bytes of `[a-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID (SPIFFE-ID §2) in canonical form and with a path. At most 2048 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

/// A pod's UID as Kubernetes gives it (a UUID, or 32 hex digits for a static pod): 1 to 63 bytes of `[A-Za-z0-9-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

/// SHA-256 of a public key's SubjectPublicKeyInfo (RFC 5280 §4.1), DER.
pub type KeyHash = [u8; 32];

/// Shows bytes as lower-case hex.
#[derive(Clone, Copy)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TrustDomain {
    /// The trust domain's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > 255 {
            return Err(IdentityError::TooLong(255));
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if text.is_empty() || !text.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

impl SpiffeId {
    /// The identity of a pod's service account: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// [`IdentityError::Path`] if a name cannot be a path segment.
    pub fn of_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        // A name with a slash in it would parse as another, longer path.
        if namespace.contains('/') || service_account.contains('/') {
            return Err(IdentityError::Path);
        }
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The identity of a client that is no pod: `spiffe://<trust domain>/outside/<name>`. No service account has one like it.
    ///
    /// # Errors
    /// [`IdentityError::Path`] if the name cannot be a path segment.
    pub fn of_outside(trust_domain: &TrustDomain, name: &str) -> Result<Self, IdentityError> {
        if name.contains('/') {
            return Err(IdentityError::Path);
        }
        format!("spiffe://{trust_domain}/outside/{name}").parse()
    }

    /// The namespace and the service account, if it is a pod's.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.path().strip_prefix("ns/")?.split_once("/sa/").filter(|(ns, sa)| !ns.contains('/') && !sa.contains('/'))
    }

    /// Whether it is a client's that is no pod.
    pub fn is_outside(&self) -> bool {
        self.path().strip_prefix("outside/").is_some_and(|name| !name.contains('/'))
    }

    /// Without the slash before it.
    fn path(&self) -> &str {
        self.text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map_or("", |(_, path)| path)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain whose anchors alone may vouch for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > 2048 {
            return Err(IdentityError::TooLong(2048));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::Scheme)?;
        let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        let trust_domain = domain.parse()?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
        if !path.split('/').all(segment) {
            return Err(IdentityError::Path);
        }
        Ok(Self { text: text.into(), trust_domain })
    }
}

impl PodUid {
    /// The UID's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > 63 {
            return Err(IdentityError::TooLong(63));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if text.is_empty() || !text.bytes().all(allowed) {
            return Err(IdentityError::PodUid);
        }
        Ok(Self(text.into()))
    }
}

macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.as_str())
            }
        }
    };
}
text!(TrustDomain);
text!(SpiffeId);
text!(PodUid);

#[cfg(test)]
mod tests;

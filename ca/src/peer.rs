//! Who calls: the node in the client certificate, whose chain TLS has verified.

use agent_core::identity::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The far end of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// The node, if the client certificate is an agent's.
    pub(crate) node: Option<String>,
}

impl Caller {
    /// Reads the client certificate. A pod's certificate has the same root; it makes its owner nobody here.
    pub(crate) fn of(leaf: Option<&CertificateDer<'_>>, trust_domain: &TrustDomain) -> Self {
        Self { node: leaf.and_then(|leaf| node(leaf, trust_domain)) }
    }
}

fn node(leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = &certificate.subject_alternative_name().ok()??.value.general_names;
    // Our own issuing writes exactly one name.
    let [GeneralName::URI(uri)] = names.as_slice() else { return None };
    let identity: SpiffeId = uri.parse().ok()?;
    if identity.trust_domain() != trust_domain {
        return None;
    }
    let path = identity.as_str().strip_prefix(&format!("spiffe://{trust_domain}/node/"))?;
    let node = path.strip_suffix("/agent")?;
    (!node.contains('/')).then(|| node.to_owned())
}

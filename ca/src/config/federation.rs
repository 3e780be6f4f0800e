//! The part of `ca.yaml` that is about other clusters.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use agent_core::document::{Node, Problems, Section};

/// Where Debian and its like keep the roots of the Web.
const WEB_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How this CA meets other clusters'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where our own bundle is served, if it is.
    pub endpoint: Option<Endpoint>,
    /// A PEM file with the roots that vouch for endpoints of the profile `https_web`.
    pub web_roots: PathBuf,
}

/// Where our own bundle is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub listen: SocketAddr,
    /// The one path, such as `/`.
    pub path: String,
    /// How it proves itself.
    pub profile: Profile,
}

/// How our endpoint proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As `spiffe://<trust domain>/ca/bundle`.
    HttpsSpiffe,
    /// By a certificate of the Web's, as PEM files. They are read again when they change.
    HttpsWeb {
        /// The certificate's chain, its own first.
        cert: PathBuf,
        /// Its key, for its owner alone.
        key: PathBuf,
    },
}

impl Default for Settings {
    fn default() -> Self {
        Self { endpoint: None, web_roots: WEB_ROOTS.into() }
    }
}

impl Settings {
    pub(crate) fn read(node: &Node, folder: &Path, problems: &mut Problems) -> Option<Self> {
        let mut section = Section::of(node, "`federation`", problems)?;
        let (listen, path, profile) =
            (section.optional("listen"), section.optional("path"), section.optional("profile"));
        let (cert, key, roots) = (section.optional("cert"), section.optional("key"), section.optional("web_roots"));
        section.end(problems);
        let mut file = |node: Option<&Node>, what: &str| {
            node.and_then(|node| node.text(what, problems)).map(|text| folder.join(text))
        };
        let (cert_file, key_file) = (file(cert, "`cert`"), file(key, "`key`"));
        let web_roots = match roots {
            None => Self::default().web_roots,
            Some(_) => file(roots, "`web_roots`")?,
        };
        let Some(listen) = listen else {
            for node in [path, profile, cert, key].into_iter().flatten() {
                problems.add(node.place, "it is for an endpoint of our own: `listen` is missing");
            }
            return Some(Self { endpoint: None, web_roots });
        };
        let listen = listen.socket_address("`listen`", problems);
        let is_web = profile.map_or(Some(false), |node| {
            node.choice("`profile`", &[("https_spiffe", false), ("https_web", true)], problems)
        });
        let is_path = |text: &str| match text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(text.to_owned()),
            false => Err("must be a path, such as /bundle.json"),
        };
        let path = path.map_or(Some("/".to_owned()), |node| node.parse("`path`", is_path, problems));
        let profile = match (is_web?, cert_file, key_file) {
            (false, None, None) => Profile::HttpsSpiffe,
            (true, Some(cert), Some(key)) => Profile::HttpsWeb { cert, key },
            (false, ..) => {
                problems
                    .add(node.place, "`cert` and `key` are for `profile: https_web`: the CA makes its own otherwise");
                return None;
            }
            (true, ..) => {
                problems.add(node.place, "`profile: https_web` needs `cert` and `key`");
                return None;
            }
        };
        Some(Self { endpoint: Some(Endpoint { listen: listen?, path: path?, profile }), web_roots })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Settings, String> {
        let text = format!("trust_domain: a.test\nlisten: 127.0.0.1:1\nstate_dir: s\ndirectory: d\n{text}");
        let config = Config::parse(&text, Path::new("/etc/mantle"));
        config.map(|config| config.federation).map_err(|problems| problems.to_string())
    }

    #[test]
    fn an_endpoint_proves_itself_in_one_of_two_ways() {
        assert_eq!(read("").unwrap(), Settings::default());
        let spiffe = read("federation: {listen: '127.0.0.1:2'}\n").unwrap().endpoint.unwrap();
        assert_eq!((spiffe.path.as_str(), spiffe.profile), ("/", Profile::HttpsSpiffe));
        let web = "federation: {listen: '127.0.0.1:2', path: /b, profile: https_web, cert: c.pem, key: /k.pem, web_roots: r.pem}\n";
        let web = read(web).unwrap();
        assert_eq!(web.web_roots, Path::new("/etc/mantle/r.pem"));
        let (cert, key) = ("/etc/mantle/c.pem".into(), "/k.pem".into());
        let endpoint = web.endpoint.unwrap();
        assert_eq!((endpoint.path.as_str(), endpoint.profile), ("/b", Profile::HttpsWeb { cert, key }));
    }

    #[test]
    fn half_an_endpoint_is_a_mistake() {
        for (text, expect) in [
            ("{cert: c.pem}", "`listen` is missing"),
            ("{path: /b}", "`listen` is missing"),
            ("{listen: '127.0.0.1:2', cert: c.pem}", "are for `profile: https_web`"),
            ("{listen: '127.0.0.1:2', profile: https_web, cert: c.pem}", "needs `cert` and `key`"),
            ("{listen: '127.0.0.1:2', profile: https}", "`profile`"),
            ("{listen: '127.0.0.1:2', path: b}", "must be a path"),
            ("{listen: '2'}", "must be an IP address and a port"),
            ("{lisen: '127.0.0.1:2'}", "did you mean `listen`"),
        ] {
            let error = read(&format!("federation: {text}\n")).unwrap_err();
            assert!(error.contains(expect), "{error}");
        }
    }
}

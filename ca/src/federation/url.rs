//! Where another trust domain's bundle is.

use std::str::FromStr;

use hyper::Uri;
use rustls::pki_types::ServerName;
use thiserror::Error;

const PORT: u16 = 443;
const LONGEST: usize = 2000;

/// The URL of a bundle endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As the request's `Host` has it.
    pub(crate) authority: String,
    /// With the query, if there is one.
    pub(crate) path: String,
}

/// Why a text is no such URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no URL of a bundle endpoint: it must be like https://b.example.org:8443/bundle, without a user or a fragment"
)]
pub(crate) struct NotAUrl(String);

impl FromStr for Url {
    type Err = NotAUrl;

    fn from_str(text: &str) -> Result<Self, NotAUrl> {
        let wrong = || NotAUrl(text.escape_debug().to_string());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_https = uri.scheme_str() == Some("https");
        if !is_https || text.len() > LONGEST || text.contains(['#', '@']) {
            return Err(wrong());
        }
        // `Authority` says of a port that is too large that there is none.
        let port = match authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':')) {
            None => PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
        };
        // An address of IPv6 stands in brackets.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(host.as_str()).map_err(|_| wrong())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port, authority: authority.to_string(), path })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn an_endpoint_is_https_somewhere() {
        let read = |text: &str| text.parse::<Url>().map(|url| (url.host, url.port, url.path));
        let some = |host: &str, port, path: &str| Ok((host.to_owned(), port, path.to_owned()));
        assert_eq!(read("https://b.test"), some("b.test", 443, "/"));
        assert_eq!(read("https://b.test:8443/x/y?z=1"), some("b.test", 8443, "/x/y?z=1"));
        assert_eq!(read("https://[2001:db8::1]:8443/"), some("2001:db8::1", 8443, "/"));
        for text in [
            "http://b.test/",
            "https://",
            "https:///x",
            "/x",
            "b.test",
            "https://user@b.test/",
            "https://user:word@b.test/",
            "https://b.test/#x",
            "https://b.test:0/",
            "https://b.test:99999/",
            "https://b test/",
            "https://b.test/\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(read(&format!("https://b.test/{}", "a".repeat(LONGEST))).is_err());
        assert_eq!("https://[::1]:8443".parse::<Url>().unwrap().authority, "[::1]:8443");
    }
}

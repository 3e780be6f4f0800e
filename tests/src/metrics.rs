//! What an agent shows to Prometheus.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::failure::Must as _;
use crate::namespace::Namespace;
use crate::traffic;

const PORT: u16 = 15020;

/// One exposition.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: HashMap<String, f64>,
    text: String,
}

/// Where they are shown, on each node.
pub(crate) fn address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

impl Metrics {
    /// Reads them, if somebody shows them.
    ///
    /// # Panics
    /// If they are no exposition.
    pub(crate) fn read(namespace: &Namespace) -> Option<Self> {
        let socket = namespace.within(|| TcpStream::connect(address())).ok()?;
        let mut socket = traffic::patient(socket).must("cannot set a timeout");
        let mut answer = String::new();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n").ok()?;
        socket.read_to_string(&mut answer).ok()?;
        let (head, text) = answer.split_once("\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').must(line);
            (name.to_owned(), value.parse().must(line))
        };
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(sample).collect();
        Some(Self { samples, text: text.to_owned() })
    }

    /// A sample by its name and labels, as they are written.
    pub fn value(&self, sample: &str) -> Option<f64> {
        self.samples.get(sample).copied()
    }

    /// All of it, as it was shown.
    pub fn text(&self) -> &str {
        &self.text
    }
}

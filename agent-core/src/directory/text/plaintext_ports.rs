//! A pod's exceptions from being strict, as the directory's author writes them.

use std::collections::HashSet;

use crate::address::{CAPTURE_PORT, TUNNEL_PORT};
use crate::document::{Node, Problems};

/// How many ports one pod can except: what the kernel's entry of a pod has room for.
pub const MOST: usize = 16;

/// Reads the list.
pub(super) fn read(node: &Node, problems: &mut Problems) -> Option<Vec<u16>> {
    let nodes = node.list("`plaintext_ports`", problems)?;
    if nodes.len() > MOST {
        problems.add(node.place, format!("`plaintext_ports` must have at most {MOST} ports (found {})", nodes.len()));
        return None;
    }
    let parsed: Vec<Option<u16>> = nodes.iter().map(|node| node.parse("a plaintext port", port, problems)).collect();
    let mut seen = HashSet::new();
    for (node, port) in nodes.iter().zip(&parsed) {
        if port.is_some_and(|port| !seen.insert(port)) {
            problems.add(node.place, "a plaintext port is listed twice");
        }
    }
    let ports: Vec<u16> = parsed.into_iter().collect::<Option<_>>()?;
    (seen.len() == ports.len()).then_some(ports)
}

fn port(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(TUNNEL_PORT | CAPTURE_PORT) => Err("must not be one of Mantle's own ports, 15001 and 15008"),
        Ok(port @ 1..) => Ok(port),
        Ok(0) | Err(_) => Err("must be a port, 1 to 65535"),
    }
}

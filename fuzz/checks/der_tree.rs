//! DER as a tree that a script can change and that is written whole again: what a fuzzer changes in the bytes alone is seldom DER.

use rcgen::{KeyPair, SigningKey as _};

pub(crate) const SEQUENCE: u8 = 0x30;
const ECDSA_WITH_SHA256: [u8; 12] = [0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// What X.509 and PKCS#10 sign, with the signature (RFC 5280 §4.1, RFC 2986 §4.2). The key is one for P-256.
pub(crate) fn signed_by(key: &KeyPair, signed: &[u8]) -> Option<Vec<u8>> {
    let signature = encode(0x03, &[&[0], key.sign(signed).ok()?.as_slice()].concat());
    Some(encode(SEQUENCE, &[signed, &ECDSA_WITH_SHA256, &signature].concat()))
}

/// A value of DER, whose parts are values where they can be.
#[derive(Clone)]
struct Node {
    tag: u8,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Bytes(Vec<u8>),
    Parts(Vec<Node>),
}

/// The good one with changes: a step is an operation, the node that it is done to, a place in it, and a byte.
pub(crate) fn changed(good: &[u8], words: &[&[u8]], script: &[u8]) -> Vec<u8> {
    let mut nodes = nodes(good).unwrap_or_default();
    for step in script.chunks_exact(4).take(8) {
        let [operation, node, place, byte] = *step else { break };
        let mut at = usize::from(node);
        // The walk says how many there are when it has not found it.
        if let Some(total) = change(&mut nodes, &mut at, (operation, place, byte), words) {
            at = usize::from(node) % total.max(1);
            change(&mut nodes, &mut at, (operation, place, byte), words);
        }
    }
    written(&nodes)
}

/// Changes the node that is `at` others behind the first one. Otherwise returns how many there were.
fn change(nodes: &mut Vec<Node>, at: &mut usize, step: (u8, u8, u8), words: &[&[u8]]) -> Option<usize> {
    let mut total = 0;
    for index in 0..nodes.len() {
        if *at == 0 {
            change_one(nodes, index, step, words);
            return None;
        }
        *at -= 1;
        total += 1;
        if let Some(Node { body: Body::Parts(parts), .. }) = nodes.get_mut(index) {
            total += change(parts, at, step, words)?;
        }
    }
    Some(total)
}

fn change_one(nodes: &mut Vec<Node>, index: usize, (operation, place, byte): (u8, u8, u8), words: &[&[u8]]) {
    match operation % 9 {
        0 => nodes.insert(index, nodes[index].clone()),
        1 => drop(nodes.remove(index)),
        2 => {
            let next = (index + 1) % nodes.len();
            nodes.swap(index, next);
        }
        3 => nodes[index].tag = byte,
        4 => nodes[index].tag ^= 1 << (byte % 8),
        5 => nodes[index].body = Body::Bytes(words[usize::from(byte) % words.len()].to_vec()),
        operation => {
            let node = &mut nodes[index];
            let mut bytes = match &node.body {
                Body::Bytes(bytes) => bytes.clone(),
                Body::Parts(parts) => written(parts),
            };
            let place = usize::from(place) % (bytes.len() + 1);
            match operation {
                6 => bytes.insert(place, byte),
                7 if place < bytes.len() => drop(bytes.remove(place)),
                8 if place < bytes.len() => bytes[place] = byte,
                _ => {}
            }
            node.body = Body::Bytes(bytes);
        }
    }
}

/// The values one behind the other; `None` if that is not what it is.
fn nodes(mut bytes: &[u8]) -> Option<Vec<Node>> {
    let mut found = Vec::new();
    while let [tag, after @ ..] = bytes {
        let (length, after) = match after {
            [0x82, high, low, after @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), after),
            [0x81, length, after @ ..] => (usize::from(*length), after),
            [length @ 0..=0x7f, after @ ..] => (usize::from(*length), after),
            _ => return None,
        };
        let (content, rest) = after.split_at_checked(length)?;
        // What an extension says is DER within a string.
        let inner = (tag & 0x20 != 0 || *tag == 0x04).then(|| nodes(content)).flatten();
        let body = inner.map_or_else(|| Body::Bytes(content.to_vec()), Body::Parts);
        found.push(Node { tag: *tag, body });
        bytes = rest;
    }
    Some(found)
}

fn written(nodes: &[Node]) -> Vec<u8> {
    let one = |node: &Node| match &node.body {
        Body::Bytes(bytes) => encode(node.tag, bytes),
        Body::Parts(parts) => encode(node.tag, &written(parts)),
    };
    nodes.iter().flat_map(one).collect()
}

fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let header = match length {
        ..0x80 => vec![tag, length as u8],
        0x80..0x100 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [header.as_slice(), content].concat()
}

//! What lies in another process's memory, for tests that look for secrets there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use crate::failure::Must as _;

/// In an ECPrivateKey (RFC 5915) of P-256: before its secret, and between that and its public point.
const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
const BETWEEN: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
const SECRET: usize = 32;
const POINT: usize = 65;

/// A P-256 key pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The secret, big-endian as in its DER.
    pub secret: Vec<u8>,
    /// The public point, uncompressed.
    pub point: Vec<u8>,
}

/// Everything that the process can write: where its heap and stacks are. Root only.
///
/// # Panics
/// If the process is gone, or may not be looked at.
pub fn writable(pid: u32) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).must("the process is gone");
    let memory = File::open(format!("/proc/{pid}/mem")).must("the process may not be looked at");
    let piece = |line: &str| {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        let (from, to) = range.split_once('-')?;
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).must(line));
        let mut bytes = vec![0; usize::try_from(to - from).must(line)];
        // A piece may have gone meanwhile.
        (rights.starts_with("rw") && memory.read_exact_at(&mut bytes, from).is_ok()).then_some(bytes)
    };
    maps.lines().filter_map(piece).collect()
}

/// The P-256 private keys in `bytes` that are encoded there (PKCS#8, RFC 5915), each once.
pub fn keys_in(bytes: &[u8]) -> Vec<Key> {
    let key = |at: usize| {
        let from = at + BEFORE.len();
        let between = from + SECRET;
        let point = between + BETWEEN.len();
        let is_key = bytes.get(between..point)? == BETWEEN && bytes.get(point) == Some(&4);
        let found =
            || Some(Key { secret: bytes[from..between].to_vec(), point: bytes.get(point..point + POINT)?.to_vec() });
        is_key.then(found)?
    };
    let mut found: Vec<Key> = places(bytes, &BEFORE).into_iter().filter_map(key).collect();
    found.sort();
    found.dedup();
    found
}

/// Where `needle` begins in `bytes`.
pub fn places(bytes: &[u8], needle: &[u8]) -> Vec<usize> {
    let Some(first) = needle.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(next) = bytes[from..].iter().position(|byte| byte == first) {
        let at = from + next;
        if bytes[at..].starts_with(needle) {
            found.push(at);
        }
        from = at + 1;
    }
    found
}

impl Key {
    /// How often the process has the secret in memory, as DER has it or as words of a little-endian machine. Half of it counts.
    pub fn copies_in(&self, pid: u32) -> usize {
        let half = &self.secret[..SECRET / 2];
        let reversed: Vec<u8> = half.iter().rev().copied().collect();
        let of = |piece: &Vec<u8>| places(piece, half).len() + places(piece, &reversed).len();
        writable(pid).iter().map(of).sum()
    }

    /// How often it has half of it in memory in hex.
    pub fn hex_copies_in(&self, pid: u32) -> usize {
        let hex: String = self.secret[..SECRET / 2].iter().map(|byte| format!("{byte:02x}")).collect();
        writable(pid).iter().map(|piece| places(piece, hex.as_bytes()).len()).sum()
    }
}

//! For tests: private keys that lie in memory which Rust's allocator is given back. Each block is looked at before it is freed, the
//! one that a growing buffer leaves as well. C's own (aws-lc) is not seen.

#![expect(unsafe_code, reason = "an allocator hands out raw memory, and this one looks at what it takes back")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What stands before a P-256 key's secret in PKCS#8 and RFC 5915, and how hex and PEM write that.
const RAW: &[u8] = &[0x02, 0x01, 0x01, 0x04, 0x20];
const HEX: &[u8] = b"0201010420";
const PEM: &[u8] = b"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";

/// So much of a secret tells it from others: whole groups of base64.
const SECRET: usize = 30;
/// More than the tests of one process free while one looks.
const MOST: usize = 4096;

type Secret = [u8; SECRET];

/// The allocator.
struct Looked;

#[global_allocator]
static ALLOCATOR: Looked = Looked;

static LOOKING: AtomicBool = AtomicBool::new(false);
static TURN: Mutex<()> = Mutex::new(());
/// The newest, and how many there have been. A list that grew would ask the allocator.
static FREED: Mutex<([Secret; MOST], usize)> = Mutex::new(([[0; SECRET]; MOST], 0));

/// While this lives, what is freed is looked at. Tests look one after the other, and each sees only what is freed in its own time.
pub(crate) struct Look {
    _turn: MutexGuard<'static, ()>,
}

impl Look {
    pub(crate) fn begin() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        seen().1 = 0;
        LOOKING.store(true, Ordering::SeqCst);
        Self { _turn: turn }
    }

    /// Whether memory was freed that held this key (PKCS#8, DER), raw, in hex or in PEM.
    pub(crate) fn has_seen(&self, key: &[u8]) -> bool {
        let at = key.windows(RAW.len()).position(|window| window == RAW).unwrap_or(key.len());
        let secret = key.get(at + RAW.len()..at + RAW.len() + SECRET);
        let seen = seen();
        secret.is_none_or(|secret| seen.0.iter().take(seen.1).any(|one| one == secret))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        LOOKING.store(false, Ordering::SeqCst);
    }
}

// SAFETY: all that hands out or takes back memory is the system's. `realloc` is the trait's own, by way of these two.
unsafe impl GlobalAlloc for Looked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if LOOKING.load(Ordering::SeqCst) {
            Block { start: block, size: layout.size() }.look();
        }
        // SAFETY: as the caller promises us.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Memory that is about to be freed. Its owner may never have written to some of it.
struct Block {
    start: *const u8,
    size: usize,
}

impl Block {
    fn byte(&self, at: usize) -> Option<u8> {
        // SAFETY: within the block, which is ours until it is freed. A volatile read takes whatever lies there.
        (at < self.size).then(|| unsafe { self.start.add(at).read_volatile() })
    }

    fn begins(&self, at: usize, with: &[u8]) -> bool {
        with.iter().enumerate().all(|(offset, byte)| self.byte(at + offset) == Some(*byte))
    }

    fn look(&self) {
        for at in 0..self.size {
            let found = match self.byte(at) {
                Some(b'\x02') if self.begins(at, RAW) => self.raw(at + RAW.len()),
                Some(b'0') if self.begins(at, HEX) => self.hex(at + HEX.len()),
                Some(b'M') if self.begins(at, PEM) => self.base64(at + PEM.len()),
                _ => None,
            };
            if let Some(secret) = found {
                note(secret);
            }
        }
    }

    fn raw(&self, at: usize) -> Option<Secret> {
        let mut secret = [0; SECRET];
        for (offset, byte) in secret.iter_mut().enumerate() {
            *byte = self.byte(at + offset)?;
        }
        Some(secret)
    }

    fn hex(&self, at: usize) -> Option<Secret> {
        let digit = |at| char::from(self.byte(at)?).to_digit(16);
        let mut secret = [0; SECRET];
        for (offset, byte) in secret.iter_mut().enumerate() {
            *byte = u8::try_from(digit(at + 2 * offset)? << 4 | digit(at + 2 * offset + 1)?).ok()?;
        }
        Some(secret)
    }

    fn base64(&self, at: usize) -> Option<Secret> {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut at = at;
        let mut letter = || {
            // PEM breaks its lines.
            while matches!(self.byte(at)?, b'\r' | b'\n') {
                at += 1;
            }
            at += 1;
            let letter = self.byte(at - 1)?;
            LETTERS.iter().position(|one| *one == letter)
        };
        let mut secret = [0; SECRET];
        for group in secret.chunks_exact_mut(3) {
            let bits = letter()? << 18 | letter()? << 12 | letter()? << 6 | letter()?;
            let [.., one, two, three] = bits.to_be_bytes();
            group.copy_from_slice(&[one, two, three]);
        }
        Some(secret)
    }
}

fn seen() -> MutexGuard<'static, ([Secret; MOST], usize)> {
    FREED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(secret: Secret) {
    let mut seen = seen();
    let at = seen.1 % MOST;
    (seen.0[at], seen.1) = (secret, seen.1 + 1);
}

/// That it sees what it is to see.
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

    use super::Look;

    type Way = fn(&KeyPair, &[u8]);

    /// A key of this test alone.
    fn fresh() -> Option<(KeyPair, zeroize::Zeroizing<Vec<u8>>)> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).ok()?;
        let der = zeroize::Zeroizing::new(pair.serialize_der());
        Some((pair, der))
    }

    #[test]
    fn a_copy_that_is_not_wiped_is_seen_in_each_writing() {
        let look = Look::begin();
        let ways: [Way; 4] = [
            |_, der| drop(der.to_vec()),
            |_, der| drop(der.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
            |pair, _| drop(pair.serialize_pem()),
            // The buffer that it leaves when it grows is freed as it is.
            |_, der| zeroize::Zeroizing::new(der.to_vec()).reserve(100_000),
        ];
        for (at, way) in ways.into_iter().enumerate() {
            let Some((pair, der)) = fresh() else { unreachable!("no key") };
            assert!(!look.has_seen(&der), "{at}: before");
            way(&pair, &der);
            assert!(look.has_seen(&der), "{at}");
        }
    }

    #[test]
    fn what_is_wiped_is_not_seen() {
        let look = Look::begin();
        let Some((_pair, der)) = fresh() else { unreachable!("no key") };
        drop(zeroize::Zeroizing::new(der.to_vec()));
        assert!(!look.has_seen(&der));
    }
}

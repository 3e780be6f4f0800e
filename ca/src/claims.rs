//! Which key was certified for whom: nobody else gets a certificate for it. Of the newest only, and by this replica.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::token::KeyHash;

/// About 10 MiB.
const MOST: usize = 64 * 1024;

/// Keys and their owners; the oldest is forgotten first.
pub(crate) struct Claims {
    most: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    owners: HashMap<KeyHash, KeyHash>,
    /// Each key once, the oldest first.
    order: VecDeque<KeyHash>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { most: MOST, known: Mutex::default() }
    }
}

impl Claims {
    /// Notes that this is the key of that identity on that node. False if it is somebody else's.
    pub(crate) fn claim(&self, key: &KeyHash, identity: &str, node: &str) -> bool {
        // Neither has a line break in it.
        let owner: KeyHash = Sha256::digest(format!("{identity}\n{node}")).into();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.owners.get(key) {
            return *known == owner;
        }
        if known.order.len() >= self.most
            && let Some(oldest) = known.order.pop_front()
        {
            known.owners.remove(&oldest);
        }
        known.order.push_back(*key);
        known.owners.insert(*key, owner);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_owner() {
        let claims = Claims::default();
        assert!(claims.claim(&[1; 32], "a", "node-a"));
        assert!(claims.claim(&[1; 32], "a", "node-a"), "the answer may have been lost");
        assert!(!claims.claim(&[1; 32], "b", "node-a"));
        assert!(!claims.claim(&[1; 32], "a", "node-b"));
        assert!(claims.claim(&[2; 32], "b", "node-b"));
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let claims = Claims { most: 2, ..Claims::default() };
        for key in 0..10 {
            assert!(claims.claim(&[key; 32], "a", "node-a"));
        }
        assert!(!claims.claim(&[9; 32], "b", "node-a"));
        assert!(claims.claim(&[0; 32], "b", "node-a"), "the oldest is forgotten");
        let known = claims.known.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((known.owners.len(), known.order.len()), (2, 2));
    }
}

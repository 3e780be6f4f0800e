//! Bytes both ways until done, revoked or drained.

//! A connection that is opened again, because the tunnel on which it was opened first is silent.

use super::open::{ConnectionId, Extension, Extensions, Open};

/// The extension's type.
const KIND: u16 = 1;
const LENGTH: usize = 16;

/// The critical extension `instead_of`: the OPEN replaces one on another tunnel between the same two pods, which is named by
/// the connection that it carried before. The acceptor serves one of the two at most, or says that it may have served both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsteadOf(Vec<u8>);

impl InsteadOf {
    /// Of the tunnel whose last connection but the one that is opened again was this.
    pub fn new(before: ConnectionId) -> Self {
        let mut bytes = Vec::with_capacity(4 + LENGTH);
        // The value is as short as its field needs it to be.
        let _encoded = Extension { kind: KIND, critical: true, value: &before.0 }.encode(&mut bytes);
        Self(bytes)
    }

    /// As an OPEN has it.
    pub fn extensions(&self) -> Extensions<'_> {
        Extensions::parse(&self.0).unwrap_or(Extensions::NONE)
    }
}

impl Open<'_> {
    /// The connection that the silent tunnel carried before, if this OPEN stands for one that was sent on a silent tunnel.
    pub fn instead_of(&self) -> Option<ConnectionId> {
        self.extensions.iter().find_map(value)
    }
}

/// Whether this end knows what to do with the extension.
pub(super) fn is_known(extension: Extension<'_>) -> bool {
    value(extension).is_some()
}

fn value(extension: Extension<'_>) -> Option<ConnectionId> {
    let ours = extension.kind == KIND && extension.critical;
    ours.then(|| extension.value.try_into().ok()).flatten().map(ConnectionId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let id = ConnectionId([7; 16]);
        let extension = InsteadOf::new(id);
        let found: Vec<_> = extension.extensions().iter().map(value).collect();
        assert_eq!(found, [Some(id)]);
    }

    #[test]
    fn another_type_another_length_and_one_that_may_be_ignored_are_not_it() {
        let of = |kind, critical, length| value(Extension { kind, critical, value: &[7; 20][..length] });
        assert!(of(1, true, 16).is_some());
        assert_eq!([of(2, true, 16), of(1, false, 16), of(1, true, 15), of(1, true, 17), of(1, true, 0)], [None; 5]);
    }
}

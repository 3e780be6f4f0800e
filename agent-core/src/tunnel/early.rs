//! What a dialler may send before it has read the answer to its OPEN: one DATA, then one FIN.

/// How much of it has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Early {
    pub(super) data: bool,
    pub(super) fin: bool,
}

/// A connection that is not served, of which frames may still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) number: u32,
    pub(super) early: Early,
}

impl Early {
    /// `None` if DATA is one too many.
    pub(super) fn with_data(self) -> Option<Self> {
        let data = true;
        (!self.data && !self.fin).then_some(Self { data, ..self })
    }

    /// `None` if FIN is one too many.
    pub(super) fn with_fin(self) -> Option<Self> {
        let fin = true;
        (!self.fin).then_some(Self { fin, ..self })
    }
}

//! Whether a connection may: a permit, or who says no.

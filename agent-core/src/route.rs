//! Where a captured connection goes.

//! How the harness fails: at once, at the caller's line, with a sentence.

use std::fmt::Display;

/// Takes what must be there.
pub trait Must<T> {
    /// The value.
    ///
    /// # Panics
    /// With `what` and the error, if there is none.
    #[track_caller]
    fn must(self, what: impl Display) -> T;
}

impl<T, E: Display> Must<T> for Result<T, E> {
    fn must(self, what: impl Display) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

impl<T> Must<T> for Option<T> {
    fn must(self, what: impl Display) -> T {
        match self {
            Some(value) => value,
            None => panic!("{what}: there is none"),
        }
    }
}

//! Ctrl-C and its kin, taken as a request to clean up and end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::shell::{Context as _, Done, Failure};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on a signal does not end this command; [`check`] tells of it.
pub(crate) fn watch() -> Done {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(asked)).context("cannot watch for signals")?;
    }
    Ok(())
}

/// Fails when the command was asked to end.
pub(crate) fn check() -> Done {
    if ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed)) {
        return Err(Failure::new("interrupted"));
    }
    Ok(())
}

//! The program under test.

use std::env;
use std::path::PathBuf;

use crate::failure::Must as _;

/// Where the built `mantle` is: `MANTLE_BIN`, or beside the running test.
///
/// # Panics
/// If it is not there.
pub fn mantle() -> PathBuf {
    if let Some(told) = env::var_os("MANTLE_BIN") {
        return PathBuf::from(told);
    }
    let own = env::current_exe().must("cannot tell which program this is");
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("mantle"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.must("the tests run the real `mantle`: build it with `cargo build -p agent`, or set MANTLE_BIN")
}

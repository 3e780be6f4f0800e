//! What every kind of map has in common.

use std::io;

use aya::Ebpf;
use aya::maps::{Map, MapError};

use super::StartError;

/// Takes a map out of a loaded object.
pub(super) fn take<M>(object: &mut Ebpf, name: &'static str) -> Result<M, StartError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = object.take_map(name).ok_or(StartError::Map(name, MapError::KeyNotFound))?;
    M::try_from(map).map_err(|error| StartError::Map(name, error))
}

pub(super) fn absent_is_fine(result: Result<(), MapError>) -> io::Result<()> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(error)),
    }
}

pub(super) fn io_error(error: MapError) -> io::Error {
    if let MapError::SyscallError(error) = error { error.io_error } else { io::Error::other(error) }
}

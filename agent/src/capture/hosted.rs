//! Whose each address is among this node's pods: by it the connect hook tells that a socket of the node's probes one.

use std::io;

use agent_common::Addr;
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};

use super::StartError;
use super::kernel_map::{absent_is_fine, io_error, take};

/// `HOSTED`, an index of `NETNS`: an address → the cookie of the namespace that has it.
pub(super) struct Hosted(HashMap<MapData, Addr, u64>);

impl Hosted {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, StartError> {
        take(object, "HOSTED").map(Self)
    }

    /// Adds what is an address; unused slots are zero. An address that is another pod's still is this one's from now on.
    pub(super) fn add(&mut self, cookie: u64, addresses: &[Addr]) -> io::Result<()> {
        let mut used = addresses.iter().filter(|address| **address != [0; 4]);
        used.try_for_each(|address| self.0.insert(address, cookie, 0).map_err(io_error))
    }

    /// Removes those of the addresses that are (still) this namespace's.
    pub(super) fn remove<'a>(&mut self, cookie: u64, addresses: impl Iterator<Item = &'a Addr>) -> io::Result<()> {
        for address in addresses {
            match self.0.get(address, 0) {
                Ok(owner) if owner == cookie => absent_is_fine(self.0.remove(address))?,
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(io_error(error)),
            }
        }
        Ok(())
    }

    /// All of it.
    pub(super) fn all(&self) -> io::Result<Vec<(Addr, u64)>> {
        self.0.iter().collect::<Result<_, _>>().map_err(io_error)
    }
}

//! Connections in the clear, from a pod to an endpoint that is not enrolled.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use agent_core::address::PeerAddr;
use agent_core::policy::PlainPermit;
use tokio::net::TcpStream;

use super::dial::DialError;
use super::pod::Attached;

impl Attached {
    /// Connects from the pod's address to the endpoint that may be reached in the clear. Such a socket is made as a tunnel's
    /// is: exempt from capture, from a port that the application is not given. `next`: see [`Self::dial_tunnel`].
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_plain(
        self: &Arc<Self>,
        permit: &PlainPermit,
        next: &Cell<usize>,
        limit: Duration,
    ) -> Result<TcpStream, DialError> {
        self.dial_tunnel(PeerAddr::new(permit.route().destination().socket_addr()), next, limit).await
    }
}

//! Addresses by role, so that a client, an original destination and a next hop cannot be swapped.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The port on which every pod's agent accepts tunnels.
pub const TUNNEL_PORT: u16 = 15008;

/// The port in 127.128.0.0/9 to which captured connections are rewritten.
pub const CAPTURE_PORT: u16 = 15001;

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes the address into this role; an IPv4-mapped IPv6 address becomes IPv4.
            pub fn new(address: SocketAddr) -> Self {
                Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
            }

            /// The address without its role, for a socket call or a map key.
            pub fn socket_addr(self) -> SocketAddr {
                self.0
            }

            /// The address without its port.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port, in host order.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

role!(
    /// Where the application asked to connect to: a pod's address, or a service's.
    OriginalDst
);
role!(
    /// Where the application that serves a connection listens: an address of its own.
    EndpointAddr
);
role!(
    /// The application that connected, as the network would have shown it.
    ClientAddr
);
role!(
    /// The far end of an agent's own tunnel socket.
    PeerAddr
);

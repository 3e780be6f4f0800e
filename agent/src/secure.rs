//! Mutual TLS between agents: who the peer is, and records over one socket.

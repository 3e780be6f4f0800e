//! The life of a connection that enters a local pod.

//! The life of a connection that leaves a local pod.

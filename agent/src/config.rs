//! The agent's configuration: what was written, then what it means.

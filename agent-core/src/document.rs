//! How an operator's YAML is read: every mistake at its place, all at once.

//! How a connection ended, in the words of records and metrics.

//! Mantle's certificate authority.

pub mod config;

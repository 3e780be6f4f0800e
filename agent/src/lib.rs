//! The Mantle agent. Read [`outbound`] and [`inbound`] first: they are the life of a connection.

//X pub mod app;
pub mod capture;
pub mod config;
pub mod directory;
pub mod drain;
//X pub mod enrolment;
pub mod failure;
pub mod identity;
//X pub mod inbound;
//X pub mod outbound;
//X pub mod plane;
pub mod relay;
pub mod report;
pub mod secure;
//X pub mod worker;

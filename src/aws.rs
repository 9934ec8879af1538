//! The connection to AWS: who keytide is, the one HTTP client, and what AWS's errors mean.

pub mod auth;
pub mod client;
pub mod iam;
pub mod outcome;

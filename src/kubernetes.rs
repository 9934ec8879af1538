//! The Kubernetes API: one client, its calls, its errors. The only module that knows the crates of it.

pub mod access;
pub mod client;
pub mod events;
mod kubeconfig;
pub mod lease;
pub mod outcome;
pub mod secret;
pub mod workload;

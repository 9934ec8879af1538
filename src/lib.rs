//! keytide carries keys between AWS Secrets Manager and the pod that needs them.
//!
//! `docs/ARCHITECTURE.md` is the map of the house.

pub mod domain;

pub mod config;

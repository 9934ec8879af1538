//! Where values come from.

pub mod secrets_manager;

pub use secrets_manager::SecretsManager as Source;

//! keytide carries keys between AWS Secrets Manager and the pod that needs them.
//!
//! The library exists for the binary and the tests. `docs/ARCHITECTURE.md` is the map of the house:
//!
//! * [`domain`] names, values, mappings; [`plan`] and [`render`] decide and spell, and touch nothing;
//! * [`config`], [`metrics`], [`health`] know; [`source`], [`output`], [`state`], [`watch`], [`aws`] touch the world;
//! * [`pull`] puts the steps in order, [`reload`] tells consumers, [`http`] answers, [`supervisor`] owns the tasks, [`daemon`] wires them;
//! * [`cli`], [`telemetry`] and [`process`] are the outer shell.

pub mod aws;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod domain;
pub mod health;
pub mod http;
pub mod http_client;
pub mod kubernetes;
pub mod metrics;
pub mod output;
pub mod plan;
pub mod process;
pub mod publish;
pub mod pull;
pub mod push;
pub mod reload;
pub mod render;
pub mod small_file;
pub mod source;
pub mod spool;
pub mod state;
pub mod store;
pub mod supervisor;
pub mod telemetry;
pub mod watch;

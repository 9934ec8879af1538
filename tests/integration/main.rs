//! keytide from the outside: the real binary, real files, real HTTP, on the emulator. One file a behaviour.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]
#![expect(
    clippy::float_cmp,
    clippy::format_collect,
    clippy::format_push_string,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::type_complexity,
    clippy::unused_self,
    clippy::unwrap_used,
    reason = "a test that panics has failed, counts are whole numbers, and nothing here is called often"
)]

mod support;

mod agents;
mod alerts;
mod canary;
mod canary_identity;
mod canary_spool;
mod cast;
mod chains;
mod configuration;
mod documents;
mod doors;
mod exec;
mod exec_changes;
mod exec_process;
mod expected;
mod files;
mod hostile;
mod install;
mod kill;
mod network;
mod online;
mod outage;
mod outputs;
mod permissions;
mod producer;
mod profiles;
mod proxy;
mod pushing;
mod reading;
mod reload;
mod removal;
mod spool;
mod spool_seen;
mod startup;
mod storing;
mod thread;
mod tokens;
mod vectors;
mod withstand;

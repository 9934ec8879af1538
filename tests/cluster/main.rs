//! keytide in a whole Kubernetes: real pods under a real kubelet, on a node that lasts as long as this process.
//!
//! `./tests/run cluster` brings the programs and the images, and the namespaces (of Linux) that keep the node apart from
//! this machine.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that panics has failed")]

mod aws;
mod cluster;
mod exec;
mod helm;
mod hub;
mod hub_release;
mod identity;
mod injection;
mod litellm;
mod memory;
mod namespace;
mod node;
mod outage;
mod patch;
mod scraping;
mod sidecar;
mod starting;
mod stopping;
mod wait;

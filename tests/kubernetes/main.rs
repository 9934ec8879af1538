//! keytide in Kubernetes: the real binary, a real API server, and a proxy between them that fails on demand.
//!
//! `./tests/run kubernetes` brings etcd and kube-apiserver, which `KUBEBUILDER_ASSETS` names.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]
#![expect(
    clippy::float_cmp,
    clippy::indexing_slicing,
    clippy::unused_self,
    clippy::unwrap_used,
    reason = "a test that panics has failed, counts are whole numbers, and nothing here is called often"
)]

mod access;
mod api;
mod control_plane;
mod drift;
mod events;
mod footprint;
mod gate;
mod harness;
mod namespace;
mod outage;
mod rights;
mod rollout;
mod secret;
mod speed;
mod stage;
#[expect(dead_code, reason = "the integration tests use more of it")]
#[path = "../integration/support.rs"]
mod support;
mod writers;

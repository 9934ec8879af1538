//! keytide in Kubernetes: the real binary, a real API server, and a proxy between them that fails on demand.
//!
//! `./tests/run kubernetes` brings etcd and kube-apiserver, which `KUBEBUILDER_ASSETS` names.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]
#![expect(
    clippy::indexing_slicing,
    clippy::unused_self,
    clippy::unwrap_used,
    reason = "a test that panics has failed, and nothing here is called often"
)]

mod api;
mod control_plane;
mod gate;
mod harness;
mod namespace;
mod stage;
#[expect(dead_code, reason = "the integration tests use more of it")]
#[path = "../integration/support.rs"]
mod support;

//! keytide from the outside: the real binary, real files, real HTTP, on the emulator. One file a behaviour.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]

mod support;

mod doors;
mod outage;
mod reading;
mod removal;
mod startup;
mod thread;

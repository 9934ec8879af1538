//! Waiting for what must happen.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Longer than anything takes that must happen, on a machine where other pods start at the same time.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until it is so; `what` says what was waited for.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "waited for {what}");
}

/// Waits until it is so; false if it was not in this time.
pub(crate) fn within(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    true
}

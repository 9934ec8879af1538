//! The record of requests: what was asked, by whom, and with what outcome. Never a value.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::answer::Service;

/// One call of an AWS action, as it was received.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Request {
    /// Which service was asked.
    pub service: Service,
    /// Such as `GetSecretValue`.
    pub action: String,
    /// The name that it was sent to: its `Host` header.
    pub host: Option<String>,
    /// The secrets it named, as it named them.
    pub secret_ids: Vec<String>,
    /// Who it says signed it; none if unsigned.
    pub access_key_id: Option<String>,
    /// The region it was signed for.
    pub region: Option<String>,
    /// The ARN of the user or session, once proved.
    pub principal: Option<String>,
    /// Its parameters but for secret values and tokens.
    pub parameters: serde_json::Value,
    /// `200`, an error's code, or `pending` while there is no answer (or there never was one).
    pub outcome: String,
    /// When it came, in milliseconds since 1970 on the emulator's clock.
    pub at_ms: i64,
}

/// The last requests, and how many of each action there were.
#[derive(Default)]
pub(crate) struct Record {
    /// Whether requests are only counted.
    off: bool,
    requests: VecDeque<Request>,
    /// The number of the first one that is kept.
    first: u64,
    counts: BTreeMap<String, usize>,
}

/// A long test makes some ten thousand requests; more than this would only cost memory.
const KEPT: usize = 100_000;

// === impl Record ===

impl Record {
    pub(crate) fn set_on(&mut self, on: bool) {
        self.off = !on;
    }

    /// Notes a request that has no answer yet, and numbers it if it is kept.
    pub(crate) fn open(&mut self, request: Request) -> Option<u64> {
        if let Some(count) = self.counts.get_mut(&request.action) {
            *count += 1;
        } else {
            self.counts.insert(request.action.clone(), 1);
        }
        if self.off {
            return None;
        }
        if self.requests.len() == KEPT {
            self.requests.pop_front();
            self.first += 1;
        }
        self.requests.push_back(request);
        Some(self.first + u64::try_from(self.requests.len()).expect("a length fits") - 1)
    }

    /// The request of this number, unless it was forgotten.
    pub(crate) fn get_mut(&mut self, number: Option<u64>) -> Option<&mut Request> {
        let index = usize::try_from(number?.checked_sub(self.first)?).ok()?;
        self.requests.get_mut(index)
    }

    pub(crate) fn all(&self) -> Vec<Request> {
        self.requests.iter().cloned().collect()
    }

    pub(crate) fn count(&self, action: &str) -> usize {
        self.counts.get(action).copied().unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.first += u64::try_from(self.requests.len()).expect("a length fits");
        self.requests.clear();
        self.counts.clear();
    }
}

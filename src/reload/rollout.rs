//! Restarts a workload whose pods read a Kubernetes Secret only when they start.
//!
//! What the workload shall have is on the Secret (`keytide.dev/content`), and what it has is on its pod template. So all
//! writers agree, a restart of keytide causes none, and a writer that dies in between is followed by one that sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    domain::{kubernetes::ObjectName, names::OutputName, reload::Contents},
    kubernetes::{
        outcome::Trouble,
        workload::{Workload, restart_annotation},
    },
    plan::reload::Again,
};

/// One workload, and the Secrets for which it is restarted.
#[derive(Debug)]
pub(super) struct Rollout {
    workload: Workload,
    /// The annotation of each output's Secret.
    annotations: BTreeMap<OutputName, String>,
    /// The content of each when this process first saw it: a workload that was never restarted has that.
    first: BTreeMap<OutputName, String>,
    limit: Duration,
}

// === impl Rollout ===

impl Rollout {
    pub(super) fn new(workload: Workload, secrets: &BTreeMap<OutputName, ObjectName>, limit: Duration) -> Self {
        let annotations = secrets.iter().map(|(output, secret)| (output.clone(), restart_annotation(secret))).collect();
        Self { workload, annotations, first: BTreeMap::new(), limit }
    }

    /// Remembers what is there at first. True while this process writes one of the Secrets.
    pub(super) fn notice(&mut self, contents: &Contents) -> bool {
        let mut writes = false;
        for output in self.annotations.keys() {
            if let Some(mark) = contents.mark(output) {
                self.first.entry(output.clone()).or_insert_with(|| mark.to_owned());
                writes = true;
            }
        }
        writes
    }

    /// Looks what the workload has, and restarts it where that is not what the Secrets hold; says so, or none.
    pub(super) async fn restart(&self, contents: &Contents) -> Result<Option<String>, Trouble> {
        let has = self.workload.annotations(self.limit).await?;
        let mut shall = BTreeMap::new();
        let mut secrets = BTreeSet::new();
        for (output, key) in &self.annotations {
            // Whoever does not hold the Lease leaves it to whoever does.
            let Some(mark) = contents.mark(output) else { continue };
            let due = match has.get(key) {
                Some(is) => is != mark,
                None => self.first.get(output).is_some_and(|first| first != mark),
            };
            if due {
                shall.insert(key.clone(), mark.to_owned());
                secrets.insert(output.to_string());
            }
        }
        if shall.is_empty() {
            return Ok(None);
        }
        self.workload.annotate(&shall, self.limit).await?;
        Ok(Some(format!("{} restarts for {}", self.workload, secrets.into_iter().collect::<Vec<_>>().join(", "))))
    }
}

/// How a call that failed is treated.
pub(super) fn again(trouble: &Trouble) -> Again {
    if trouble.kind.is_lasting() { Again::Slowly } else { Again::Soon }
}

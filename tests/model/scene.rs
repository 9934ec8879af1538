//! The real binary with a spool in memory, on the emulator.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    reference::{ALLOW, Entry, SETTINGS},
    support::{Daemon, Stage},
};

/// From one look to the next.
const TICK: Duration = Duration::from_micros(300);

/// A stage with a spool, which is there before keytide is.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    spool: PathBuf,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With more lines of keytide's block.
    pub(crate) fn with(lines: &str) -> Self {
        let stage = Stage::new();
        let spool = stage.make_directory("spool", 0o1733);
        stage.config(&format!(
            "aws: {{region: us-east-1}}\n{SETTINGS}\nspool: {{directory: \"{{dir}}/spool\", allow: {ALLOW}}}\n{lines}"
        ));
        Self { stage, spool }
    }

    /// As a producer does it: a name that begins with a dot, readable, then the rename.
    pub(crate) fn drop_entry(&self, entry: &Entry) {
        let hidden = self.spool.join(format!(".{}", entry.file));
        fs::write(&hidden, entry.json.to_string()).unwrap();
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&hidden, self.spool.join(&entry.file)).unwrap();
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let files = fs::read_dir(self.spool.join(directory)).into_iter().flatten();
        files.filter_map(|file| file.ok()?.file_name().into_string().ok()).collect()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.names(".").iter().filter(|name| !name.starts_with('.') && *name != "failed").count()
    }

    /// Claims and marks.
    pub(crate) fn claimed(&self) -> Vec<String> {
        self.names(".claimed")
    }

    /// The names of the failed entries' files.
    pub(crate) fn failed(&self) -> BTreeSet<String> {
        self.names("failed").iter().filter_map(|name| Some(name.split_once('~')?.1.to_owned())).collect()
    }

    pub(crate) fn reason(&self, file: &str) -> String {
        let claim = self.names("failed").into_iter().find(|name| name.ends_with(&format!("~{file}")));
        let token = claim.as_deref().and_then(|claim| claim.split('~').next()).unwrap_or_default();
        fs::read_to_string(self.spool.join(format!("failed/{token}.error.json"))).unwrap_or_default()
    }

    /// Waits until there is neither an entry nor a claim. In this order: an entry becomes a claim.
    pub(crate) fn until_drained(&self, daemon: &mut Daemon, patience: Duration) {
        let end = Instant::now() + patience;
        while self.waiting() > 0 || !self.claimed().is_empty() {
            assert!(daemon.is_running(), "keytide ended:\n{}", daemon.log());
            assert!(
                Instant::now() < end,
                "{} entries wait, and these are claimed: {:?}; the log:\n{}",
                self.waiting(),
                self.claimed(),
                daemon.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Calls of AWS so far.
    pub(crate) fn calls(&self) -> usize {
        const ACTIONS: [&str; 11] = [
            "DescribeSecret",
            "GetSecretValue",
            "CreateSecret",
            "PutSecretValue",
            "RestoreSecret",
            "UpdateSecret",
            "TagResource",
            "UntagResource",
            "ReplicateSecretToRegions",
            "RemoveRegionsFromReplication",
            "DeleteSecret",
        ];
        ACTIONS.iter().map(|action| self.stage.aws.count(action)).sum()
    }
}

/// Waits until it is so, or that long.
pub(crate) fn within(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !so() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(TICK);
    }
    true
}

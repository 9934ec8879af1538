//! What a reload action goes by: how often the content of outputs changed, and its own pace.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::names::OutputName;

/// What those who write outputs say to those who tell consumers. Counts begin anew with each process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// How often the content of each output changed; an output that was not yet brought up to date is not among them.
    changes: BTreeMap<OutputName, u64>,
    /// The content of each Kubernetes Secret that this process writes: a text that changes with its keys.
    marks: BTreeMap<OutputName, String>,
    /// True while some key is not fresh: what the outputs hold may not belong together.
    stale: bool,
}

/// When an action is carried out after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Quiet time after the last of several changes.
    pub debounce: Duration,
    /// At most so long, by chance, is waited on top: pods do not reload all at once.
    pub splay: Duration,
    /// From the end of one attempt to the next one, at least.
    pub min_interval: Duration,
    /// Time limit of one attempt.
    pub timeout: Duration,
}

// === impl Contents ===

impl Contents {
    /// Nothing was written, and nothing read.
    #[must_use]
    pub fn at_start() -> Self {
        Self { changes: BTreeMap::new(), marks: BTreeMap::new(), stale: true }
    }

    /// An output holds what it shall hold; `changed` if its content is another one than before. The first time is no
    /// change: what was there before this process, nobody knows. True if there is something to tell.
    pub fn written(&mut self, output: &OutputName, changed: bool) -> bool {
        match self.changes.get_mut(output) {
            Some(count) if changed => *count = count.saturating_add(1),
            Some(_) => return false,
            None => drop(self.changes.insert(output.clone(), 0)),
        }
        true
    }

    /// What a Kubernetes Secret holds now, which is a change if it is something else than before; none: another process
    /// writes it. True if that is new.
    pub fn set_mark(&mut self, output: &OutputName, mark: Option<&str>) -> bool {
        let before = match mark {
            Some(mark) => self.marks.insert(output.clone(), mark.to_owned()),
            None => self.marks.remove(output),
        };
        let changed = before.as_deref() != mark;
        let news = mark.is_some() && self.written(output, changed && before.is_some());
        changed || news
    }

    /// What a Kubernetes Secret holds; none: this process does not write it.
    #[must_use]
    pub fn mark(&self, output: &OutputName) -> Option<&str> {
        self.marks.get(output).map(String::as_str)
    }

    /// Some key is not fresh, or all are. True if that is new.
    pub fn set_stale(&mut self, stale: bool) -> bool {
        std::mem::replace(&mut self.stale, stale) != stale
    }

    /// True while some key is not fresh.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// True once each of these outputs was brought up to date.
    #[must_use]
    pub fn has_all(&self, outputs: &BTreeSet<OutputName>) -> bool {
        outputs.iter().all(|output| self.changes.contains_key(output))
    }

    /// How many changes these outputs had in all.
    #[must_use]
    pub fn changes_of(&self, outputs: &BTreeSet<OutputName>) -> u64 {
        outputs.iter().filter_map(|output| self.changes.get(output)).fold(0, |sum, count| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_write_of_an_output_is_no_change() {
        let [a, b] = ["a", "b"].map(|name| OutputName::parse(name).unwrap());
        let both = BTreeSet::from([a.clone(), b.clone()]);
        let mut contents = Contents::at_start();
        assert!(contents.is_stale() && contents.set_stale(false) && !contents.set_stale(false));
        assert!(contents.written(&a, true) && !contents.written(&a, false));
        assert!(!contents.has_all(&both) && contents.changes_of(&both) == 0);
        assert!(contents.written(&b, false) && contents.has_all(&both));
        assert!(contents.written(&a, true) && contents.written(&b, true));
        assert_eq!((contents.changes_of(&both), contents.changes_of(&BTreeSet::from([a]))), (2, 1));
    }
}

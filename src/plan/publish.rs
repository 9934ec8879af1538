//! What to do with a Kubernetes Secret: what it shall hold × what it holds → nothing, write, read AWS again, or say why not.
//!
//! Everything that is written is a function of the source, so that all writers write the same. All times are since some
//! start, on a monotonic clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::domain::{
    kubernetes::{Field, Live, Manifest, Provenance, Settings},
    names::KeyName,
    value::SecretValue,
};

/// So many repairs within [`WINDOW`], then they come at a growing distance.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_mins(1);
/// The longest distance between two repairs.
const LONGEST: Duration = Duration::from_mins(10);

/// The annotation that says from which versions the values are: a JSON object.
pub const VERSIONS: &str = "keytide.dev/source-versions";
/// The annotation that says when AWS made the newest of them (RFC 3339).
pub const TIME: &str = "keytide.dev/source-time";
/// The annotation that changes when the keys change: what workloads are restarted for.
pub const CONTENT: &str = "keytide.dev/content";

/// What was read from AWS for one Secret, in this process. A value from before a restart is not in it.
#[derive(Debug, Default)]
pub struct Wish {
    /// The values, by their names in the Secret.
    pub values: BTreeMap<String, SecretValue>,
    /// Names of which AWS said that there is nothing: what the Secret has of them stays.
    pub absent: BTreeSet<String>,
    /// Names that were not read yet: what the Secret has of them stays, and without that nothing is written.
    pub unread: BTreeSet<String>,
    /// True: all members of some secret belong to it, and were not read yet.
    pub waiting: bool,
    /// The keys whose names a Secret cannot have, each with why.
    pub unrepresentable: Vec<(KeyName, String)>,
    /// Where the values came from.
    pub provenance: Provenance,
}

/// Why a Secret is not written, although it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There is none, and none shall be made.
    #[error("it does not exist, and create: false leaves it to others to make it")]
    Missing,
    /// Somebody else made it.
    #[error("it exists and is not keytide's; adopt: true lets keytide fill it beside what it holds")]
    Foreign,
    /// It is of another type.
    #[error("it is of type {is}, not {shall}, and a type cannot be changed: delete it, or say type: {is}")]
    Type {
        /// What it is.
        is: String,
        /// What it shall be.
        shall: String,
    },
    /// Nobody can change it.
    #[error("it is immutable: delete it, and keytide makes it anew")]
    Immutable,
    /// It is on its way out.
    #[error("it is being deleted, and something holds that up (metadata.finalizers)")]
    Deleting,
    /// A value of it was not read yet.
    #[error("not all of its values were read since keytide started, and it does not have them")]
    Unread,
}

/// Why a write happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There was none, and this process has not written it yet.
    Made,
    /// It shall hold something else than before.
    Change,
    /// Somebody changed or removed what it held.
    Repair,
}

/// One write.
#[derive(Debug)]
pub struct Write {
    /// What it shall hold.
    pub manifest: Manifest,
    /// The state that this is decided on; none if there is no object.
    pub resource_version: Option<String>,
    /// Why.
    pub cause: Cause,
    /// True: fields of others are taken.
    pub force: bool,
}

/// What to do now.
#[derive(Debug)]
pub enum Step {
    /// Nothing is known yet of what it shall hold, or what it holds.
    Idle,
    /// It holds what it shall hold.
    Holds(Holds),
    /// Write it.
    Write(Box<Write>),
    /// Another keytide wrote it from other versions: AWS decides.
    ReadAgain,
    /// Somebody changes it again and again: the next repair is at this time.
    Contested(Duration),
    /// It cannot be written.
    Refuse(Refusal),
}

/// A Secret that is as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holds {
    /// How many keys.
    pub keys: usize,
    /// The value of [`CONTENT`].
    pub content: String,
}

/// What one writer knows of one Secret.
#[derive(Debug, Default)]
pub struct Publisher {
    settings: Settings,
    wish: Option<(Wish, Duration)>,
    /// Reads that began before this are from before this writer was the one: another may have written since.
    since: Option<Duration>,
    /// How many reads in a row, begun after the present versions were seen, said the same.
    agreed: usize,
    /// What the API server has, once `since` says that it was looked at; none: no such Secret.
    live: Option<Arc<Live>>,
    /// Since when the Secret has the versions that it has.
    seen: Duration,
    /// What it held when it last was as it shall be.
    held: Option<Manifest>,
    /// The last content annotation that was known.
    content: Option<String>,
    repairs: VecDeque<Duration>,
    backoff: u32,
}

// === impl Wish ===

impl Wish {
    /// The same, with other handles on the same values.
    #[must_use]
    pub fn share(&self) -> Self {
        let Self { values, absent, unread, waiting, unrepresentable, provenance } = self;
        Self {
            values: values.iter().map(|(name, value)| (name.clone(), value.share())).collect(),
            absent: absent.clone(),
            unread: unread.clone(),
            waiting: *waiting,
            unrepresentable: unrepresentable.clone(),
            provenance: provenance.clone(),
        }
    }
}

// === impl Publisher ===

impl Publisher {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Begins anew, as the one who writes: what it wrote before is all that it knows.
    pub fn begin(&mut self) {
        (self.wish, self.live, self.since, self.agreed) = (None, None, None, 0);
    }

    /// What AWS said; the oldest of the reads that this is made of began at `began`. True if that is newer than before.
    pub fn wished(&mut self, wish: Wish, began: Duration) -> bool {
        let before = self.wish.as_ref().map(|(before, at)| (before.provenance == wish.provenance, *at));
        let newer = before.is_none_or(|(_, at)| began > at);
        self.agreed = match before {
            _ if began <= self.seen => 0,
            Some((true, at)) if at > self.seen => self.agreed + usize::from(newer),
            _ => 1,
        };
        self.wish = Some((wish, began));
        newer
    }

    /// What the API server has; none: there is no such Secret.
    pub fn observed(&mut self, live: Option<Arc<Live>>, now: Duration) {
        let origin = |live: &Option<Arc<Live>>| live.as_ref().and_then(|live| live.origin.clone());
        if self.since.is_none() || origin(&self.live) != origin(&live) {
            self.seen = now;
            self.agreed = 0;
        }
        self.since.get_or_insert(now);
        self.live = live;
    }

    /// What the API server made of a write.
    pub fn written(&mut self, manifest: Manifest, live: Live, cause: Cause, now: Duration) {
        if cause == Cause::Repair {
            if self.is_contested() {
                self.backoff = self.backoff.saturating_add(1);
            }
            self.repairs.push_back(now);
            while self.repairs.len() > REPAIRS {
                self.repairs.pop_front();
            }
        }
        self.content = manifest.annotations.get(CONTENT).cloned();
        self.held = Some(manifest);
        self.live = Some(Arc::new(live));
    }

    /// True if all these fields were keytide's before somebody took them: taking them back is a repair. That is known of
    /// what this process wrote, and of a Secret whose content annotation was made of the same names.
    #[must_use]
    pub fn had(&self, fields: &[Field]) -> bool {
        let held = self.held.as_ref().map(Manifest::fields).unwrap_or_default();
        let names = self.wish.as_ref().map(|(wish, _)| &wish.values);
        let marked = names.zip(self.live.as_ref()).is_some_and(|(names, live)| {
            let mark = live.annotations.get(VERSIONS).map(|versions| mark(versions, names.keys()));
            mark.is_some() && mark.as_ref() == live.annotations.get(CONTENT)
        });
        let written = |field: &Field| match field {
            Field::Data(name) => marked && names.is_some_and(|names| names.contains_key(name)),
            Field::Label(_) | Field::Annotation(_) | Field::Other(_) => false,
        };
        fields.iter().all(|field| held.contains(field) || written(field))
    }

    /// The identity of the object; empty if there is none.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.live.as_ref().map_or("", |live| &live.uid)
    }

    /// Decides.
    pub fn step(&mut self, now: Duration) -> Step {
        let (Some((wish, began)), live) = (&self.wish, &self.live) else { return Step::Idle };
        if wish.waiting || self.since.is_none_or(|since| *began <= since) {
            return Step::Idle;
        }
        if let Err(refusal) = permitted(&self.settings, live.as_deref()) {
            return Step::Refuse(refusal);
        }
        let manifest = match self.manifest(wish, live.as_deref()) {
            Ok(manifest) => manifest,
            Err(refusal) => return Step::Refuse(refusal),
        };
        let content = manifest.annotations.get(CONTENT).cloned().unwrap_or_default();
        let holds = Holds { keys: manifest.data.len(), content };
        let same_wish = self.held.as_ref().is_some_and(|held| held.says(&manifest));
        let (cause, resource_version) = match live {
            None => (if self.held.is_some() { Cause::Repair } else { Cause::Made }, None),
            Some(live) => {
                if manifest.is_in(live) {
                    self.content = manifest.annotations.get(CONTENT).cloned();
                    self.held = Some(manifest);
                    self.settle(now);
                    return Step::Holds(holds);
                }
                if live.immutable && !manifest.has_data_of(live) {
                    return Step::Refuse(Refusal::Immutable);
                }
                if self.is_anothers(live, &wish.provenance) && !self.is_decided(live, wish, *began) {
                    return Step::ReadAgain;
                }
                (if same_wish { Cause::Repair } else { Cause::Change }, Some(live.resource_version.clone()))
            }
        };
        if cause == Cause::Repair
            && let Some(at) = self.next_repair(now)
        {
            return Step::Contested(at);
        }
        Step::Write(Box::new(Write { manifest, resource_version, cause, force: self.settings.force }))
    }

    /// What the Secret shall hold, as a function of the source and, for what could not be read, of what it holds.
    fn manifest(&self, wish: &Wish, live: Option<&Live>) -> Result<Manifest, Refusal> {
        let Settings { kind, labels, annotations, create: _, adopt: _, force: _ } = &self.settings;
        let mut data: BTreeMap<String, SecretValue> =
            wish.values.iter().map(|(name, value)| (name.clone(), value.share())).collect();
        for name in wish.absent.iter().chain(&wish.unread) {
            if let Some(value) = live.and_then(|live| live.own_value(name)) {
                data.insert(name.clone(), value.share());
            } else if wish.unread.contains(name) {
                return Err(Refusal::Unread);
            }
        }
        let mut manifest =
            Manifest { kind: kind.clone(), data, labels: labels.clone(), annotations: annotations.clone() };
        let mut provenance = wish.provenance.clone();
        // What was not read is still from where the Secret says that it is from.
        if let Some(origin) = live.and_then(|live| live.origin.as_ref()).filter(|_| !wish.unread.is_empty()) {
            for (secret, version) in &origin.versions {
                provenance.versions.entry(secret.clone()).or_insert_with(|| version.clone());
            }
            provenance.newest_ms = provenance.newest_ms.max(origin.newest_ms);
        }
        // A map of texts is always JSON.
        let versions = serde_json::to_string(&provenance.versions).unwrap_or_default();
        // It changes with the keys only: not with a version that brings no other value, nor when something is put back.
        let theirs = live.is_some_and(|live| self.is_rewritten(live));
        let put_back = !theirs && self.held.as_ref().is_some_and(|held| held.data == manifest.data);
        let other = live.map_or(self.held.is_some(), |live| !manifest.has_data_of(live));
        let content = match self.known_content(live) {
            Some(before) if put_back || !other => before.to_owned(),
            _ => mark(&versions, manifest.data.keys()),
        };
        manifest.annotations.insert(CONTENT.to_owned(), content);
        manifest.annotations.insert(VERSIONS.to_owned(), versions);
        if let Some(time) = provenance.newest_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
            manifest.annotations.insert(TIME.to_owned(), time.to_string());
        }
        Ok(manifest)
    }

    /// True if another keytide wrote it since.
    fn is_rewritten(&self, live: &Live) -> bool {
        let written = self.held.as_ref().and_then(|held| held.annotations.get(VERSIONS));
        live.origin.is_some() && (written.is_none() || written != live.annotations.get(VERSIONS))
    }

    /// True if the Secret was last written by another keytide, from other versions than these.
    fn is_anothers(&self, live: &Live, provenance: &Provenance) -> bool {
        self.is_rewritten(live) && live.origin.as_ref().is_some_and(|origin| origin.versions != provenance.versions)
    }

    /// The content annotation before this decision: what whoever wrote last made it, not what somebody else did to it.
    fn known_content<'a>(&'a self, live: Option<&'a Live>) -> Option<&'a str> {
        let theirs = live.filter(|live| self.is_rewritten(live)).and_then(|live| live.annotations.get(CONTENT));
        theirs.or(self.content.as_ref()).map(String::as_str)
    }

    /// True if AWS was read since: at once where its versions are certainly newer, else when two reads agree.
    fn is_decided(&self, live: &Live, wish: &Wish, began: Duration) -> bool {
        let Some(origin) = &live.origin else { return true };
        let ours = &wish.provenance;
        let other =
            |(secret, version): &(&String, &String)| ours.versions.get(*secret).is_some_and(|ours| ours != *version);
        // Of one secret that differs the newest time says which is newer; of several it says nothing.
        let certain = match origin.versions.iter().filter(other).count() {
            0 => true,
            1 => matches!((ours.newest_ms, origin.newest_ms), (Some(ours), Some(theirs)) if ours > theirs),
            _ => false,
        };
        began > self.seen && (certain || self.agreed >= 2)
    }

    /// True if there were so many repairs within a minute that the next one waits.
    fn is_contested(&self) -> bool {
        let full = self.repairs.len() >= REPAIRS;
        let (first, last) = (self.repairs.front().copied(), self.repairs.back().copied());
        let close = first.zip(last).is_some_and(|(first, last)| last.saturating_sub(first) < WINDOW);
        self.backoff > 0 || (full && close)
    }

    /// When the next repair may be; none: now.
    fn next_repair(&self, now: Duration) -> Option<Duration> {
        if !self.is_contested() {
            return None;
        }
        let (first, last) = (self.repairs.front()?, self.repairs.back()?);
        let distance = WINDOW.saturating_mul(2_u32.saturating_pow(self.backoff)).min(LONGEST);
        let next = if self.backoff == 0 { *first + WINDOW } else { *last + distance };
        (now < next).then_some(next)
    }

    /// It was left alone for long enough: whoever fought for it has given up.
    fn settle(&mut self, now: Duration) {
        let distance = WINDOW.saturating_mul(2_u32.saturating_pow(self.backoff)).min(LONGEST);
        if self.repairs.back().is_some_and(|last| now.saturating_sub(*last) > distance * 2) {
            self.repairs.clear();
            self.backoff = 0;
        }
    }
}

/// What stands in the way of any write.
///
/// # Errors
/// If something does.
pub fn permitted(settings: &Settings, live: Option<&Live>) -> Result<(), Refusal> {
    let Some(live) = live else { return if settings.create { Ok(()) } else { Err(Refusal::Missing) } };
    if live.deleting {
        return Err(Refusal::Deleting);
    }
    if !live.is_ours() && !settings.adopt {
        return Err(Refusal::Foreign);
    }
    if live.kind != settings.kind.as_str() {
        return Err(Refusal::Type { is: live.kind.clone(), shall: settings.kind.to_string() });
    }
    Ok(())
}

/// What the annotations of a Secret say of where its values are from; none where they say nothing that can be read.
#[must_use]
pub fn provenance_of(annotations: &BTreeMap<String, String>) -> Option<Provenance> {
    let versions = serde_json::from_str(annotations.get(VERSIONS)?).ok()?;
    let time = annotations.get(TIME).and_then(|time| time.parse::<jiff::Timestamp>().ok());
    Some(Provenance { versions, newest_ms: time.map(jiff::Timestamp::as_millisecond) })
}

/// A short text that is another one for other versions or names; of ids and names, never of values.
fn mark<'a>(versions: &str, names: impl Iterator<Item = &'a String>) -> String {
    let mut digest = Sha256::new_with_prefix(versions);
    for name in names {
        digest.update([0]);
        digest.update(name);
    }
    let hex = |byte: &u8| [byte >> 4, byte & 15];
    digest.finalize().iter().take(8).flat_map(hex).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::kubernetes::SecretType;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Duration {
        SECOND * seconds
    }

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, SecretValue> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), SecretValue::new((*value).to_owned()))).collect()
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn provenance(version: &str, newest_ms: i64) -> Provenance {
        let versions = BTreeMap::from([("app".to_owned(), version.to_owned())]);
        Provenance { versions, newest_ms: Some(newest_ms) }
    }

    fn wish(pairs: &[(&str, &str)], version: &str, newest_ms: i64) -> Wish {
        Wish { values: values(pairs), provenance: provenance(version, newest_ms), ..Wish::default() }
    }

    fn settings() -> Settings {
        Settings { create: true, ..Settings::default() }
    }

    /// What the API server makes of an apply by keytide.
    fn applied(manifest: &Manifest, version: u32) -> Live {
        Live {
            resource_version: version.to_string(),
            kind: manifest.kind.to_string(),
            data: manifest.data.iter().map(|(name, value)| (name.clone(), Some(value.share()))).collect(),
            labels: manifest.labels.clone(),
            annotations: manifest.annotations.clone(),
            owned: manifest.fields(),
            origin: provenance_of(&manifest.annotations),
            ..Live::default()
        }
    }

    fn written(step: Step) -> Write {
        match step {
            Step::Write(write) => *write,
            other => panic!("no write but {other:?}"),
        }
    }

    /// A writer that has written this at second 0.
    fn publisher(wished: Wish) -> (Publisher, Live) {
        let mut publisher = Publisher::new(settings());
        publisher.observed(None, at(0));
        publisher.wished(wished, at(1));
        let write = written(publisher.step(at(1)));
        assert_eq!((write.cause, write.resource_version.as_deref()), (Cause::Made, None));
        let live = applied(&write.manifest, 1);
        let again = applied(&write.manifest, 1);
        publisher.written(write.manifest, live, write.cause, at(1));
        assert!(matches!(publisher.step(at(1)), Step::Holds(Holds { .. })));
        (publisher, again)
    }

    #[test]
    fn what_nobody_changed_is_not_written() {
        let (mut publisher, _) = publisher(wish(&[("A", "1")], "v1", 1));
        for second in 2..100 {
            publisher.wished(wish(&[("A", "1")], "v1", 1), at(second));
            assert!(matches!(publisher.step(at(second)), Step::Holds(_)));
        }
    }

    #[test]
    fn a_new_value_is_a_change_of_the_state_that_was_seen() {
        let (mut publisher, _) = publisher(wish(&[("A", "1"), ("B", "b")], "v1", 1));
        publisher.wished(wish(&[("A", "2")], "v2", 2), at(2));
        let write = written(publisher.step(at(2)));
        assert_eq!((write.cause, write.resource_version.as_deref(), write.force), (Cause::Change, Some("1"), false));
        assert_eq!(write.manifest.data, values(&[("A", "2")]));
        assert_eq!(write.manifest.annotations[VERSIONS], r#"{"app":"v2"}"#);
        assert_eq!(write.manifest.annotations[TIME], "1970-01-01T00:00:00.002Z");
    }

    #[test]
    fn the_content_annotation_changes_with_the_keys_only() {
        let (mut publisher, live) = publisher(wish(&[("A", "1")], "v1", 1));
        let first = live.annotations[CONTENT].clone();
        publisher.wished(wish(&[("A", "1")], "v2", 2), at(2));
        let write = written(publisher.step(at(2)));
        assert_eq!(write.manifest.annotations[CONTENT], first, "another version of the same value");
        let live = applied(&write.manifest, 2);
        publisher.written(write.manifest, live, write.cause, at(2));
        publisher.observed(None, at(3));
        let write = written(publisher.step(at(3)));
        assert_eq!(write.manifest.annotations[CONTENT], first, "put back");
        let live = applied(&write.manifest, 3);
        publisher.written(write.manifest, live, write.cause, at(3));
        publisher.wished(wish(&[("A", "2")], "v3", 3), at(4));
        assert_ne!(written(publisher.step(at(4))).manifest.annotations[CONTENT], first);
    }

    #[test]
    fn repairs_come_at_a_growing_distance_until_there_is_peace() {
        let (mut publisher, _) = publisher(wish(&[("A", "1")], "v1", 1));
        let mut repairs = Vec::new();
        for second in 2..3600 {
            publisher.observed(None, at(second));
            match publisher.step(at(second)) {
                Step::Write(write) => {
                    assert_eq!(write.cause, Cause::Repair);
                    let live = applied(&write.manifest, second);
                    publisher.written(write.manifest, live, write.cause, at(second));
                    repairs.push(second);
                }
                Step::Contested(next) => assert!(next > at(second)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(repairs[..3], [2, 3, 4]);
        assert!(repairs.len() < 15, "{repairs:?}");
        assert!(repairs.windows(2).skip(2).all(|pair| pair[1] - pair[0] >= 57), "{repairs:?}");
        // An hour without a fight.
        let Step::Contested(_) = publisher.step(at(3600)) else { panic!("peace before its time") };
        publisher.observed(None, at(7200));
        let write = written(publisher.step(at(7200)));
        let live = applied(&write.manifest, 7200);
        publisher.written(write.manifest, live, write.cause, at(7200));
        assert!(matches!(publisher.step(at(9000)), Step::Holds(_)));
        for second in 9001..9004 {
            publisher.observed(None, at(second));
            let write = written(publisher.step(at(second)));
            let live = applied(&write.manifest, second);
            publisher.written(write.manifest, live, write.cause, at(second));
        }
    }

    #[test]
    fn a_repair_that_failed_was_none() {
        let (mut publisher, _) = publisher(wish(&[("A", "1")], "v1", 1));
        for second in 2..5 {
            publisher.observed(None, at(second));
            let write = written(publisher.step(at(second)));
            let live = applied(&write.manifest, second);
            publisher.written(write.manifest, live, write.cause, at(second));
        }
        publisher.observed(None, at(5));
        assert!(matches!(publisher.step(at(61)), Step::Contested(next) if next == at(62)));
        // The first attempt is refused, perhaps, and the next one takes the fields back.
        assert_eq!(written(publisher.step(at(62))).cause, Cause::Repair);
        assert_eq!(written(publisher.step(at(62))).cause, Cause::Repair);
    }

    #[test]
    fn a_read_that_is_told_again_does_not_agree_with_itself() {
        let mut other = Publisher::new(settings());
        other.observed(None, at(0));
        other.wished(wish(&[("A", "2")], "v2", 2), at(1));
        let newer = applied(&written(other.step(at(1))).manifest, 5);
        let mut publisher = Publisher::new(settings());
        publisher.observed(Some(Arc::new(newer)), at(20));
        publisher.wished(wish(&[("A", "1")], "v1", 1), at(19));
        assert!(matches!(publisher.step(at(20)), Step::Idle));
        for _ in 0..3 {
            publisher.wished(wish(&[("A", "1")], "v1", 1), at(21));
            assert!(matches!(publisher.step(at(21)), Step::ReadAgain));
        }
        publisher.wished(wish(&[("A", "1")], "v1", 1), at(22));
        assert_eq!(written(publisher.step(at(22))).cause, Cause::Change);
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let foreign = Live { kind: "Opaque".to_owned(), ..Live::default() };
        let typed =
            Live { kind: "kubernetes.io/tls".to_owned(), origin: Some(Provenance::default()), ..Live::default() };
        let leaving = Live { deleting: true, ..Live::default() };
        let ours = || Live { kind: "Opaque".to_owned(), origin: Some(provenance("v1", 1)), ..Live::default() };
        let frozen = Live { immutable: true, ..ours() };
        let without = Settings { create: false, ..settings() };
        let adopting = Settings { adopt: true, ..settings() };
        let of = |settings: Settings, live: Option<Live>| {
            let mut publisher = Publisher::new(settings);
            publisher.observed(live.map(Arc::new), at(0));
            publisher.wished(wish(&[("A", "1")], "v1", 1), at(1));
            match publisher.step(at(1)) {
                Step::Refuse(refusal) => Some(refusal),
                Step::Write(_) => None,
                other => panic!("{other:?}"),
            }
        };
        let shall = SecretType::default().to_string();
        assert_eq!(of(settings(), Some(foreign)), Some(Refusal::Foreign));
        assert_eq!(of(settings(), Some(typed)), Some(Refusal::Type { is: "kubernetes.io/tls".to_owned(), shall }));
        assert_eq!(of(settings(), Some(leaving)), Some(Refusal::Deleting));
        assert_eq!(of(settings(), Some(frozen)), Some(Refusal::Immutable));
        assert_eq!(of(without.clone(), None), Some(Refusal::Missing));
        assert_eq!(of(without, Some(ours())), None);
        assert_eq!(of(adopting, Some(Live { kind: "Opaque".to_owned(), ..Live::default() })), None);
    }

    #[test]
    fn another_keytides_versions_are_no_drift() {
        // Newer ones than ours: AWS is asked, and says the same.
        let (mut publisher, _) = publisher(wish(&[("A", "1")], "v1", 1));
        let mut other = Publisher::new(settings());
        other.observed(None, at(0));
        other.wished(wish(&[("A", "2")], "v2", 2), at(1));
        let newer = || {
            let mut other = Publisher::new(settings());
            other.observed(None, at(0));
            other.wished(wish(&[("A", "2")], "v2", 2), at(1));
            Arc::new(applied(&written(other.step(at(1))).manifest, 5))
        };
        publisher.observed(Some(newer()), at(10));
        assert!(matches!(publisher.step(at(10)), Step::ReadAgain));
        publisher.wished(wish(&[("A", "2")], "v2", 2), at(11));
        assert!(matches!(publisher.step(at(11)), Step::Holds(_)));
        // A read that is older than what the Secret has counts when a second one agrees.
        publisher.observed(Some(newer()), at(20));
        publisher.wished(wish(&[("A", "1")], "v1", 1), at(21));
        let mut fresh = Publisher::new(settings());
        fresh.observed(Some(newer()), at(20));
        fresh.wished(wish(&[("A", "1")], "v1", 1), at(21));
        assert!(matches!(fresh.step(at(21)), Step::ReadAgain));
        fresh.wished(wish(&[("A", "1")], "v1", 1), at(22));
        assert_eq!(written(fresh.step(at(22))).manifest.annotations[VERSIONS], r#"{"app":"v1"}"#);
        // A newer read counts at once, one from before the look not at all.
        let mut newest = Publisher::new(settings());
        newest.wished(wish(&[("A", "3")], "v3", 3), at(19));
        newest.observed(Some(newer()), at(20));
        assert!(matches!(newest.step(at(20)), Step::Idle));
        newest.wished(wish(&[("A", "3")], "v3", 3), at(21));
        assert_eq!(written(newest.step(at(21))).cause, Cause::Change);
    }

    #[test]
    fn what_aws_no_longer_has_stays_and_what_was_not_read_holds_up_a_new_secret() {
        let (_, live) = publisher(wish(&[("A", "1"), ("B", "b")], "v1", 1));
        let absent = Wish { absent: names(&["B", "NEVER"]), ..wish(&[("A", "2")], "v2", 2) };
        let unread = Wish { unread: names(&["B"]), ..wish(&[("A", "2")], "v2", 2) };
        for wished in [absent, unread.share()] {
            let mut next = Publisher::new(settings());
            next.observed(Some(Arc::new(Live { resource_version: "9".to_owned(), ..applied_again(&live) })), at(0));
            next.wished(wished, at(1));
            assert_eq!(written(next.step(at(1))).manifest.data, values(&[("A", "2"), ("B", "b")]));
        }
        let mut next = Publisher::new(settings());
        next.observed(None, at(0));
        next.wished(unread, at(1));
        assert!(matches!(next.step(at(1)), Step::Refuse(Refusal::Unread)));
    }

    fn applied_again(live: &Live) -> Live {
        Live {
            kind: live.kind.clone(),
            data: live
                .data
                .iter()
                .map(|(name, value)| (name.clone(), value.as_ref().map(SecretValue::share)))
                .collect(),
            annotations: live.annotations.clone(),
            owned: live.owned.clone(),
            origin: live.origin.clone(),
            ..Live::default()
        }
    }

    proptest! {
        /// Writers that take turns, reads that are stale by one version now and then, and somebody who deletes the Secret.
        #[test]
        fn a_writer_never_puts_an_older_version_over_a_newer_one(
            deeds in proptest::collection::vec((0_u8..6, any::<bool>()), 1..60),
        ) {
            let mut aws = 1_u32;
            let mut object: Option<Manifest> = None;
            let mut writers = [Publisher::new(settings()), Publisher::new(settings())];
            let mut seen = [None, None];
            let mut version = 0_u32;
            for (now, (deed, stale)) in (1_u32..).zip(deeds) {
                let who = usize::from(deed % 2 == 0);
                match deed {
                    0 | 1 => aws += 1,
                    2 => object = None,
                    _ => {}
                }
                let state = (version, object.is_some());
                if seen[who] != Some(state) {
                    let live = object.as_ref().map(|manifest| Arc::new(applied(manifest, version)));
                    writers[who].observed(live, at(now * 10));
                    seen[who] = Some(state);
                }
                let read = aws - u32::from(stale && aws > 1);
                let text = read.to_string();
                writers[who].wished(wish(&[("A", &text)], &text, read.into()), at(now * 10 + 1));
                if let Step::Write(write) = writers[who].step(at(now * 10 + 1)) {
                    let before = object.as_ref().and_then(|object| provenance_of(&object.annotations)?.newest_ms);
                    let after = provenance_of(&write.manifest.annotations).and_then(|origin| origin.newest_ms);
                    let own = writers[who].held.as_ref().and_then(|held| held.annotations.get(VERSIONS).cloned());
                    let theirs = object.as_ref().and_then(|object| object.annotations.get(VERSIONS).cloned());
                    // What this writer itself wrote is the ledger's matter, which sees no step back.
                    if own != theirs && writers[who].agreed < 2 {
                        prop_assert!(before <= after, "{before:?} by {after:?}");
                    }
                    version += 1;
                    let live = applied(&write.manifest, version);
                    let copy = written_copy(&write.manifest);
                    writers[who].written(write.manifest, live, write.cause, at(now * 10 + 1));
                    object = Some(copy);
                    seen[who] = Some((version, true));
                }
            }
        }
    }

    fn written_copy(manifest: &Manifest) -> Manifest {
        Manifest {
            kind: manifest.kind.clone(),
            data: manifest.data.iter().map(|(name, value)| (name.clone(), value.share())).collect(),
            labels: manifest.labels.clone(),
            annotations: manifest.annotations.clone(),
        }
    }
}

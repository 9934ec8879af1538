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
    /// How many reads in a row, begun after the present versions were seen, said the same.
    agreed: usize,
    live: Option<Option<Arc<Live>>>,
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

    /// What AWS said; the read began at `began`.
    pub fn wished(&mut self, wish: Wish, began: Duration) {
        let same =
            self.wish.as_ref().is_some_and(|(before, at)| before.provenance == wish.provenance && *at > self.seen);
        self.agreed = if began > self.seen { if same { self.agreed + 1 } else { 1 } } else { 0 };
        self.wish = Some((wish, began));
    }

    /// What the API server has; none: there is no such Secret.
    pub fn observed(&mut self, live: Option<Arc<Live>>, now: Duration) {
        let origin = |live: &Option<Arc<Live>>| live.as_ref().and_then(|live| live.origin.clone());
        if self.live.as_ref().is_none_or(|before| origin(before) != origin(&live)) {
            self.seen = now;
            self.agreed = 0;
        }
        self.live = Some(live);
    }

    /// What the API server made of a write.
    pub fn written(&mut self, manifest: Manifest, live: Live, cause: Cause, now: Duration) {
        if cause == Cause::Repair {
            self.repairs.push_back(now);
        }
        self.content = manifest.annotations.get(CONTENT).cloned();
        self.held = Some(manifest);
        self.live = Some(Some(Arc::new(live)));
    }

    /// True if all these fields were keytide's before somebody took them: taking them back is a repair.
    #[must_use]
    pub fn had(&self, fields: &[Field]) -> bool {
        let held = self.held.as_ref().map(Manifest::fields).unwrap_or_default();
        fields.iter().all(|field| held.contains(field))
    }

    /// Decides.
    pub fn step(&mut self, now: Duration) -> Step {
        let (Some((wish, began)), Some(live)) = (&self.wish, &self.live) else { return Step::Idle };
        if wish.waiting {
            return Step::Idle;
        }
        if let Err(refusal) = permitted(&self.settings, live.as_deref()) {
            return Step::Refuse(refusal);
        }
        let manifest = match manifest(&self.settings, wish, live.as_deref(), self.known_content(live.as_deref())) {
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

    /// True if AWS was read since: a newer version at once, an older one when two reads agree.
    fn is_decided(&self, live: &Live, wish: &Wish, began: Duration) -> bool {
        let theirs = live.origin.as_ref().and_then(|origin| origin.newest_ms);
        let older = matches!((wish.provenance.newest_ms, theirs), (Some(ours), Some(theirs)) if ours < theirs);
        began > self.seen && (!older || self.agreed >= 2)
    }

    /// When the next repair may be; none: now.
    fn next_repair(&mut self, now: Duration) -> Option<Duration> {
        while self.repairs.len() > REPAIRS {
            self.repairs.pop_front();
        }
        let first = self.repairs.iter().rev().nth(REPAIRS - 1).copied();
        let last = self.repairs.back().copied();
        let (Some(first), Some(last)) = (first, last) else { return None };
        let busy = last.saturating_sub(first) < WINDOW || self.backoff > 0;
        if !busy {
            return None;
        }
        let distance = WINDOW.saturating_mul(2_u32.saturating_pow(self.backoff)).min(LONGEST);
        let next = if self.backoff == 0 { first + WINDOW } else { last + distance };
        if now >= next {
            self.backoff = self.backoff.saturating_add(1);
            return None;
        }
        Some(next)
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

/// What the Secret shall hold, as a function of the source and, for what could not be read, of what it holds.
fn manifest(settings: &Settings, wish: &Wish, live: Option<&Live>, content: Option<&str>) -> Result<Manifest, Refusal> {
    let Settings { kind, labels, annotations, create: _, adopt: _, force: _ } = settings;
    let mut data: BTreeMap<String, SecretValue> =
        wish.values.iter().map(|(name, value)| (name.clone(), value.share())).collect();
    for name in wish.absent.iter().chain(&wish.unread) {
        if let Some(value) = live.and_then(|live| live.own_value(name)) {
            data.insert(name.clone(), value.share());
        } else if wish.unread.contains(name) {
            return Err(Refusal::Unread);
        }
    }
    let mut manifest = Manifest { kind: kind.clone(), data, labels: labels.clone(), annotations: annotations.clone() };
    let mut provenance = wish.provenance.clone();
    let origin = live.and_then(|live| live.origin.as_ref());
    // What was not read is still from where the Secret says that it is from.
    if let Some(origin) = origin.filter(|_| !wish.unread.is_empty()) {
        for (secret, version) in &origin.versions {
            provenance.versions.entry(secret.clone()).or_insert_with(|| version.clone());
        }
        provenance.newest_ms = provenance.newest_ms.max(origin.newest_ms);
    }
    let versions = text_of(&provenance.versions);
    // It changes with the keys only: not with a version that brings no other value, nor when something is put back.
    let changed = live.is_some_and(|live| !manifest.has_data_of(live))
        && origin.is_some_and(|origin| origin.versions != provenance.versions);
    let content = match content {
        Some(before) if !changed => before.to_owned(),
        _ => mark(&versions),
    };
    manifest.annotations.insert(CONTENT.to_owned(), content);
    manifest.annotations.insert(VERSIONS.to_owned(), versions);
    if let Some(time) = provenance.newest_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        manifest.annotations.insert(TIME.to_owned(), time.to_string());
    }
    Ok(manifest)
}

/// What the annotations of a Secret say of where its values are from; none where they say nothing that can be read.
#[must_use]
pub fn provenance_of(annotations: &BTreeMap<String, String>) -> Option<Provenance> {
    let versions = serde_json::from_str(annotations.get(VERSIONS)?).ok()?;
    let time = annotations.get(TIME).and_then(|time| time.parse::<jiff::Timestamp>().ok());
    Some(Provenance { versions, newest_ms: time.map(jiff::Timestamp::as_millisecond) })
}

fn text_of(versions: &BTreeMap<String, String>) -> String {
    // A map of texts is always JSON.
    serde_json::to_string(versions).unwrap_or_default()
}

/// A short text that is another one for other versions; of ids, never of values.
fn mark(versions: &str) -> String {
    let digest = Sha256::digest(versions);
    digest
        .iter()
        .take(8)
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

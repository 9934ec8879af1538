//! From readings of secrets to keys, and from keys to what each output shall hold.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    change::{self, Before},
    publish::Wish,
};
use crate::domain::{
    kubernetes::SecretType,
    mapping::{Filter, Key, Origin, Request, Segment, Selection, Template, Wholesale},
    names::{EnvName, KeyName, Member, VersionId},
    snapshot::{Problem, Reading, Reason, Snapshot, Version},
    value::{Members, Piece, SecretValue},
};

/// What the configuration asks for.
#[derive(Debug)]
pub struct Mapping {
    keys: Vec<Key>,
    wholesale: Vec<Wholesale>,
    by_name: BTreeMap<KeyName, usize>,
    by_request: BTreeMap<Request, Vec<usize>>,
}

/// All that is known of the keys: the last good values, where they came from, and what is wrong with which.
#[derive(Debug, Default)]
pub struct Ledger {
    good: BTreeMap<KeyName, Good>,
    applied: BTreeMap<Request, Version>,
    held: BTreeMap<Request, VersionId>,
    problems: BTreeMap<KeyName, Problem>,
    troubles: BTreeMap<Request, Problem>,
    looked: BTreeSet<Request>,
    read: BTreeSet<Request>,
}

/// The last good value of one key.
#[derive(Debug)]
pub struct Good {
    /// The value.
    pub value: SecretValue,
    /// The read that it came from.
    pub from: Request,
    /// True for a key that the configuration does not name.
    pub wholesale: bool,
    /// True if this process read it; false if it is from before a restart.
    pub read: bool,
}

/// What a refresh did to the ledger.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that are new or have another value.
    pub changed: BTreeSet<KeyName>,
    /// Keys that are gone.
    pub removed: BTreeSet<KeyName>,
    /// True if the version of some secret is another one: worth to be kept, even if no key changed.
    pub versions: bool,
    /// Readings that were held.
    pub held: Vec<(Request, Reason)>,
    /// What somebody should know of a secret's shape: names only.
    pub remarks: Vec<String>,
}

/// The state of one key, for status and metrics.
#[derive(Debug)]
pub struct KeyState<'a> {
    /// Its name.
    pub name: &'a KeyName,
    /// Its version, where it has a value that was read.
    pub version: Option<&'a Version>,
    /// The read that it comes from; none for a template.
    pub from: Option<&'a Request>,
    /// True if there is a value.
    pub found: bool,
    /// Why it is not fresh.
    pub problem: Option<Problem>,
}

/// Why there is no value that this process read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Missing {
    /// AWS said that there is none.
    Absent,
    /// Nothing is known of it.
    Unread,
}

/// One key as an output shall hold it.
#[derive(Debug)]
pub struct Desired {
    /// The key.
    pub key: KeyName,
    /// Its name in the output.
    pub name: String,
    /// Its value.
    pub value: SecretValue,
}

// === impl Mapping ===

impl Mapping {
    /// The keys that the configuration names, and the secrets of which every member is a key.
    #[must_use]
    pub fn new(keys: Vec<Key>, wholesale: Vec<Wholesale>) -> Self {
        let by_name = keys.iter().enumerate().map(|(index, key)| (key.name.clone(), index)).collect();
        let mut by_request: BTreeMap<Request, Vec<usize>> = BTreeMap::new();
        for (index, key) in keys.iter().enumerate() {
            if let Some(request) = key.origin.request() {
                by_request.entry(request.clone()).or_default().push(index);
            }
        }
        Self { keys, wholesale, by_name, by_request }
    }

    /// Every read that it needs, each once.
    #[must_use]
    pub fn requests(&self) -> BTreeSet<Request> {
        self.by_request.keys().chain(self.wholesale.iter().map(|wholesale| &wholesale.request)).cloned().collect()
    }

    /// The secrets of which every member is a key.
    pub fn wholesale(&self) -> impl Iterator<Item = &Wholesale> {
        self.wholesale.iter()
    }

    fn named(&self, name: &KeyName) -> Option<&Key> {
        self.by_name.get(name).and_then(|&index| self.keys.get(index))
    }

    /// The named keys that one read gives.
    fn keys_of(&self, request: &Request) -> impl Iterator<Item = &Key> {
        self.by_request.get(request).into_iter().flatten().filter_map(|&index| self.keys.get(index))
    }

    fn wholesale_of(&self, request: &Request) -> Option<&Wholesale> {
        self.wholesale.iter().find(|wholesale| wholesale.request == *request)
    }

    /// The members of `request`'s secret that are exported without being listed, by the name of their key.
    fn wholesale_names<'a>(
        &self,
        request: &Request,
        members: &'a Members,
        remarks: &mut Vec<String>,
    ) -> Vec<(KeyName, &'a SecretValue)> {
        let Some(wholesale) = self.wholesale_of(request) else { return Vec::new() };
        let mut names = Vec::with_capacity(members.members.len());
        for (member, value) in &members.members {
            let Some(value) = value else { continue };
            let renamed = wholesale.rename.get(member);
            let name = match renamed.map_or_else(|| KeyName::parse(member.as_str()), |name| Ok(name.clone())) {
                Ok(name) => name,
                Err(rule) => {
                    remarks.push(format!("a member of secret {} is not exported: {rule}", request.secret));
                    continue;
                }
            };
            if name.is_never_read() || EnvName::parse(name.as_str()).is_ok_and(|name| name.is_reserved()) {
                remarks.push(format!(
                    "member {name} of secret {} is not exported: the name changes how programs run; an entry of keytide.keys \
                     with allow_reserved: true exports it",
                    request.secret
                ));
            } else if self.named(&name).is_none() {
                names.push((name, value));
            }
        }
        names
    }
}

// === impl Ledger ===

impl Ledger {
    /// A ledger of what another process knew, cut down to what this configuration asks for. Everything in it is stale
    /// until it was read.
    #[must_use]
    pub fn recovered(mapping: &Mapping, good: BTreeMap<KeyName, Good>, applied: BTreeMap<Request, Version>) -> Self {
        let requests = mapping.requests();
        let keep = |name: &KeyName, good: &Good| match mapping.named(name) {
            Some(key) => key.origin.request() == Some(&good.from),
            None => good.wholesale && mapping.wholesale_of(&good.from).is_some(),
        };
        let mut good = good;
        good.retain(|name, good| keep(name, good));
        for (name, good) in &mut good {
            good.wholesale = mapping.named(name).is_none();
        }
        let recovered = Problem::new(Reason::Recovered, "kept from before the restart; not read since");
        let problems = good.keys().map(|name| (name.clone(), recovered.clone())).collect();
        let applied: BTreeMap<Request, Version> =
            applied.into_iter().filter(|(request, _)| requests.contains(request)).collect();
        // A primary secret whose members were recovered was looked at, by the process before this one.
        let looked = good.values().map(|good| good.from.clone()).collect();
        Self { good, applied, problems, looked, ..Self::default() }
    }

    /// Takes in what a refresh read. Requests that are not in the snapshot stay as they were.
    pub fn apply(&mut self, mapping: &Mapping, snapshot: Snapshot, accept_removals: bool) -> Changes {
        let mut changes = Changes::default();
        for (request, answer) in snapshot {
            self.troubles.remove(&request);
            match answer {
                Ok(reading) => self.apply_reading(mapping, &request, reading, accept_removals, &mut changes),
                Err(problem) => self.apply_problem(mapping, &request, problem),
            }
        }
        changes
    }

    fn apply_problem(&mut self, mapping: &Mapping, request: &Request, problem: Problem) {
        self.held.remove(request);
        if problem.reason.is_definite() {
            self.looked.insert(request.clone());
        }
        for name in self.names_of(mapping, request) {
            self.problems.insert(name, problem.clone());
        }
        self.troubles.insert(request.clone(), problem);
    }

    /// The named keys of a request, and those that it exports wholesale.
    fn names_of(&self, mapping: &Mapping, request: &Request) -> Vec<KeyName> {
        mapping.keys_of(request).map(|key| key.name.clone()).chain(self.exported_of(mapping, request)).collect()
    }

    /// The keys that a request gave without being listed.
    fn exported_of(&self, mapping: &Mapping, request: &Request) -> BTreeSet<KeyName> {
        if mapping.wholesale_of(request).is_none() {
            return BTreeSet::new();
        }
        self.good
            .iter()
            .filter(|(_, good)| good.wholesale && good.from == *request)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn apply_reading(
        &mut self,
        mapping: &Mapping,
        request: &Request,
        reading: Reading,
        accept_removals: bool,
        changes: &mut Changes,
    ) {
        let named: Vec<&Key> = mapping.keys_of(request).collect();
        let exports_all = mapping.wholesale_of(request).is_some();
        let needs_members = exports_all || named.iter().any(|key| matches!(key.origin, Origin::Member(..)));
        let not_an_object = |reason| {
            Problem::new(
                Reason::NotAnObject,
                format!("secret {} was expected to be a JSON object: {reason}", request.secret),
            )
        };
        let members = if needs_members { reading.value.members().map_err(not_an_object).map(Some) } else { Ok(None) };
        let members = match members {
            Ok(members) => members,
            // One secret can be wanted whole and by member; whoever wants it whole gets it.
            Err(problem) => {
                let whole: Vec<&Key> =
                    named.into_iter().filter(|key| matches!(key.origin, Origin::Secret(_))).collect();
                self.apply_problem(mapping, request, problem);
                for key in whole {
                    self.set(key.name.clone(), reading.value.share(), request, false, changes);
                }
                return;
            }
        };
        if let Some(members) = &members {
            changes.remarks.extend(members.duplicates.iter().map(|member| {
                format!("secret {} holds member {member} more than once: the last one counts", request.secret)
            }));
        }
        let wholesale = members
            .as_ref()
            .map(|members| mapping.wholesale_names(request, members, &mut changes.remarks))
            .unwrap_or_default();
        let whole: BTreeSet<KeyName> = wholesale.iter().map(|(name, _)| name.clone()).collect();
        let exported = self.exported_of(mapping, request);
        let before = Before { applied: self.applied.get(request), held: self.held.get(request), wholesale: &exported };
        if let Err(problem) = change::judge(before, &reading.version, &whole, accept_removals) {
            changes.held.push((request.clone(), problem.reason));
            self.apply_problem(mapping, request, problem);
            self.held.insert(request.clone(), reading.version.id);
            return;
        }
        self.held.remove(request);
        self.looked.insert(request.clone());
        self.read.insert(request.clone());
        for name in exported.difference(&whole) {
            self.good.remove(name);
            self.problems.remove(name);
            changes.removed.insert(name.clone());
        }
        let by_member: BTreeMap<&Member, &SecretValue> = members
            .iter()
            .flat_map(|members| &members.members)
            .filter_map(|(member, value)| Some((member, value.as_ref()?)))
            .collect();
        for key in named {
            match &key.origin {
                Origin::Secret(_) => self.set(key.name.clone(), reading.value.share(), request, false, changes),
                Origin::Member(_, member) => {
                    if let Some(value) = by_member.get(member) {
                        self.set(key.name.clone(), value.share(), request, false, changes);
                    } else {
                        let message = format!(
                            "secret {} has no member {member}, or it is null; add it, or take the key from the configuration",
                            request.secret
                        );
                        self.problems.insert(key.name.clone(), Problem::new(Reason::MissingMember, message));
                    }
                }
                Origin::Template(_) => {}
            }
        }
        for (name, value) in wholesale {
            self.set(name, value.share(), request, true, changes);
        }
        if self.applied.get(request) != Some(&reading.version) {
            changes.versions = true;
            self.applied.insert(request.clone(), reading.version);
        }
    }

    fn set(&mut self, name: KeyName, value: SecretValue, from: &Request, wholesale: bool, changes: &mut Changes) {
        self.problems.remove(&name);
        if let Some(good) = self.good.get_mut(&name).filter(|good| good.value == value) {
            good.read = true;
            return;
        }
        changes.changed.insert(name.clone());
        self.good.insert(name, Good { value, from: from.clone(), wholesale, read: true });
    }

    /// The last good values, to be kept over a restart.
    #[must_use]
    pub fn good(&self) -> &BTreeMap<KeyName, Good> {
        &self.good
    }

    /// The versions that were applied.
    #[must_use]
    pub fn applied(&self) -> &BTreeMap<Request, Version> {
        &self.applied
    }

    /// What is wrong with a read as a whole.
    #[must_use]
    pub fn troubles(&self) -> &BTreeMap<Request, Problem> {
        &self.troubles
    }

    /// The state of every key: those of the configuration in its order, then those that came wholesale.
    #[must_use]
    pub fn states<'a>(&'a self, mapping: &'a Mapping) -> Vec<KeyState<'a>> {
        let named = mapping.keys.iter().map(|key| match &key.origin {
            Origin::Template(template) => KeyState {
                name: &key.name,
                version: None,
                from: None,
                found: self.evaluate(template).is_some(),
                problem: self.template_problem(template),
            },
            origin @ (Origin::Secret(_) | Origin::Member(..)) => self.state(&key.name, origin.request()),
        });
        let wholesale =
            self.good.iter().filter(|(_, good)| good.wholesale).map(|(name, good)| self.state(name, Some(&good.from)));
        named.chain(wholesale).collect()
    }

    fn state<'a>(&'a self, name: &'a KeyName, from: Option<&'a Request>) -> KeyState<'a> {
        let found = self.good.contains_key(name);
        KeyState {
            name,
            version: from.filter(|_| found).and_then(|from| self.applied.get(from)),
            from,
            found,
            problem: self.problems.get(name).cloned(),
        }
    }

    fn template_problem(&self, template: &Template) -> Option<Problem> {
        template.keys().find_map(|key| match (self.good.contains_key(key), self.problems.get(key)) {
            (true, None) => None,
            (true, Some(problem)) => Some(problem.clone()),
            (false, _) => {
                Some(Problem::new(Reason::MissingInput, format!("the template needs key {key}, which is not there")))
            }
        })
    }

    /// The named keys that hold up the first refresh, each with why: those that were never found or, if `looked_for` is
    /// enough, those that were neither found nor looked for. Empty: complete.
    #[must_use]
    pub fn missing(&self, mapping: &Mapping, looked_for: bool) -> Vec<(String, Problem)> {
        let unread = || Problem::new(Reason::Unavailable, "not read yet");
        let keys = self.states(mapping).into_iter().filter_map(|state| {
            let excused = looked_for && state.problem.as_ref().is_some_and(|problem| problem.reason.is_definite());
            (!state.found && !excused).then(|| (format!("key {}", state.name), state.problem.unwrap_or_else(unread)))
        });
        let wholesale = mapping.wholesale.iter().map(|wholesale| &wholesale.request).filter_map(|request| {
            let found = self.applied.contains_key(request) || (looked_for && self.looked.contains(request));
            (!found).then(|| {
                let problem = self.troubles.get(request).cloned().unwrap_or_else(unread);
                (format!("all members of secret {}", request.secret), problem)
            })
        });
        keys.chain(wholesale).collect()
    }

    /// The keys of a selection, in the order of the configuration.
    fn selected(&self, mapping: &Mapping, selection: &Selection) -> Vec<KeyName> {
        let all = || {
            let named = mapping.keys.iter().filter(|key| key.export).map(|key| &key.name);
            let wholesale = self.good.iter().filter(|(_, good)| good.wholesale).map(|(name, _)| name);
            named.chain(wholesale).cloned().collect()
        };
        selection.keys.clone().unwrap_or_else(all)
    }

    /// What an output with this selection shall hold now, in the order of the configuration.
    #[must_use]
    pub fn desired(&self, mapping: &Mapping, selection: &Selection) -> Vec<Desired> {
        self.selected(mapping, selection)
            .into_iter()
            .filter_map(|key| {
                let value = match mapping.named(&key).map(|key| &key.origin) {
                    Some(Origin::Template(template)) => self.evaluate(template)?,
                    _ => self.good.get(&key)?.value.share(),
                };
                let name = selection.rename.get(&key).map_or_else(|| key.as_str().to_owned(), Clone::clone);
                Some(Desired { key, name, value })
            })
            .collect()
    }

    /// What a Kubernetes Secret of this type shall hold: only what this process read.
    #[must_use]
    pub fn wish(&self, mapping: &Mapping, selection: &Selection, kind: &SecretType) -> Wish {
        let mut wish = Wish::default();
        for wholesale in mapping.wholesale.iter().filter(|_| takes_members(mapping, selection)) {
            let definite = self.troubles.get(&wholesale.request).is_some_and(|trouble| trouble.reason.is_definite());
            wish.waiting |= !self.read.contains(&wholesale.request) && !definite;
            self.note_version(&wholesale.request, &mut wish);
        }
        for (key, value) in self.read_values(mapping, selection) {
            let name = selection.rename.get(&key).map_or_else(|| key.as_str().to_owned(), Clone::clone);
            if let Err(rule) = kind.check_key(&name) {
                wish.unrepresentable.push((key, rule.to_string()));
                continue;
            }
            match value {
                Ok(value) => {
                    for request in self.sources_of(mapping, &key) {
                        self.note_version(request, &mut wish);
                    }
                    wish.values.insert(name, value);
                }
                Err(Missing::Absent) => drop(wish.absent.insert(name)),
                Err(Missing::Unread) => drop(wish.unread.insert(name)),
            }
        }
        wish
    }

    /// The reads that a selection is made of.
    #[must_use]
    pub fn requests_of(&self, mapping: &Mapping, selection: &Selection) -> BTreeSet<Request> {
        let whole = mapping.wholesale.iter().filter(|_| takes_members(mapping, selection)).map(|all| &all.request);
        let keys = self.selected(mapping, selection);
        let named = keys.iter().flat_map(|key| match mapping.named(key).map(|key| &key.origin) {
            Some(Origin::Template(template)) => {
                let inputs = template.keys().filter_map(|key| mapping.named(key)?.origin.request());
                inputs.collect::<Vec<_>>()
            }
            Some(origin) => origin.request().into_iter().collect(),
            None => Vec::new(),
        });
        named.chain(whole).cloned().collect()
    }

    /// The keys of a selection that are not fresh, each with why.
    #[must_use]
    pub fn stale_of(&self, mapping: &Mapping, selection: &Selection) -> Vec<(KeyName, Problem)> {
        let names: BTreeSet<KeyName> = self.selected(mapping, selection).into_iter().collect();
        let states = self.states(mapping).into_iter().filter(|state| names.contains(state.name));
        states.filter_map(|state| Some((state.name.clone(), state.problem?))).collect()
    }

    /// The keys of a selection, each with its value if this process read it.
    fn read_values(&self, mapping: &Mapping, selection: &Selection) -> Vec<(KeyName, Result<SecretValue, Missing>)> {
        let one = |key: &KeyName| match self.good.get(key) {
            Some(good) if good.read => Ok(good.value.share()),
            None if self.problems.get(key).is_some_and(|problem| problem.reason.is_definite()) => Err(Missing::Absent),
            Some(_) | None => Err(Missing::Unread),
        };
        let names = self.selected(mapping, selection);
        let values = names.into_iter().map(|key| {
            let value = match mapping.named(&key).map(|key| &key.origin) {
                Some(Origin::Template(template)) => {
                    let missing = template.keys().filter_map(|key| one(key).err()).max();
                    missing.map_or_else(|| self.evaluate(template).ok_or(Missing::Unread), Err)
                }
                _ => one(&key),
            };
            (key, value)
        });
        values.collect()
    }

    /// The reads that a key's value comes from.
    fn sources_of<'a>(&'a self, mapping: &'a Mapping, key: &KeyName) -> Vec<&'a Request> {
        match mapping.named(key).map(|key| &key.origin) {
            Some(Origin::Template(template)) => {
                template.keys().filter_map(|key| self.good.get(key).map(|good| &good.from)).collect()
            }
            _ => self.good.get(key).map(|good| &good.from).into_iter().collect(),
        }
    }

    fn note_version(&self, request: &Request, wish: &mut Wish) {
        let Some(version) = self.applied.get(request).filter(|_| self.read.contains(request)) else { return };
        let Request { secret, stage } = request;
        let name = stage.as_ref().map_or_else(|| secret.to_string(), |stage| format!("{secret}@{stage}"));
        wish.provenance.versions.insert(name, version.id.to_string());
        wish.provenance.newest_ms = wish.provenance.newest_ms.max(version.created_ms);
    }

    fn evaluate(&self, template: &Template) -> Option<SecretValue> {
        let pieces: Option<Vec<Piece<'_>>> = template
            .0
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => Some(Piece::Literal(text)),
                Segment::Key(key, filter) => {
                    let value = &self.good.get(key)?.value;
                    Some(match filter {
                        Filter::Plain => Piece::Plain(value),
                        Filter::Url => Piece::Url(value),
                        Filter::Base64 => Piece::Base64(value),
                        Filter::Json => Piece::Json(value),
                    })
                }
            })
            .collect();
        pieces.map(|pieces| SecretValue::concat(pieces.into_iter()))
    }
}

/// True if a selection takes members that the configuration does not name.
fn takes_members(mapping: &Mapping, selection: &Selection) -> bool {
    selection.keys.as_ref().is_none_or(|keys| keys.iter().any(|key| mapping.named(key).is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::names::SecretId;

    fn name(text: &str) -> KeyName {
        KeyName::parse(text).unwrap()
    }

    fn request(secret: &str) -> Request {
        Request { secret: SecretId::parse(secret).unwrap(), stage: None }
    }

    fn key(key: &str, origin: Origin) -> Key {
        Key { name: name(key), origin, export: true, allow_reserved: false }
    }

    #[expect(clippy::unnecessary_wraps, reason = "an answer, as a snapshot holds it")]
    fn reading(value: &str, id: &str, created_ms: i64) -> Result<Reading, Problem> {
        let version = Version { id: VersionId::parse(id).unwrap(), created_ms: Some(created_ms) };
        Ok(Reading { value: SecretValue::new(value.to_owned()), version })
    }

    fn primary() -> Mapping {
        Mapping::new(Vec::new(), vec![Wholesale { request: request("p"), rename: BTreeMap::new() }])
    }

    fn apply(ledger: &mut Ledger, mapping: &Mapping, secret: &str, answer: Result<Reading, Problem>) -> Changes {
        ledger.apply(mapping, Snapshot::from([(request(secret), answer)]), false)
    }

    fn held(ledger: &Ledger, mapping: &Mapping) -> Vec<(String, String)> {
        let desired = ledger.desired(mapping, &Selection::default());
        desired.into_iter().map(|desired| (desired.name, desired.value.expose().to_owned())).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_failed_read_keeps_every_value_and_says_why() {
        let mapping = Mapping::new(vec![key("A", Origin::Secret(request("a")))], Vec::new());
        let mut ledger = Ledger::default();
        assert_eq!(ledger.missing(&mapping, false).len(), 1);
        apply(&mut ledger, &mapping, "a", reading("1", "v1", 1));
        assert!(ledger.missing(&mapping, false).is_empty());
        let changes = apply(&mut ledger, &mapping, "a", Err(Problem::new(Reason::Denied, "denied")));
        assert_eq!(changes, Changes::default());
        assert_eq!(held(&ledger, &mapping), pairs(&[("A", "1")]));
        let states = ledger.states(&mapping);
        assert_eq!(states.first().unwrap().problem.as_ref().unwrap().reason, Reason::Denied);
    }

    #[test]
    fn wholesale_members_come_and_go_but_not_in_masses() {
        let mapping = primary();
        let mut ledger = Ledger::default();
        apply(&mut ledger, &mapping, "p", reading(r#"{"A":"1","B":2,"C":true,"D":{"x": 1},"N":null}"#, "v1", 1));
        assert_eq!(held(&ledger, &mapping), pairs(&[("A", "1"), ("B", "2"), ("C", "true"), ("D", r#"{"x":1}"#)]));
        let changes = apply(&mut ledger, &mapping, "p", reading(r#"{"A":"1","B":2,"C":false}"#, "v2", 2));
        assert_eq!(changes.removed, BTreeSet::from([name("D")]));
        assert_eq!(changes.changed, BTreeSet::from([name("C")]));
        let changes = apply(&mut ledger, &mapping, "p", reading("{}", "v3", 3));
        assert_eq!(changes.held, [(request("p"), Reason::Removal)]);
        assert_eq!(held(&ledger, &mapping).len(), 3);
        let changes = apply(&mut ledger, &mapping, "p", reading("{}", "v3", 3));
        assert_eq!(changes.removed.len(), 3);
        assert!(held(&ledger, &mapping).is_empty());
    }

    #[test]
    fn reserved_and_illegal_members_are_not_exported_wholesale() {
        let mapping = primary();
        let mut ledger = Ledger::default();
        let json = r#"{"LD_PRELOAD":"x","AWS_REGION":"x","a\u0001b":"x","":"x","OK":"1","tls.key":"2"}"#;
        let changes = apply(&mut ledger, &mapping, "p", reading(json, "v1", 1));
        assert_eq!(held(&ledger, &mapping), pairs(&[("OK", "1"), ("tls.key", "2")]));
        assert_eq!(changes.remarks.len(), 4);
    }

    #[test]
    fn reads_that_alternate_between_new_and_old_stay_on_the_new_one() {
        let mapping = Mapping::new(vec![key("A", Origin::Secret(request("a")))], Vec::new());
        let mut ledger = Ledger::default();
        apply(&mut ledger, &mapping, "a", reading("new", "v2", 2));
        for _ in 0..3 {
            let changes = apply(&mut ledger, &mapping, "a", reading("old", "v1", 1));
            assert_eq!(changes.held, [(request("a"), Reason::StepBack)]);
            assert_eq!(apply(&mut ledger, &mapping, "a", reading("new", "v2", 2)), Changes::default());
        }
        apply(&mut ledger, &mapping, "a", reading("old", "v1", 1));
        let changes = apply(&mut ledger, &mapping, "a", reading("old", "v1", 1));
        assert_eq!(changes.changed.len(), 1, "a real roll-back is applied when two reads agree");
    }

    #[test]
    fn a_listed_member_that_goes_is_kept_and_stale() {
        let origin = Origin::Member(request("p"), Member::new("A"));
        let mapping = Mapping::new(vec![key("A", origin)], Vec::new());
        let mut ledger = Ledger::default();
        apply(&mut ledger, &mapping, "p", reading(r#"{"A":"1","B":"2"}"#, "v1", 1));
        assert_eq!(held(&ledger, &mapping), pairs(&[("A", "1")]));
        apply(&mut ledger, &mapping, "p", reading(r#"{"B":"2"}"#, "v2", 2));
        assert_eq!(held(&ledger, &mapping), pairs(&[("A", "1")]));
        assert_eq!(ledger.states(&mapping).first().unwrap().problem.as_ref().unwrap().reason, Reason::MissingMember);
        apply(&mut ledger, &mapping, "p", reading("not json", "v3", 3));
        assert_eq!(held(&ledger, &mapping), pairs(&[("A", "1")]));
    }

    #[test]
    fn templates_follow_their_keys() {
        let template = Origin::Template(Template::parse("db://{U|url}@host").unwrap());
        let mut user = key("U", Origin::Secret(request("u")));
        user.export = false;
        let mapping = Mapping::new(vec![key("URL", template), user], Vec::new());
        let mut ledger = Ledger::default();
        assert_eq!(ledger.missing(&mapping, false).len(), 2);
        apply(&mut ledger, &mapping, "u", reading("a b", "v1", 1));
        assert_eq!(held(&ledger, &mapping), pairs(&[("URL", "db://a%20b@host")]));
        assert!(ledger.missing(&mapping, false).is_empty());
    }

    #[test]
    fn what_was_recovered_is_cut_down_to_the_configuration() {
        let good = |value: &str, from: &str, wholesale| Good {
            value: SecretValue::new(value.to_owned()),
            from: request(from),
            wholesale,
            read: false,
        };
        let mapping = Mapping::new(
            vec![key("A", Origin::Secret(request("a"))), key("MOVED", Origin::Secret(request("new")))],
            vec![Wholesale { request: request("p"), rename: BTreeMap::new() }],
        );
        let ledger = Ledger::recovered(
            &mapping,
            BTreeMap::from([
                (name("A"), good("1", "a", false)),
                (name("GONE"), good("2", "g", false)),
                (name("MOVED"), good("3", "old", false)),
                (name("W"), good("4", "p", true)),
                (name("X"), good("5", "q", true)),
            ]),
            BTreeMap::new(),
        );
        assert_eq!(held(&ledger, &mapping), pairs(&[("A", "1"), ("W", "4")]));
        assert_eq!(
            ledger.missing(&mapping, false).len(),
            2,
            "MOVED, and the primary secret, of which no version is known"
        );
    }
}

//! What AWS must hold in the end, worked out one entry after the other; and the entries themselves, from a seed.

use std::collections::{BTreeMap, BTreeSet};

use keytide::domain::{value::SecretValue, virtual_key::Token};
use keytide_emulator::Emulator;
use serde_json::{Map, Value, json};

pub(crate) const PREFIX: &str = "keys/";
/// `keytide.virtual_keys`, with these settings.
pub(crate) const SETTINGS: &str = "virtual_keys: {prefix: keys/, description: of the settings, tags: {origin: model}, rate: none, max_new_secrets_per_hour: none}";
/// What entries may say themselves.
pub(crate) const ALLOW: &str = "{description: true, tag_keys: [team], replica_regions: [eu-west-1]}";
/// AWS keeps a hundred versions of a secret for a day, and then refuses more.
const MOST_WRITES: usize = 80;

/// A file that is dropped into the spool.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) file: String,
    pub(crate) json: Value,
}

/// What entries say beside names and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    pub(crate) description: Option<String>,
    pub(crate) team: Option<String>,
    pub(crate) replicated: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Store {
        op: &'static str,
        name: String,
        value: String,
        extras: Extras,
    },
    /// A rotation to a new name, or a rename, which brings no value.
    Move {
        from: String,
        to: String,
        value: Option<String>,
        extras: Extras,
    },
    Delete {
        name: String,
    },
    /// Something that no configuration allows.
    Wrong {
        value: String,
    },
}

/// A secret as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secret {
    pub(crate) value: String,
    pub(crate) description: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) replicas: BTreeSet<String>,
    pub(crate) scheduled: bool,
}

/// A version that must have been made, but for one that may have been folded into the next.
#[derive(Debug, Clone)]
struct Write {
    value: String,
    may_be_folded: bool,
}

/// What AWS must hold after the entries so far, and which of them must have failed.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) failed: BTreeSet<String>,
    /// Whatever they hold is right.
    forgotten: BTreeSet<String>,
    writes: BTreeMap<String, Vec<Write>>,
    /// What the last entry of a name said, if that only set its value.
    last: BTreeMap<String, Extras>,
}

/// Makes entries, and knows what they come to.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) world: World,
    random: fastrand::Rng,
    names: Vec<String>,
    made: usize,
    /// Entries of the same name that are still to come.
    burst: Option<(usize, String, Extras)>,
}

// === impl Extras ===

impl Extras {
    fn wanted(&self, from: Option<&Secret>) -> (Option<String>, BTreeMap<String, String>, BTreeSet<String>) {
        let mut tags = BTreeMap::from([("origin".to_owned(), "model".to_owned())]);
        tags.extend(self.team.clone().map(|team| ("team".to_owned(), team)));
        let description = self.description.clone().unwrap_or_else(|| "of the settings".to_owned());
        let (mut description, replicas) = (Some(description), self.replicated.then(|| "eu-west-1".to_owned()));
        if let Some(from) = from {
            if self.description.is_none() {
                description.clone_from(&from.description);
            }
            if self.team.is_none() {
                tags.clone_from(&from.tags);
            }
        }
        (description, tags, replicas.into_iter().collect())
    }

    fn write_to(&self, json: &mut Map<String, Value>) {
        if let Some(description) = &self.description {
            json.insert("description".to_owned(), description.clone().into());
        }
        if let Some(team) = &self.team {
            json.insert("tags".to_owned(), json!({ "team": team }));
        }
        if self.replicated {
            json.insert("replica_regions".to_owned(), json!(["eu-west-1"]));
        }
    }
}

// === impl World ===

impl World {
    pub(crate) fn apply(&mut self, file: &str, operation: &Operation) {
        match operation {
            Operation::Store { name, value, extras, .. } => {
                if self.last.insert(name.clone(), extras.clone()).as_ref() == Some(extras)
                    && let Some(before) = self.writes.get_mut(name).and_then(|writes| writes.last_mut())
                {
                    before.may_be_folded = true;
                }
                self.store(name, value, extras);
            }
            Operation::Move { from, to, value, extras } => {
                self.last.remove(from);
                self.last.remove(to);
                match (self.secrets.get(from).filter(|secret| !secret.scheduled).cloned(), value) {
                    (Some(old), value) => {
                        self.replace(to, value.as_ref().unwrap_or(&old.value), extras, Some(&old), true);
                        self.delete(from);
                    }
                    (None, Some(value)) => self.store(to, value, extras),
                    (None, None) => drop(self.failed.insert(file.to_owned())),
                }
            }
            Operation::Delete { name } => {
                self.last.remove(name);
                self.delete(name);
            }
            Operation::Wrong { .. } => drop(self.failed.insert(file.to_owned())),
        }
    }

    fn store(&mut self, name: &str, value: &str, extras: &Extras) {
        let restored = self.secrets.get(name).is_some_and(|secret| secret.scheduled);
        self.replace(name, value, extras, None, restored);
    }

    /// Sets the value of a secret; makes it, and makes the rest of it equal where that is so.
    fn replace(&mut self, name: &str, value: &str, extras: &Extras, from: Option<&Secret>, equal: bool) {
        let (description, tags, replicas) = extras.wanted(from);
        let write = Write { value: value.to_owned(), may_be_folded: false };
        self.writes.entry(name.to_owned()).or_default().push(write);
        match self.secrets.get_mut(name) {
            None => {
                let secret = Secret { value: value.to_owned(), description, tags, replicas, scheduled: false };
                self.secrets.insert(name.to_owned(), secret);
            }
            Some(secret) => {
                value.clone_into(&mut secret.value);
                secret.scheduled = false;
                if equal {
                    (secret.description, secret.tags) = (description, tags);
                    secret.replicas.extend(replicas);
                }
            }
        }
    }

    fn delete(&mut self, name: &str) {
        if let Some(secret) = self.secrets.get_mut(name) {
            secret.scheduled = true;
            secret.replicas.clear();
        }
    }

    /// Says nothing of a secret any more.
    pub(crate) fn forget(&mut self, name: &str) {
        self.secrets.remove(name);
        self.forgotten.insert(name.to_owned());
    }

    /// What is otherwise in AWS: nothing, if all is as it must be. And how many entries were folded.
    pub(crate) fn compare(&self, aws: &Emulator) -> (Vec<String>, usize) {
        let (mut wrong, mut folded) = (Vec::new(), 0);
        let known = |name: &String| self.secrets.contains_key(name) || self.forgotten.contains(name);
        for name in aws.names().iter().filter(|name| !known(name)) {
            wrong.push(format!("{name} is there, and must not be"));
        }
        for (name, must) in &self.secrets {
            let Some(is) = aws.secret(name) else {
                wrong.push(format!("{name} is missing"));
                continue;
            };
            let current = is.staged("AWSCURRENT").map(|version| version.value.clone()).unwrap_or_default();
            let scheduled = is.scheduled_for_deletion;
            let (description, tags, replicas) = (is.description, is.tags, is.replicas);
            let found = Secret { value: current, description, tags, replicas, scheduled };
            if found != *must {
                wrong.push(format!("{name} is {found:?}, and must be {must:?}"));
            }
            let mut versions = is.versions.iter().peekable();
            for write in self.writes.get(name).into_iter().flatten() {
                if versions.next_if(|version| version.value == write.value).is_some() {
                    continue;
                }
                folded += usize::from(write.may_be_folded);
                if !write.may_be_folded {
                    wrong.push(format!("{name}: {} was not written in its turn", write.value));
                }
            }
            wrong.extend(versions.map(|version| format!("{name}: version {} is one too many", version.id)));
            let tokens: Vec<Option<Token>> = is.versions.iter().map(|version| Token::parse(&version.id)).collect();
            if !tokens.iter().all(Option::is_some) || !tokens.is_sorted_by(|a, b| a < b) {
                wrong.push(format!("{name}: its versions are not of one claim each, in the order of the claims"));
            }
        }
        (wrong, folded)
    }
}

// === impl Producer ===

impl Producer {
    pub(crate) fn new(seed: u64, names: usize) -> Self {
        Self {
            world: World::default(),
            random: fastrand::Rng::with_seed(seed),
            names: (0..names).map(|i| format!("{PREFIX}key-{i}")).collect(),
            made: 0,
            burst: None,
        }
    }

    pub(crate) fn next(&mut self) -> Entry {
        self.made += 1;
        let file = format!("{:020}-model-{}.json", 1_790_000_000_000_000_000 + self.made, self.made % 10);
        let operation = self.operation();
        self.world.apply(&file, &operation);
        Entry { file, json: json(operation, &mut self.random) }
    }

    fn operation(&mut self) -> Operation {
        let value = format!("sk-{:06}-{:016x}", self.made, self.random.u64(..));
        let op = if self.random.u8(..4) == 0 { "rotate" } else { "create" };
        if let Some((left, name, extras)) = self.burst.take() {
            if left > 1 {
                self.burst = Some((left - 1, name.clone(), extras.clone()));
            }
            return Operation::Store { op, name, value, extras };
        }
        let extras = Extras {
            description: (self.random.u8(..8) == 0).then(|| format!("of entry {}", self.made)),
            team: (self.random.u8(..8) == 0).then(|| format!("team-{}", self.random.u8(..3))),
            replicated: self.random.u8(..10) == 0,
        };
        let live = |secret: &Secret| !secret.scheduled;
        match self.random.u8(..100) {
            0..40 => {
                let name = self.any();
                if self.random.u8(..4) == 0 {
                    self.burst = Some((self.random.usize(1..6), name.clone(), extras.clone()));
                }
                Operation::Store { op, name, value, extras }
            }
            40..45 => {
                let name = format!("{PREFIX}virtual-key-{}", SecretValue::new(value.clone()).sha256_hex());
                Operation::Store { op: "create", name, value, extras: Extras::default() }
            }
            45..60 => self.moved(live, Some(value), extras),
            60..73 => self.moved(live, None, extras),
            73..75 => self.moved(|secret| secret.scheduled, None, extras),
            75..77 => self.moved(|secret| secret.scheduled, Some(value), extras),
            77..92 => Operation::Delete { name: self.known(live) },
            92..96 => Operation::Delete { name: self.known(|secret| secret.scheduled) },
            // What is missing is looked for twice, a second apart.
            96 if self.random.bool() => Operation::Delete { name: format!("{PREFIX}missing-{}", self.made) },
            97 => {
                let (from, to) = (format!("{PREFIX}missing-{}", self.made), self.any());
                Operation::Move { from, to, value: self.random.bool().then_some(value), extras }
            }
            _ => Operation::Wrong { value },
        }
    }

    fn any(&mut self) -> String {
        let writes = |name: &str| self.world.writes.get(name).map_or(0, Vec::len);
        let room: Vec<&String> = self.names.iter().filter(|name| writes(name) < MOST_WRITES).collect();
        let name = self.random.choice(room).expect("too many entries for so few names");
        name.clone()
    }

    fn known(&mut self, such: impl Fn(&Secret) -> bool) -> String {
        let names = self.names.iter().filter(|name| self.world.secrets.get(*name).is_some_and(&such));
        let names: Vec<&String> = names.collect();
        self.random.choice(names).cloned().unwrap_or_else(|| format!("{PREFIX}key-0"))
    }

    fn moved(&mut self, such: impl Fn(&Secret) -> bool, value: Option<String>, extras: Extras) -> Operation {
        let from = self.known(such);
        loop {
            let to = self.any();
            if to != from {
                return Operation::Move { from, to, value, extras };
            }
        }
    }
}

/// An operation as its producer writes it.
pub(crate) fn json(operation: Operation, random: &mut fastrand::Rng) -> Value {
    let mut json = Map::new();
    match operation {
        Operation::Store { op, name, value, extras } => {
            json.insert("op".to_owned(), op.into());
            json.insert("value".to_owned(), value.into());
            write_name(&mut json, "", &name, random);
            extras.write_to(&mut json);
        }
        Operation::Move { from, to, value, extras } => {
            json.insert("op".to_owned(), if value.is_some() { "rotate" } else { "rename" }.into());
            json.extend(value.map(|value| ("value".to_owned(), value.into())));
            write_name(&mut json, "", &from, random);
            write_name(&mut json, "new_", &to, random);
            extras.write_to(&mut json);
        }
        Operation::Delete { name } => {
            json.insert("op".to_owned(), "delete".into());
            write_name(&mut json, "", &name, random);
        }
        Operation::Wrong { value } => {
            json.insert("op".to_owned(), "create".into());
            json.insert("name".to_owned(), "elsewhere/key".into());
            json.insert("value".to_owned(), value.into());
        }
    }
    json.into()
}

/// A name is given as it is, as an alias, or, where it is made of the value, not at all.
fn write_name(json: &mut Map<String, Value>, new: &str, name: &str, random: &mut fastrand::Rng) {
    let alias = name.strip_prefix(PREFIX).unwrap_or(name);
    if alias.starts_with("virtual-key-") {
        json.insert(format!("{new}alias"), if random.bool() { Value::Null } else { "".into() });
    } else if random.bool() {
        json.insert(format!("{new}name"), name.into());
    } else {
        json.insert(format!("{new}alias"), alias.into());
    }
}

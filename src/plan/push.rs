//! The state machines of create, rotate, rename and delete: what an entry asks for and what AWS answers → the next call.
//!
//! Each can be begun anew at any step, by another process too: a machine remembers nothing that it could not see in AWS,
//! but for one mark ([`Step::Mark`]). The tables are in `docs/SPOOL.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::{
    names::SecretName,
    snapshot::Problem,
    virtual_key::{Change, Metadata, Operation, Order, Rejection, RejectionReason, Token},
};

/// More calls than any way through a machine has; then AWS contradicts itself, and it is tried again later.
const MOST_CALLS: u32 = 24;
/// AWS's shortest recovery window, for the old name of a moved secret.
const SHORTEST_WINDOW: u8 = 7;

/// One entry on its way.
#[derive(Debug)]
pub struct Machine {
    change: Change,
    /// True: the value goes into a secret that is probably there.
    puts_first: bool,
    token: Token,
    metadata: Metadata,
    /// True if the entry itself gives description or tags, which then a moved secret does not keep.
    given: (bool, bool),
    conditions: Conditions,
    stage: Stage,
    calls: u32,
    /// What is known of the old name, or of the secret that is deleted. One that is scheduled for deletion is not moved any
    /// more, but says what it carried.
    from: Option<Description>,
    /// What is known of the secret that is written.
    to: Option<Description>,
    has_value: bool,
    created: bool,
    /// What still makes the secret what it shall be.
    repairs: VecDeque<Call>,
    /// What AWS said when it did not write or delete, which is not yet explained.
    refused: Option<Refusal>,
    /// How often AWS spoke of an invalid state without a look telling which.
    states: u32,
}

/// What is known beside the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Conditions {
    /// True if the entry may have been sent before, or was claimed a while ago: AWS is asked before anything is written.
    pub careful: bool,
    /// True if a secret that is said to be absent was already said to be so by an earlier look: reads are eventually
    /// consistent.
    pub believes_absence: bool,
    /// False: no new secret may be made now.
    pub may_create: bool,
    /// True: the secret was scheduled for deletion and is being restored, so that description, key and tags are made equal.
    pub restored: bool,
    /// True: when that began, it was part of a move whose old secret was there, and whose description and tags it keeps.
    pub carried: bool,
    /// True: somebody wants it also where that overwrites something newer.
    pub forced: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Call AWS.
    Call(Call),
    /// Keep, before the next call, that the secret is being restored: what is done after a crash depends on it.
    Mark,
    /// There is nothing more to do.
    Ended(Outcome),
}

/// One call to Secrets Manager. The value, where there is one, is not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `DescribeSecret`.
    Describe(SecretName),
    /// `GetSecretValue`, of the value that is moved.
    Read(SecretName),
    /// `CreateSecret`.
    Create(SecretName, Metadata),
    /// `PutSecretValue`.
    Put(SecretName),
    /// `RestoreSecret`.
    Restore(SecretName),
    /// `UpdateSecret` without a value: the description, and the key where it differs (empty: AWS's own).
    Update(SecretName, String, Option<String>),
    /// `TagResource`.
    Tag(SecretName, BTreeMap<String, String>),
    /// `UntagResource`.
    Untag(SecretName, BTreeSet<String>),
    /// `ReplicateSecretToRegions`.
    Replicate(SecretName, BTreeSet<String>),
    /// `RemoveRegionsFromReplication`.
    Unreplicate(SecretName, BTreeSet<String>),
    /// `DeleteSecret`, with the recovery window in days.
    Delete(SecretName, u8),
}

/// What AWS answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It did what it was asked for.
    Done,
    /// A value was written, which is current or not.
    Written {
        /// `VersionStages` has `AWSCURRENT`.
        current: bool,
    },
    /// What `DescribeSecret` says.
    Described(Description),
    /// The regions that are left.
    Replicas(BTreeSet<String>),
}

/// What `DescribeSecret` says, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The id of the version that is current.
    pub current: Option<String>,
    /// Whether the entry's own version is current; none if there is no such version with a label.
    pub ours: Option<bool>,
    /// True if it is scheduled for deletion.
    pub deleted: bool,
    /// True if it belongs to another service (`OwningService`).
    pub managed: bool,
    /// True if it is the replica of a secret of another region.
    pub replica: bool,
    /// What it carries; tags without those of AWS itself.
    pub metadata: Metadata,
}

/// A call that AWS refused, or that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What that means to a machine.
    pub kind: RefusalKind,
    /// The same for people.
    pub problem: Problem,
}

/// The kinds of refusals that machines tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// `ResourceExistsException`.
    Exists,
    /// `ResourceNotFoundException`.
    Absent,
    /// `InvalidRequestException`: one of three things, which only `DescribeSecret` tells.
    State,
    /// The request itself can never succeed.
    Invalid,
    /// Worth another try, as [`Pause`] says.
    Transient(Pause),
}

/// How soon something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// In about a second: something is on its way.
    Soon,
    /// With backoff.
    Backoff,
    /// With a slow one: somebody must do something first.
    Slow,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// AWS confirmed all of it.
    Confirmed {
        /// True if there is a secret more.
        created: bool,
    },
    /// It can never succeed.
    Failed(Rejection),
    /// It is tried again.
    Later(Later),
}

/// Why an attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    /// A word of a closed set, for metrics and status.
    pub reason: &'static str,
    /// What stood in the way.
    pub message: String,
    /// How soon.
    pub pause: Pause,
    /// True if a secret is said to be absent, which is believed later.
    pub absent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Describe the old name of a secret that is moved.
    LookFrom,
    /// Describe the secret that is to be written.
    LookTo,
    /// Read the value that is moved.
    Read,
    Create,
    Put,
    Mark,
    Restore,
    /// Describe what was written, to make the rest of it equal.
    LookAgain,
    Repair,
    /// Describe the secret that is to be deleted.
    LookGone,
    Unreplicate,
    Delete,
}

/// What follows from an answer.
type Next = Result<Stage, Outcome>;

// === impl Machine ===

impl Machine {
    /// At its beginning.
    #[must_use]
    pub fn new(order: &Order, token: Token, settings: &Metadata, region: &str, conditions: Conditions) -> Self {
        let given = order.given.as_deref();
        let mut metadata = order.metadata(settings);
        // A secret has no replica where it is itself.
        metadata.replica_regions.remove(region);
        let mut machine = Self {
            change: order.change.clone(),
            puts_first: order.operation == Operation::Rotate,
            token,
            metadata,
            given: (
                given.is_some_and(|given| given.description.is_some()),
                given.is_some_and(|given| given.tags.is_some()),
            ),
            conditions,
            stage: Stage::Delete,
            calls: 0,
            from: None,
            to: None,
            has_value: order.change.is_valued(),
            created: false,
            repairs: VecDeque::new(),
            refused: None,
            states: 0,
        };
        machine.stage = match &machine.change {
            Change::Store(_) => machine.begin_storing(),
            Change::Move { .. } => Stage::LookFrom,
            Change::Delete { .. } if conditions.careful => Stage::LookGone,
            Change::Delete { .. } => Stage::Delete,
        };
        machine
    }

    /// What to do now.
    #[must_use]
    pub fn step(&self) -> Step {
        if self.calls >= MOST_CALLS {
            return Step::Ended(Outcome::Later(Later {
                reason: "unavailable",
                message: format!("AWS's answers about {} contradict each other", self.change.subject()),
                pause: Pause::Backoff,
                absent: false,
            }));
        }
        let (from, to) = (self.old().clone(), self.new_name().clone());
        Step::Call(match self.stage {
            Stage::LookFrom | Stage::LookGone => Call::Describe(from),
            Stage::LookTo | Stage::LookAgain => Call::Describe(to),
            Stage::Read => Call::Read(from),
            Stage::Create => Call::Create(to, self.wanted()),
            Stage::Put => Call::Put(to),
            Stage::Mark => return Step::Mark,
            Stage::Restore => Call::Restore(to),
            Stage::Repair => match self.repairs.front() {
                Some(call) => call.clone(),
                None => return Step::Ended(self.confirmed()),
            },
            Stage::Unreplicate => Call::Unreplicate(from, self.replicas()),
            Stage::Delete => Call::Delete(from, self.window()),
        })
    }

    /// The mark is kept.
    pub fn marked(&mut self) {
        self.conditions.restored = true;
        self.conditions.carried = self.moves();
        self.stage = Stage::Restore;
    }

    /// Takes in what AWS answered; the outcome, if that is the end.
    pub fn observe(&mut self, answer: Result<Answer, Refusal>) -> Option<Outcome> {
        self.calls = self.calls.saturating_add(1);
        let next = match answer {
            Ok(answer) => self.answered(answer),
            Err(refusal) => self.was_refused(refusal),
        };
        match next {
            Ok(stage) => {
                self.stage = stage;
                None
            }
            Err(outcome) => Some(outcome),
        }
    }

    fn answered(&mut self, answer: Answer) -> Next {
        match (self.stage, answer) {
            (Stage::LookFrom, Answer::Described(seen)) => self.saw_from(seen),
            (Stage::LookTo, Answer::Described(seen)) => self.saw_to(seen),
            (Stage::LookAgain, Answer::Described(seen)) => {
                self.to = Some(seen);
                self.after_writing()
            }
            (Stage::LookGone, Answer::Described(seen)) => self.saw_gone(seen),
            (Stage::Read, _) => {
                self.has_value = true;
                Ok(self.begin_writing())
            }
            (Stage::Create, _) => {
                self.created = true;
                self.after_writing()
            }
            (Stage::Put, Answer::Written { current: false }) => Err(superseded(self.new_name())),
            (Stage::Put, _) => self.after_writing(),
            (Stage::Restore, _) => Ok(Stage::Put),
            (Stage::Repair, _) => {
                self.repairs.pop_front();
                self.after_repair()
            }
            (Stage::Unreplicate, Answer::Replicas(left)) if !left.is_empty() => Err(self.replicas_left()),
            (Stage::Unreplicate, _) => {
                self.refused = None;
                Ok(Stage::Delete)
            }
            (Stage::Delete, _) => Err(self.confirmed()),
            // A mark is not answered, and a description has no other form.
            (stage @ (Stage::Mark | Stage::LookFrom | Stage::LookTo | Stage::LookAgain | Stage::LookGone), _) => {
                Ok(stage)
            }
        }
    }

    fn was_refused(&mut self, refusal: Refusal) -> Next {
        use RefusalKind::{Absent, Exists, Invalid, State, Transient};
        match (self.stage, refusal.kind) {
            (Stage::LookFrom, Absent) => self.nothing_at_old(refusal),
            (Stage::LookTo, Absent) => self.nothing_at_new(),
            (Stage::LookGone | Stage::Delete | Stage::Unreplicate, Absent) => self.absent_means_deleted(refusal),
            // The secret went away, or changed its state, since it was described: looked at again.
            (Stage::Read, Absent | State) => {
                self.from = None;
                Ok(Stage::LookFrom)
            }
            (Stage::Create, Exists) => Ok(Stage::Put),
            (Stage::Put | Stage::Restore, Absent) => self.may_create(),
            // The token is used: with another value than AWS has by now, or by a version without a label.
            (Stage::Put, Exists) => Ok(Stage::LookTo),
            (Stage::Create | Stage::Put | Stage::Restore, State) if self.states < 2 => {
                self.states += 1;
                Ok(Stage::LookTo)
            }
            // They are on their way out already.
            (Stage::Unreplicate, State | Invalid) => Err(self.replicas_left()),
            // AWS says so of a replica too, which a look tells.
            (Stage::Put, Invalid) if self.refused.is_none() => {
                self.refused = Some(refusal);
                Ok(Stage::LookTo)
            }
            (Stage::Delete, State | Invalid) if self.refused.is_none() => {
                self.refused = Some(refusal);
                Ok(Stage::LookGone)
            }
            (_, Transient(pause)) => Err(later(refusal, pause)),
            (_, Invalid) => Err(failed(RejectionReason::Refused, refusal.problem.message)),
            (_, Absent | Exists | State) => Err(later(refusal, Pause::Backoff)),
        }
    }

    // --- the secret that is written

    fn begin_storing(&self) -> Stage {
        if self.conditions.careful { Stage::LookTo } else { self.first_write() }
    }

    fn first_write(&self) -> Stage {
        if self.puts_first && !self.is_move() || !self.conditions.may_create { Stage::Put } else { Stage::Create }
    }

    /// Writes, or first reads what is to be written.
    fn begin_writing(&self) -> Stage {
        match &self.to {
            _ if !self.has_value => Stage::Read,
            Some(seen) if seen.deleted && self.conditions.restored => Stage::Restore,
            Some(seen) if seen.deleted => Stage::Mark,
            Some(_) => Stage::Put,
            None => self.first_write(),
        }
    }

    fn saw_to(&mut self, seen: Description) -> Next {
        let name = self.new_name().clone();
        refuse_foreign(&name, &seen)?;
        if let Some(Refusal { problem, .. }) = self.refused.take() {
            return Err(failed(RejectionReason::Refused, problem.message));
        }
        if seen.ours == Some(false) || self.is_older_than(&seen) {
            return Err(superseded(&name));
        }
        let (ours, deleted) = (seen.ours.is_some(), seen.deleted);
        self.to = Some(seen);
        match (ours, &self.change) {
            (true, _) if !deleted => self.after_writing(),
            (_, Change::Move { valued: false, from, .. }) if !self.moves() => Err(self.nothing_to_move(from)),
            _ => Ok(self.begin_writing()),
        }
    }

    fn nothing_at_new(&mut self) -> Next {
        self.to = None;
        if let Change::Move { valued: false, from, .. } = &self.change
            && !self.moves()
        {
            return Err(self.nothing_to_move(from));
        }
        if !self.has_value {
            return Ok(Stage::Read);
        }
        self.may_create()
    }

    fn may_create(&self) -> Next {
        if self.conditions.may_create {
            return Ok(Stage::Create);
        }
        Err(Outcome::Later(Later {
            reason: "new_secret_limit",
            message: format!(
                "secret {} would be new, and this hour's new secrets are made \
                 (keytide.virtual_keys.max_new_secrets_per_hour)",
                self.new_name()
            ),
            pause: Pause::Backoff,
            absent: false,
        }))
    }

    /// The value is current. What was created has the rest already; what was restored or moved is made equal.
    fn after_writing(&mut self) -> Next {
        if !self.created && (self.conditions.restored || self.moves()) {
            let Some(seen) = &self.to else { return Ok(Stage::LookAgain) };
            self.repairs = repairs(self.new_name(), &seen.metadata, &self.wanted());
        }
        self.after_repair()
    }

    fn after_repair(&self) -> Next {
        match (self.repairs.is_empty(), self.moves()) {
            (false, _) => Ok(Stage::Repair),
            // Somebody may have written to the old name meanwhile.
            (true, true) => Ok(Stage::LookGone),
            (true, false) => Err(self.confirmed()),
        }
    }

    /// What the written secret shall carry: a moved one keeps description and tags.
    fn wanted(&self) -> Metadata {
        let mut wanted = self.metadata.clone();
        if let Some(from) = self.from.as_ref().filter(|_| self.moves() || self.conditions.carried) {
            let (description, tags) = self.given;
            if !description {
                wanted.description.clone_from(&from.metadata.description);
            }
            if !tags {
                wanted.tags.clone_from(&from.metadata.tags);
            }
        }
        wanted
    }

    // --- the old name of a secret that is moved

    fn saw_from(&mut self, seen: Description) -> Next {
        let name = self.old().clone();
        refuse_foreign(&name, &seen)?;
        let deleted = seen.deleted;
        if !deleted && self.is_older_than(&seen) {
            return Err(superseded(&name));
        }
        self.from = Some(seen);
        if deleted {
            return self.begin_without_from();
        }
        Ok(if self.conditions.careful { Stage::LookTo } else { self.begin_writing() })
    }

    fn nothing_at_old(&self, refusal: Refusal) -> Next {
        if self.conditions.believes_absence {
            return self.begin_without_from();
        }
        Err(perhaps_absent(refusal))
    }

    /// Either all of it was done before, or there is nothing to move: then a rotation is stored under the new name.
    fn begin_without_from(&self) -> Next {
        match &self.change {
            Change::Move { valued: false, from, .. } if !self.conditions.careful => Err(self.nothing_to_move(from)),
            Change::Move { valued: false, .. } => Ok(Stage::LookTo),
            _ => Ok(self.begin_storing()),
        }
    }

    fn nothing_to_move(&self, from: &SecretName) -> Outcome {
        let message = format!(
            "there is no secret {from} to rename to {}: create the new one, or discard this entry",
            self.new_name()
        );
        failed(RejectionReason::Absent, message)
    }

    // --- the secret that is deleted

    fn saw_gone(&mut self, seen: Description) -> Next {
        let name = self.old().clone();
        if seen.deleted {
            return Err(self.confirmed());
        }
        refuse_foreign(&name, &seen)?;
        let changed = self.is_move() && self.from.as_ref().is_some_and(|from| from.current != seen.current);
        if changed || self.is_older_than(&seen) {
            return Err(superseded(&name));
        }
        let replicated = !seen.metadata.replica_regions.is_empty();
        self.from = Some(seen);
        if replicated {
            return Ok(Stage::Unreplicate);
        }
        // Name and window are legal: replicas that were removed a moment ago are said to be there, or the like.
        match self.refused.take() {
            Some(refusal) => Err(later(refusal, Pause::Backoff)),
            None => Ok(Stage::Delete),
        }
    }

    fn absent_means_deleted(&self, refusal: Refusal) -> Next {
        Err(if self.conditions.believes_absence { self.confirmed() } else { perhaps_absent(refusal) })
    }

    fn replicas_left(&self) -> Outcome {
        let message = format!("the replicas of secret {} are being removed, before it is deleted", self.old());
        Outcome::Later(Later { reason: "replicas", message, pause: Pause::Soon, absent: false })
    }

    fn replicas(&self) -> BTreeSet<String> {
        self.from.as_ref().map(|from| from.metadata.replica_regions.clone()).unwrap_or_default()
    }

    // --- names

    /// True for a move whose old secret is there.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.is_move() && self.from.as_ref().is_some_and(|from| !from.deleted)
    }

    /// The end. A secret that was moved is no secret more.
    fn confirmed(&self) -> Outcome {
        Outcome::Confirmed { created: self.created && !self.moves() }
    }

    /// The current version is of an entry that was claimed later, and nobody wants it overwritten.
    fn is_older_than(&self, seen: &Description) -> bool {
        let current = seen.current.as_deref().and_then(Token::parse);
        self.conditions.careful && !self.conditions.forced && current.is_some_and(|current| current > self.token)
    }

    fn is_move(&self) -> bool {
        matches!(self.change, Change::Move { .. })
    }

    fn old(&self) -> &SecretName {
        match &self.change {
            Change::Store(name) | Change::Delete { name, .. } | Change::Move { from: name, .. } => name,
        }
    }

    fn new_name(&self) -> &SecretName {
        match &self.change {
            Change::Store(name) | Change::Delete { name, .. } | Change::Move { to: name, .. } => name,
        }
    }

    fn window(&self) -> u8 {
        if let Change::Delete { days, .. } = self.change { days } else { SHORTEST_WINDOW }
    }
}

// === impl Call ===

impl Call {
    /// True if it counts against AWS's quotas of writes, which are small and everyone's.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Describe(_) | Self::Read(_))
    }

    /// True if it makes a version of a secret.
    #[must_use]
    pub fn makes_version(&self) -> bool {
        matches!(self, Self::Create(..) | Self::Put(_))
    }
}

fn superseded(name: &SecretName) -> Outcome {
    let message = format!(
        "secret {name} holds a newer version than this entry: it is left as it is; discard the entry, or retry it with \
         --force to overwrite that version"
    );
    failed(RejectionReason::Superseded, message)
}

fn failed(reason: RejectionReason, message: String) -> Outcome {
    Outcome::Failed(Rejection { reason, message })
}

fn later(refusal: Refusal, pause: Pause) -> Outcome {
    let Problem { reason, message } = refusal.problem;
    Outcome::Later(Later { reason: reason.label(), message, pause, absent: false })
}

/// A look says that there is no such secret, which is not believed yet.
fn perhaps_absent(refusal: Refusal) -> Outcome {
    let Problem { reason, message } = refusal.problem;
    Outcome::Later(Later { reason: reason.label(), message, pause: Pause::Soon, absent: true })
}

fn refuse_foreign(name: &SecretName, seen: &Description) -> Result<(), Outcome> {
    let what = match seen {
        Description { managed: true, .. } => "is managed by another service of AWS",
        Description { replica: true, .. } => "is the replica of a secret of another region",
        _ => return Ok(()),
    };
    let message = format!("secret {name} {what}, and keytide leaves it alone: give the virtual key another name");
    Err(failed(RejectionReason::NotOurs, message))
}

/// What makes a secret that is there carry what it shall.
fn repairs(name: &SecretName, is: &Metadata, shall: &Metadata) -> VecDeque<Call> {
    let mut calls = VecDeque::new();
    let key = (is.kms_key_id != shall.kms_key_id).then(|| shall.kms_key_id.clone().unwrap_or_default());
    if is.description != shall.description || key.is_some() {
        let description = shall.description.clone().unwrap_or_default();
        calls.push_back(Call::Update(name.clone(), description, key));
    }
    let extra: BTreeSet<String> = is.tags.keys().filter(|key| !shall.tags.contains_key(*key)).cloned().collect();
    if !extra.is_empty() {
        calls.push_back(Call::Untag(name.clone(), extra));
    }
    let other = shall.tags.iter().filter(|(key, value)| is.tags.get(*key) != Some(*value));
    let other: BTreeMap<String, String> = other.map(|(key, value)| (key.clone(), value.clone())).collect();
    if !other.is_empty() {
        calls.push_back(Call::Tag(name.clone(), other));
    }
    let missing: BTreeSet<String> = shall.replica_regions.difference(&is.replica_regions).cloned().collect();
    if !missing.is_empty() {
        calls.push_back(Call::Replicate(name.clone(), missing));
    }
    calls
}

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
    /// What is known of the old name, or of the secret that is deleted.
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
    /// True: somebody wants it also where that overwrites something newer.
    pub forced: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Call AWS.
    Call(Call),
    /// Keep, before the next call, whether the secret is being restored: what is done after a crash depends on it.
    Mark {
        /// True: it is restored next. False: it is all that it shall be, and the old name goes.
        restoring: bool,
    },
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
            Stage::Mark => return Step::Mark { restoring: !self.conditions.restored },
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
        self.conditions.restored = !self.conditions.restored;
        self.stage = if self.conditions.restored { Stage::Restore } else { Stage::LookGone };
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
            // Somebody made it since it was looked for.
            (Stage::Create, Exists) if self.conditions.careful => Ok(Stage::LookTo),
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
            // Without the old name nobody could tell any more what the new one was to carry.
            (true, true) if self.conditions.restored => Ok(Stage::Mark),
            // Somebody may have written to the old name meanwhile.
            (true, true) => Ok(Stage::LookGone),
            (true, false) => Err(self.confirmed()),
        }
    }

    /// What the written secret shall carry: a moved one keeps description and tags.
    fn wanted(&self) -> Metadata {
        let mut wanted = self.metadata.clone();
        if let Some(from) = self.from.as_ref().filter(|_| self.moves()) {
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
    fn moves(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::domain::{
        snapshot::Reason,
        virtual_key::{Given, Tokens},
    };

    /// More than any entry needs, however it is disturbed here.
    const MOST_ATTEMPTS: usize = 60;

    /// As much of AWS as machines see of it.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct Aws(BTreeMap<SecretName, Secret>);

    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    #[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
    struct Secret {
        /// Ids, each with its value.
        versions: Vec<(String, u32)>,
        current: String,
        deleted: bool,
        managed: bool,
        replica: bool,
        /// How often replicas that were removed are still shown.
        lingers: u8,
        leaving: bool,
        metadata: Metadata,
    }

    /// Something that goes wrong with one call, counted over all attempts.
    #[derive(Debug, Clone, Copy)]
    enum Trouble {
        /// The call is carried out; then the process ends.
        Crash,
        /// The process ends before the call.
        CrashBefore,
        /// The call is carried out, and nobody hears of it.
        Lost,
        /// The call is refused so, with no reason at all.
        Refused(RefusalKind),
    }

    /// What somebody else does before a call.
    #[derive(Debug, Clone, Copy)]
    enum Meddling {
        Write,
        Schedule,
        Restore,
        Remove,
        Replicate,
    }

    /// One entry from its claim to its end.
    #[derive(Debug)]
    struct Run {
        aws: Aws,
        outcome: Outcome,
        calls: usize,
    }

    fn name(i: usize) -> SecretName {
        SecretName::parse(format!("keys/{i}")).unwrap()
    }

    fn token(seconds: u64) -> Token {
        Tokens::default().next(1_793_491_200_000 + seconds * 1000, &mut fastrand::Rng::with_seed(seconds))
    }

    /// The entry's own token; others are older or newer.
    fn ours() -> Token {
        token(1000)
    }

    fn refusal(kind: RefusalKind) -> Refusal {
        let reason = match kind {
            RefusalKind::Absent | RefusalKind::State => Reason::Absent,
            RefusalKind::Transient(_) => Reason::Unavailable,
            _ => Reason::Refused,
        };
        Refusal { kind, problem: Problem::new(reason, String::new()) }
    }

    // === impl Aws ===

    impl Aws {
        fn own(&mut self, name: &SecretName) -> Result<&mut Secret, Refusal> {
            let secret = self.0.get_mut(name).ok_or_else(|| refusal(RefusalKind::Absent))?;
            match secret {
                Secret { deleted: true, .. } | Secret { managed: true, .. } => Err(refusal(RefusalKind::State)),
                Secret { replica: true, .. } => Err(refusal(RefusalKind::Invalid)),
                secret => Ok(secret),
            }
        }

        fn carry_out(&mut self, call: &Call, token: Token, value: &mut Option<u32>) -> Result<Answer, Refusal> {
            let id = token.to_string();
            match call {
                Call::Describe(name) => {
                    let secret = self.0.get_mut(name).ok_or_else(|| refusal(RefusalKind::Absent))?;
                    let seen = Description {
                        current: Some(secret.current.clone()),
                        ours: secret.value_of(&id).map(|_| secret.current == id),
                        deleted: secret.deleted,
                        managed: secret.managed,
                        replica: secret.replica,
                        metadata: secret.metadata.clone(),
                    };
                    if secret.leaving {
                        secret.lingers = secret.lingers.saturating_sub(1);
                        if secret.lingers == 0 {
                            secret.metadata.replica_regions.clear();
                            secret.leaving = false;
                        }
                    }
                    return Ok(Answer::Described(seen));
                }
                Call::Read(name) => {
                    let secret = self.0.get(name).ok_or_else(|| refusal(RefusalKind::Absent))?;
                    if secret.deleted {
                        return Err(refusal(RefusalKind::State));
                    }
                    *value = secret.value_of(&secret.current);
                }
                Call::Create(name, metadata) => {
                    let value = value.expect("a value before it is written");
                    let Some(secret) = self.0.get(name) else {
                        let secret = Secret {
                            versions: vec![(id.clone(), value)],
                            current: id,
                            metadata: metadata.clone(),
                            ..Secret::default()
                        };
                        self.0.insert(name.clone(), secret);
                        return Ok(Answer::Written { current: true });
                    };
                    if secret.deleted {
                        return Err(refusal(RefusalKind::State));
                    }
                    if secret.value_of(&id) != Some(value) {
                        return Err(refusal(RefusalKind::Exists));
                    }
                    return Ok(Answer::Written { current: true });
                }
                Call::Put(name) => {
                    let value = value.expect("a value before it is written");
                    let secret = self.own(name)?;
                    match secret.value_of(&id) {
                        None => secret.write(&id, value),
                        Some(known) if known == value => {}
                        Some(_) => return Err(refusal(RefusalKind::Exists)),
                    }
                    return Ok(Answer::Written { current: secret.current == id });
                }
                Call::Restore(name) => {
                    self.0.get_mut(name).ok_or_else(|| refusal(RefusalKind::Absent))?.deleted = false;
                }
                Call::Update(name, description, key) => {
                    let secret = self.own(name)?;
                    secret.metadata.description = Some(description.clone()).filter(|text| !text.is_empty());
                    if let Some(key) = key {
                        secret.metadata.kms_key_id = Some(key.clone()).filter(|key| !key.is_empty());
                    }
                }
                Call::Tag(name, tags) => self.own(name)?.metadata.tags.extend(tags.clone()),
                Call::Untag(name, keys) => self.own(name)?.metadata.tags.retain(|key, _| !keys.contains(key)),
                Call::Replicate(name, regions) => {
                    self.own(name)?.metadata.replica_regions.extend(regions.iter().cloned());
                }
                Call::Unreplicate(name, _) => {
                    let secret = self.own(name)?;
                    secret.leaving = secret.lingers > 0;
                    if !secret.leaving {
                        secret.metadata.replica_regions.clear();
                    }
                    return Ok(Answer::Replicas(secret.metadata.replica_regions.clone()));
                }
                Call::Delete(name, days) => {
                    assert!((7..=30).contains(days));
                    let secret = self.own(name)?;
                    if !secret.metadata.replica_regions.is_empty() {
                        return Err(refusal(RefusalKind::Invalid));
                    }
                    secret.deleted = true;
                }
            }
            Ok(Answer::Done)
        }

        fn holds_newer(&self, name: &SecretName) -> bool {
            let current = self.0.get(name).and_then(|secret| Token::parse(&secret.current));
            current.is_some_and(|current| current > ours())
        }

        fn meddle(&mut self, name: &SecretName, meddling: Meddling, seconds: u64) {
            if let Meddling::Write = meddling {
                let secret = self.0.entry(name.clone()).or_default();
                secret.deleted = false;
                secret.write(&token(2000 + seconds).to_string(), 77);
            }
            let Some(secret) = self.0.get_mut(name) else { return };
            match meddling {
                Meddling::Write => {}
                Meddling::Schedule => {
                    secret.deleted = true;
                    secret.metadata.replica_regions.clear();
                }
                Meddling::Restore => secret.deleted = false,
                Meddling::Remove => drop(self.0.remove(name)),
                Meddling::Replicate => drop(secret.metadata.replica_regions.insert("eu-west-1".to_owned())),
            }
        }

        /// Versions of the entry in any one secret.
        fn written(&self) -> usize {
            let id = ours().to_string();
            self.0.values().map(|secret| secret.versions.iter().filter(|(other, _)| *other == id).count()).sum()
        }

        /// Without what is not the entry's concern.
        fn settled(mut self) -> Self {
            for secret in self.0.values_mut() {
                (secret.lingers, secret.leaving) = (0, false);
            }
            self
        }
    }

    impl Secret {
        fn value_of(&self, id: &str) -> Option<u32> {
            self.versions.iter().find(|(known, _)| known == id).map(|(_, value)| *value)
        }

        fn write(&mut self, id: &str, value: u32) {
            self.versions.push((id.to_owned(), value));
            id.clone_into(&mut self.current);
        }
    }

    // === impl Run ===

    impl Run {
        /// As `src/push.rs` does it: attempt after attempt, resumed by another process after a crash.
        fn of(
            order: &Order,
            mut aws: Aws,
            troubles: &BTreeMap<usize, Trouble>,
            meddling: &BTreeMap<usize, (usize, Meddling)>,
            resumed: bool,
        ) -> Self {
            let settings = settings();
            let mut calls = 0;
            let (mut resumed, mut tried, mut absent, mut restored) = (resumed, false, false, false);
            for _ in 0..MOST_ATTEMPTS {
                let careful = resumed || tried;
                let conditions =
                    Conditions { careful, believes_absence: absent, may_create: true, restored, forced: false };
                let mut machine = Machine::new(order, ours(), &settings, "us-east-1", conditions);
                let mut value = order.change.is_valued().then_some(1);
                // Of which names it was told, and whether something newer was there when it was.
                let mut told: BTreeMap<SecretName, bool> = BTreeMap::new();
                let mut of_attempt = 0;
                let later = loop {
                    let call = match machine.step() {
                        Step::Call(call) => call,
                        Step::Mark { restoring } => {
                            restored = restoring;
                            machine.marked();
                            continue;
                        }
                        Step::Ended(Outcome::Later(later)) => break Some(later),
                        Step::Ended(outcome) => return Self { aws, outcome, calls },
                    };
                    of_attempt += 1;
                    assert!(of_attempt <= MOST_CALLS, "{order:?}: an attempt without an end");
                    if let Some((i, what)) = meddling.get(&calls) {
                        aws.meddle(&name(*i), *what, u64::try_from(calls).unwrap());
                    }
                    let trouble = troubles.get(&calls).copied();
                    calls += 1;
                    if let Some(Trouble::CrashBefore) = trouble {
                        break None;
                    }
                    if let (true, Call::Put(name) | Call::Delete(name, _)) = (careful, &call) {
                        assert_eq!(told.get(name), Some(&false), "{call:?} over what a look shows to be newer");
                    }
                    let answer = match trouble {
                        Some(Trouble::Refused(kind)) => Err(refusal(kind)),
                        _ => aws.carry_out(&call, ours(), &mut value),
                    };
                    if let Call::Describe(name) | Call::Create(name, _) = &call {
                        told.insert(name.clone(), aws.holds_newer(name));
                    }
                    let answer = match trouble {
                        Some(Trouble::Crash) => break None,
                        Some(Trouble::Lost) => Err(refusal(RefusalKind::Transient(Pause::Backoff))),
                        _ => answer,
                    };
                    match machine.observe(answer) {
                        None => {}
                        Some(Outcome::Later(later)) => break Some(later),
                        Some(outcome) => return Self { aws, outcome, calls },
                    }
                };
                if let Some(later) = later {
                    tried = true;
                    absent |= later.absent;
                } else {
                    (resumed, tried, absent) = (true, false, false);
                }
            }
            panic!("{order:?}: tried again for ever; {calls} calls");
        }
    }

    fn settings() -> Metadata {
        Metadata {
            description: Some("of the settings".to_owned()),
            tags: BTreeMap::from([("origin".to_owned(), "keytide".to_owned())]),
            kms_key_id: None,
            replica_regions: BTreeSet::new(),
        }
    }

    fn orders() -> impl Strategy<Value = Order> {
        let given = Given {
            description: Some("its own".to_owned()),
            tags: None,
            kms_key_id: Some("alias/own".to_owned()),
            replica_regions: Some(BTreeSet::from(["eu-west-1".to_owned()])),
        };
        let tagged = Given { tags: Some(BTreeMap::from([("team".to_owned(), "core".to_owned())])), ..Given::default() };
        let given = prop_oneof![Just(None), Just(Some(Box::new(given))), Just(Some(Box::new(tagged)))];
        let change = prop_oneof![
            Just((Operation::Create, Change::Store(name(0)))),
            Just((Operation::Rotate, Change::Store(name(0)))),
            Just((Operation::Rotate, Change::Move { from: name(0), to: name(1), valued: true })),
            Just((Operation::Rename, Change::Move { from: name(0), to: name(1), valued: false })),
            Just((Operation::Delete, Change::Delete { name: name(0), days: 9 })),
        ];
        (change, given).prop_map(|((operation, change), given)| {
            let given = given.filter(|_| operation != Operation::Delete);
            Order { operation, change, given, writer: None }
        })
    }

    /// A secret of an older version, or of one that is nobody's claim.
    fn secrets() -> impl Strategy<Value = Secret> {
        let id = prop_oneof![Just(token(1).to_string()), Just("terraform-20261101000000000000000001".to_owned())];
        let state = prop_oneof![
            6 => Just((false, false, false)),
            4 => Just((true, false, false)),
            1 => Just((false, true, false)),
            1 => Just((false, false, true)),
        ];
        (id, state, any::<[bool; 4]>(), 0..3_u8).prop_map(|(id, (deleted, managed, replica), has, lingers)| Secret {
            versions: vec![(id.clone(), 50)],
            current: id,
            deleted,
            managed,
            replica,
            lingers,
            leaving: false,
            metadata: Metadata {
                description: has[0].then(|| "old".to_owned()),
                tags: has[1].then(|| ("owner".to_owned(), "somebody".to_owned())).into_iter().collect(),
                kms_key_id: has[2].then(|| "alias/old".to_owned()),
                replica_regions: (has[3] && !deleted && !replica && !managed)
                    .then(|| "ap-south-1".to_owned())
                    .into_iter()
                    .collect(),
            },
        })
    }

    fn worlds() -> impl Strategy<Value = Aws> {
        (option::of(secrets()), option::of(secrets())).prop_map(|(from, to)| {
            let all = [(name(0), from), (name(1), to)];
            Aws(all.into_iter().filter_map(|(name, secret)| Some((name, secret?))).collect())
        })
    }

    fn crashes() -> impl Strategy<Value = Trouble> {
        prop_oneof![Just(Trouble::Crash), Just(Trouble::CrashBefore), Just(Trouble::Lost)]
    }

    fn pauses() -> impl Strategy<Value = RefusalKind> {
        let pause = prop_oneof![Just(Pause::Soon), Just(Pause::Backoff), Just(Pause::Slow)];
        pause.prop_map(RefusalKind::Transient)
    }

    fn is_failure(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Failed(_))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn however_often_it_is_begun_anew_an_entry_ends_as_if_nothing_had_happened(
            order in orders(),
            aws in worlds(),
            crashes in vec((0..30_usize, crashes()), 0..6),
        ) {
            let plain = Run::of(&order, aws.clone(), &BTreeMap::new(), &BTreeMap::new(), false);
            let crashed = Run::of(&order, aws, &crashes.into_iter().collect(), &BTreeMap::new(), false);
            prop_assert_eq!(is_failure(&plain.outcome), is_failure(&crashed.outcome), "{:?} {:?}", plain, crashed);
            prop_assert!(crashed.aws.written() <= 1);
            prop_assert_eq!(plain.aws.settled(), crashed.aws.settled());
        }

        #[test]
        fn a_refusal_that_passes_changes_nothing_in_the_end(
            order in orders(),
            aws in worlds(),
            at in 0..12_usize,
            kind in prop_oneof![Just(RefusalKind::Exists), Just(RefusalKind::Absent), Just(RefusalKind::State), pauses()],
            resumed in any::<bool>(),
        ) {
            let troubles = BTreeMap::from([(at, Trouble::Refused(kind))]);
            let plain = Run::of(&order, aws.clone(), &BTreeMap::new(), &BTreeMap::new(), resumed);
            let refused = Run::of(&order, aws, &troubles, &BTreeMap::new(), resumed);
            prop_assert_eq!(is_failure(&plain.outcome), is_failure(&refused.outcome), "{:?} {:?}", plain, refused);
            prop_assert!(refused.aws.written() <= 1);
            prop_assert_eq!(plain.aws.settled(), refused.aws.settled());
        }

        #[test]
        fn whatever_aws_says_there_is_an_end_and_one_version(
            order in orders(),
            aws in worlds(),
            refusals in vec((0..40_usize, prop_oneof![
                Just(Trouble::Refused(RefusalKind::Exists)),
                Just(Trouble::Refused(RefusalKind::Absent)),
                Just(Trouble::Refused(RefusalKind::State)),
                Just(Trouble::Refused(RefusalKind::Invalid)),
                pauses().prop_map(Trouble::Refused),
                crashes(),
            ]), 0..12),
        ) {
            let run = Run::of(&order, aws, &refusals.into_iter().collect(), &BTreeMap::new(), false);
            prop_assert!(run.aws.written() <= 1, "{:?}", run);
        }

        #[test]
        fn what_others_do_meanwhile_is_not_overwritten_once_it_is_seen(
            order in orders(),
            aws in worlds(),
            meddling in vec((0..30_usize, (0..2_usize, prop_oneof![
                3 => Just(Meddling::Write),
                1 => Just(Meddling::Schedule),
                1 => Just(Meddling::Restore),
                1 => Just(Meddling::Remove),
                1 => Just(Meddling::Replicate),
            ])), 0..8),
            crashes in vec((0..30_usize, crashes()), 0..4),
            resumed in any::<bool>(),
        ) {
            let run = Run::of(&order, aws, &crashes.into_iter().collect(), &meddling.into_iter().collect(), resumed);
            prop_assert!(run.aws.written() <= 1, "{:?}", run);
            prop_assert!(run.calls < 200, "{:?}", run);
        }
    }

    #[test]
    fn aws_that_contradicts_itself_is_asked_again_later() {
        let order = Order { operation: Operation::Create, change: Change::Store(name(0)), given: None, writer: None };
        let conditions =
            Conditions { careful: false, believes_absence: false, may_create: true, restored: false, forced: false };
        let mut machine = Machine::new(&order, ours(), &settings(), "us-east-1", conditions);
        for _ in 0..MOST_CALLS {
            let kind = match machine.step() {
                Step::Call(Call::Create(..)) => RefusalKind::Exists,
                Step::Call(_) => RefusalKind::Absent,
                step => panic!("{step:?}"),
            };
            assert_eq!(machine.observe(Err(refusal(kind))), None);
        }
        assert!(matches!(machine.step(), Step::Ended(Outcome::Later(_))), "{:?}", machine.step());
    }

    #[test]
    fn no_secret_is_made_where_none_may_be() {
        let conditions =
            Conditions { careful: false, believes_absence: false, may_create: false, restored: false, forced: false };
        for operation in [Operation::Create, Operation::Rotate] {
            let order = Order { operation, change: Change::Store(name(0)), given: None, writer: None };
            let mut machine = Machine::new(&order, ours(), &settings(), "us-east-1", conditions);
            assert_eq!(machine.step(), Step::Call(Call::Put(name(0))));
            let outcome = machine.observe(Err(refusal(RefusalKind::Absent)));
            let Some(Outcome::Later(later)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(later.reason, "new_secret_limit");
        }
    }
}

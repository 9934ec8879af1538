//! One fault at one step: each call of each operation meets each kind of error that AWS has.

use std::collections::{BTreeMap, BTreeSet};

use keytide_emulator::{Fault, FaultKind};

use crate::{
    PATIENCE, is_thorough,
    reference::{Entry, Extras, Operation, PREFIX, World, json},
    scene::{Scene, within},
    support::Daemon,
};

/// What is there before, and what is asked for: `a` and `b` are names of its own.
type Scenario = (&'static str, fn(&str, &str) -> (Vec<Operation>, Operation));

const SCENARIOS: [Scenario; 15] = [
    ("create", |a, _| (vec![], store("create", a))),
    ("create-over", |a, _| (vec![store("create", a)], store("create", a))),
    ("create-scheduled", |a, _| (vec![plain(a), delete(a)], store("create", a))),
    ("rotate-nothing", |a, _| (vec![], store("rotate", a))),
    ("rotate", |a, _| (vec![plain(a)], store("rotate", a))),
    ("rotate-scheduled", |a, _| (vec![plain(a), delete(a)], store("rotate", a))),
    ("rotate-to", |a, b| (vec![store("create", a)], moved(a, b, true))),
    ("rotate-to-scheduled", |a, b| (vec![store("create", a), plain(b), delete(b)], moved(a, b, true))),
    ("rotate-from-scheduled", |a, b| (vec![plain(a), delete(a)], moved(a, b, true))),
    ("rename", |a, b| (vec![store("create", a)], moved(a, b, false))),
    ("rename-over", |a, b| (vec![store("create", a), plain(b)], moved(a, b, false))),
    ("rename-to-scheduled", |a, b| (vec![store("create", a), plain(b), delete(b)], moved(a, b, false))),
    ("delete", |a, _| (vec![plain(a)], delete(a))),
    ("delete-replicated", |a, _| (vec![store("create", a)], delete(a))),
    ("delete-scheduled", |a, _| (vec![plain(a), delete(a)], delete(a))),
];

/// A call of a scenario: its action, whether it is about the second name, and how many such calls come before it.
type Call = (String, bool, u32);

/// A scene with what must come of it.
struct Steps {
    scene: Scene,
    world: World,
    dropped: usize,
    random: fastrand::Rng,
}

/// One scenario that meets one fault at one of its calls.
struct Case {
    scenario: Scenario,
    call: Call,
    fault: FaultKind,
    a: String,
    b: String,
}

fn extras(is_given: bool) -> Extras {
    let text = || is_given.then(|| "given".to_owned());
    Extras { description: text(), team: text(), replicated: is_given }
}

/// Values are told apart by a number that is put in later.
fn store(op: &'static str, name: &str) -> Operation {
    Operation::Store { op, name: name.to_owned(), value: String::new(), extras: extras(true) }
}

fn plain(name: &str) -> Operation {
    Operation::Store { op: "create", name: name.to_owned(), value: String::new(), extras: extras(false) }
}

fn moved(from: &str, to: &str, valued: bool) -> Operation {
    let value = valued.then(String::new);
    Operation::Move { from: from.to_owned(), to: to.to_owned(), value, extras: extras(false) }
}

fn delete(name: &str) -> Operation {
    Operation::Delete { name: name.to_owned() }
}

fn error(code: &str, status: u16) -> FaultKind {
    FaultKind::Error { code: code.to_owned(), status, message: "no".to_owned() }
}

// === impl Steps ===

impl Steps {
    fn new(lines: &str) -> Self {
        let scene = Scene::with(lines);
        Self { scene, world: World::default(), dropped: 0, random: fastrand::Rng::with_seed(1) }
    }

    /// Drops an entry; answers its file. It must end as the model says, or not, if it is to fail.
    fn drop_entry(&mut self, mut operation: Operation, succeeds: bool) -> String {
        self.dropped += 1;
        if let Operation::Store { value, .. } | Operation::Move { value: Some(value), .. } = &mut operation {
            *value = format!("sk-{}", self.dropped);
        }
        let file = format!("{:020}-steps-1.json", self.dropped);
        if succeeds {
            self.world.apply(&file, &operation);
        }
        let json = json(operation, &mut self.random);
        self.scene.drop_entry(&Entry { file: file.clone(), json });
        file
    }

    /// The calls that each scenario makes where nothing goes wrong.
    fn calls(&mut self, daemon: &mut Daemon) -> BTreeMap<&'static str, Vec<Call>> {
        let names = |label: &str| (format!("{PREFIX}{label}/a"), format!("{PREFIX}{label}/b"));
        self.prepare(daemon, SCENARIOS.iter().map(|scenario| (*scenario, names(scenario.0))));
        self.scene.stage.aws.clear_requests();
        for (label, scenario) in SCENARIOS {
            let (a, b) = names(label);
            self.drop_entry(scenario(&a, &b).1, true);
        }
        self.scene.until_drained(daemon, PATIENCE);
        let requests = self.scene.stage.aws.requests();
        let mut calls: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
        for (label, _) in SCENARIOS {
            let (a, b) = names(label);
            let of_scenario = calls.entry(label).or_default();
            for request in &requests {
                let is_second = request.secret_ids.contains(&b);
                if is_second || request.secret_ids.contains(&a) {
                    let before =
                        of_scenario.iter().filter(|(action, b, _)| *action == request.action && *b == is_second);
                    let before = u32::try_from(before.count()).unwrap();
                    of_scenario.push((request.action.clone(), is_second, before));
                }
            }
            assert!(!of_scenario.is_empty(), "{label} makes no call");
        }
        calls
    }

    fn prepare(&mut self, daemon: &mut Daemon, all: impl Iterator<Item = (Scenario, (String, String))>) {
        for ((_, scenario), (a, b)) in all {
            for operation in scenario(&a, &b).0 {
                self.drop_entry(operation, true);
            }
        }
        self.scene.until_drained(daemon, PATIENCE);
    }

    /// Prepares a case for each scenario that is wanted, each of its calls and each fault; of these only some, unless there
    /// is time.
    fn cases(&mut self, daemon: &mut Daemon, faults: &[FaultKind], wanted: impl Fn(&str) -> bool) -> Vec<Case> {
        let calls = self.calls(daemon);
        let mut cases = Vec::new();
        for scenario in SCENARIOS.into_iter().filter(|(label, _)| wanted(label)) {
            let calls_before = cases.len();
            for (step, call) in calls[scenario.0].iter().enumerate() {
                let some = |i: usize| is_thorough() || (calls_before + step + i).is_multiple_of(3);
                for (i, fault) in faults.iter().enumerate().filter(|(i, _)| some(*i)) {
                    let name = format!("{PREFIX}{}-{step}-{i}", scenario.0);
                    let (a, b) = (format!("{name}/a"), format!("{name}/b"));
                    cases.push(Case { scenario, call: call.clone(), fault: fault.clone(), a, b });
                }
            }
        }
        self.prepare(daemon, cases.iter().map(|case| (case.scenario, (case.a.clone(), case.b.clone()))));
        self.scene.stage.aws.clear_requests();
        cases
    }

    /// Sets the fault of a case, and drops its entry.
    fn begin(&mut self, case: &Case, times: Option<u32>, succeeds: bool) -> String {
        let (action, is_second, before) = &case.call;
        let name = if *is_second { &case.b } else { &case.a };
        let fault = Fault::on(action).secret(name).skip(*before).kind(case.fault.clone());
        self.scene.stage.aws.fault(Fault { times, ..fault });
        self.drop_entry((case.scenario.1)(&case.a, &case.b).1, succeeds)
    }

    fn check(&self) {
        let (wrong, _) = self.world.compare(&self.scene.stage.aws);
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(self.scene.failed(), self.world.failed);
    }
}

impl Case {
    fn shown(&self) -> String {
        format!("{} with {:?} at {:?}", self.scenario.0, self.fault, self.call)
    }
}

#[test]
fn what_passes_is_tried_again_at_each_step_until_it_is_stored_once() {
    let (code, message) = ("InternalServiceError".to_owned(), "once more".to_owned());
    let faults = [
        FaultKind::InternalError,
        FaultKind::CutAfter(0),
        FaultKind::ErrorAfter { code, status: 500, message },
        FaultKind::Hang,
        FaultKind::ExpiredToken,
        error("SignatureDoesNotMatch", 400),
        FaultKind::Body("<html>".to_owned()),
    ];
    // Only so long does it wait for what does not answer.
    let mut steps = Steps::new("refresh: {call_timeout: 1s}");
    let mut daemon = steps.scene.stage.run();
    let cases = steps.cases(&mut daemon, &faults, |_| true);
    for case in &cases {
        // The SDK does not read the body of an answer that has nothing to say.
        let unread = case.call.0 == "TagResource" || case.call.0 == "UntagResource";
        if !(unread && matches!(case.fault, FaultKind::Body(_))) {
            steps.begin(case, Some(1), true);
        }
    }
    steps.scene.until_drained(&mut daemon, PATIENCE);
    steps.check();
}

#[test]
fn throttling_at_each_step_is_obeyed_and_the_entry_stored_once() {
    let mut steps = Steps::new("");
    let mut daemon = steps.scene.stage.run();
    let faults = [FaultKind::Throttle, error("TooManyRequestsException", 400)];
    // Each throttling makes the others slower.
    let few = ["create-scheduled", "rename-to-scheduled", "delete-replicated"];
    let few = if is_thorough() { &few[..] } else { &few[..1] };
    let cases = steps.cases(&mut daemon, &faults, |label| few.contains(&label));
    for case in &cases {
        steps.begin(case, Some(1), true);
    }
    steps.scene.until_drained(&mut daemon, PATIENCE);
    steps.check();
    assert!(daemon.metric("keytide_spool_throttles_total", &[]) >= 3.0);
}

#[test]
fn what_somebody_has_to_put_right_stays_at_each_step_until_it_is() {
    const CODES: [&str; 4] =
        ["AccessDeniedException", "EncryptionFailure", "LimitExceededException", "NobodyHeardOfItException"];
    let faults = CODES.map(|code| error(code, 400));
    let mut steps = Steps::new("");
    let mut daemon = steps.scene.stage.run();
    let cases = steps.cases(&mut daemon, &faults, |_| true);
    for case in &cases {
        steps.begin(case, None, true);
    }
    // Until each was tried.
    let struck = |steps: &Steps| {
        let requests = steps.scene.stage.aws.requests();
        requests.iter().filter(|request| CODES.contains(&request.outcome.as_str())).count()
    };
    assert!(within(PATIENCE, || struck(&steps) >= cases.len()), "{} of {}", struck(&steps), cases.len());
    // Few find another way: who tries again looks first, and does without the call that is refused.
    let claimed = steps.scene.claimed().len();
    assert!(claimed * 10 > cases.len() * 9, "{claimed} of {} wait", cases.len());
    assert_eq!(steps.scene.failed(), BTreeSet::new());
    // Once it is put right, and keytide does not wait any longer.
    steps.scene.stage.aws.clear_faults();
    daemon.kill();
    let mut daemon = steps.scene.stage.run();
    steps.scene.until_drained(&mut daemon, PATIENCE);
    steps.check();
}

#[test]
fn a_request_that_aws_refuses_as_it_is_fails_at_each_step() {
    let faults = [error("ValidationException", 400), error("InvalidParameterException", 400)];
    let mut steps = Steps::new("");
    let mut daemon = steps.scene.stage.run();
    let cases = steps.cases(&mut daemon, &faults, |_| true);
    let mut files = BTreeMap::new();
    for case in &cases {
        // Name and window of a delete are legal: AWS says so while there are replicas still, and it is tried again.
        let action = case.call.0.as_str();
        let passes = matches!(action, "RemoveRegionsFromReplication" | "DeleteSecret")
            || action == "PutSecretValue" && case.scenario.0 == "rotate-nothing";
        let file = steps.begin(case, Some(1), passes);
        if !passes {
            files.insert(file, case);
        }
    }
    steps.scene.until_drained(&mut daemon, PATIENCE);
    let failed = steps.scene.failed();
    for (file, case) in &files {
        assert!(failed.contains(file), "{} did not fail", case.shown());
    }
    for (file, case) in &files {
        let reason: serde_json::Value = serde_json::from_str(&steps.scene.reason(file)).unwrap();
        assert_eq!(reason["reason"], "refused", "{}: {reason}", case.shown());
        for name in [&case.a, &case.b] {
            let versions = steps.scene.stage.aws.secret(name).map(|secret| secret.versions).unwrap_or_default();
            let ids: BTreeSet<&str> = versions.iter().map(|version| version.id.as_str()).collect();
            assert_eq!(ids.len(), versions.len());
            steps.world.forget(name);
        }
    }
    steps.world.failed.extend(files.into_keys());
    steps.check();
}

//! What somebody else does to the Secret is put right, soon and without AWS; and nothing is written without need.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    gate::Recorded,
    stage::{KubeStage, LEASE, SECRET, hub},
    support::{Daemon, patiently, until, within},
};

const KEYS: &str = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]";
const SETTINGS: &str = ", labels: {app: web}, annotations: {team: core}";
const REPAIRS: &str = "keytide_output_repairs_total";
/// Longer than what must not happen would take.
const MOMENT: Duration = Duration::from_millis(1500);
/// The longest that a repair takes on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// From one repair to the next, once somebody fights for it.
const MINUTE: Duration = Duration::from_mins(1);

/// What somebody does to the Secret at this path.
type Deed = fn(&KubeStage, &str);

/// A hub that has written two keys.
fn stage() -> (KubeStage, Daemon) {
    let stage = KubeStage::with(&hub(SETTINGS, KEYS));
    stage.stage.aws.put("prod/a", "1");
    stage.stage.aws.put("prod/b", "b");
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "1", "B": "b"}));
    daemon.until_ready();
    stage.until_output("written", &[]);
    // All that a start asks for has come.
    until("a watch", || stage.gate.count(Recorded::is_watch) > 0);
    until("the Event", || stage.namespace.events().iter().any(|event| event["reason"] == "Synced"));
    (stage, daemon)
}

/// What keytide answers for in the Secret.
fn held(stage: &KubeStage) -> Option<Value> {
    let secret = stage.namespace.secret(SECRET)?;
    let metadata = &secret["metadata"];
    Some(json!([secret["type"], secret["data"], metadata["labels"], metadata["annotations"]]))
}

fn patch_as(stage: &KubeStage, path: &str, change: &Value, manager: &str) {
    stage.api.merge_patch_as(path, change, manager);
}

fn reads(stage: &KubeStage) -> usize {
    ["GetSecretValue", "BatchGetSecretValue"].iter().map(|action| stage.stage.aws.count(action)).sum()
}

fn is_of_lease(request: &Recorded) -> bool {
    request.path.ends_with(&format!("/leases/{LEASE}"))
}

/// Does each, and waits until it is undone. At most three: the fourth within a minute is a fight.
fn are_undone(deeds: &[(&str, Deed)]) {
    let (stage, daemon) = stage();
    let (before, reads_before) = (held(&stage), reads(&stage));
    stage.gate.clear_requests();
    for (number, (what, deed)) in (1_u8..).zip(deeds) {
        deed(&stage, &stage.path());
        let began = Instant::now();
        let undone = patiently(|| held(&stage) == before);
        assert!(undone, "{what}: {:?}; the log:\n{}", held(&stage), daemon.log());
        let took = stage.last_write().saturating_duration_since(began);
        assert!(took < SOON, "{what}: {took:?}");
        until("the metric", || daemon.metric(REPAIRS, &[]) == f64::from(number));
        stage.until_output("written", &[]);
    }
    assert_eq!(reads(&stage), reads_before);
    // The watch that was open told it all.
    assert_eq!(stage.gate.count(|request| request.method == "GET" && !is_of_lease(request)), 0);
    assert_eq!(daemon.metric("keytide_output_contested", &[]), 0.0);
}

#[test]
fn changed_and_removed_keys_are_put_back_within_seconds() {
    are_undone(&[
        ("an edit", |stage, path| patch_as(stage, path, &json!({"data": {"A": "eA=="}}), "kubectl-edit")),
        ("a key removed", |stage, path| patch_as(stage, path, &json!({"data": {"B": null}}), "kubectl-patch")),
        ("all keys removed", |stage, path| patch_as(stage, path, &json!({"data": null}), "kubectl-edit")),
    ]);
}

#[test]
fn changed_and_removed_labels_and_annotations_are_put_back_within_seconds() {
    are_undone(&[
        ("a label", |stage, path| {
            patch_as(stage, path, &json!({"metadata": {"labels": {"app": "other"}}}), "kubectl-label");
        }),
        ("all labels", |stage, path| patch_as(stage, path, &json!({"metadata": {"labels": null}}), "kubectl-edit")),
        ("all annotations", |stage, path| {
            patch_as(stage, path, &json!({"metadata": {"annotations": null}}), "kubectl-edit");
        }),
    ]);
}

#[test]
fn a_deleted_secret_is_made_again_and_one_that_another_took_is_taken_back() {
    are_undone(&[
        ("a deletion", |stage, path| stage.api.delete(path)),
        ("an apply of somebody else", |stage, path| {
            let theirs = json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": {"A": "eA==", "B": "eA=="},
            });
            stage.api.apply(path, &theirs, "argocd-controller", true);
        }),
        ("another deletion", |stage, path| stage.api.delete(path)),
    ]);
}

#[test]
fn what_happened_while_the_watch_was_down_is_put_right_too() {
    let (stage, daemon) = stage();
    let before = held(&stage);
    stage.gate.set_down(true);
    patch_as(&stage, &stage.path(), &json!({"data": {"A": "eA=="}}), "kubectl-edit");
    thread::sleep(MOMENT);
    stage.gate.set_down(false);
    assert!(patiently(|| held(&stage) == before), "{}", daemon.log());
    // Only that one object is ever listed.
    let collection = stage.namespace.path("secrets");
    let name = format!("metadata.name%3D{SECRET}");
    assert_eq!(stage.gate.count(|request| request.path == collection && !request.query.contains(&name)), 0);
}

#[test]
fn what_is_others_is_none_of_its_business() {
    let (stage, daemon) = stage();
    let writes = stage.writes().len();
    let theirs =
        json!({"metadata": {"labels": {"theirs": "yes"}, "finalizers": ["example.com/held"]}, "data": {"C": "eA=="}});
    patch_as(&stage, &stage.path(), &theirs, "kubectl-edit");
    thread::sleep(MOMENT);
    assert_eq!((stage.writes().len(), daemon.metric(REPAIRS, &[])), (writes, 0.0));
    // One that cannot go yet is nobody's to write.
    stage.api.delete(&stage.path());
    stage.until_output("failing", &["being deleted", "finalizers"]);
    assert_eq!(stage.writes().len(), writes);
    patch_as(&stage, &stage.path(), &json!({"metadata": {"finalizers": null}}), "kubectl-edit");
    stage.until_values(&daemon, &json!({"A": "1", "B": "b"}));
}

#[test]
fn who_fights_for_it_is_answered_a_few_times_and_then_seldom() {
    let (stage, daemon) = stage();
    let (before, writes) = (held(&stage), stage.writes().len());
    let contested = || daemon.metric("keytide_output_contested", &[]);
    let began = Instant::now();
    // At least so long, and until it has come to a fight.
    while began.elapsed() < Duration::from_secs(10) || (contested() == 0.0 && began.elapsed() < MINUTE / 2) {
        if held(&stage) == before {
            patch_as(&stage, &stage.path(), &json!({"data": {"A": "eA=="}}), "other-controller");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let repairs = daemon.metric(REPAIRS, &[]);
    assert!((1.0..=4.0).contains(&repairs), "{repairs}");
    // One is refused, since the field is another one's, and the next takes it.
    let tried = stage.writes().len() - writes;
    assert!(tried <= 8, "{tried}");
    assert_eq!(contested(), 1.0);
    stage.until_output("failing", &["again and again"]);
    let tells = |event: &Value| event["reason"] == "Contested" && event["type"] == "Warning";
    until("the Event", || stage.namespace.events().iter().any(tells));
    assert_eq!(daemon.get("/readyz").status, 200);
    // The other one has given up.
    let first = stage.writes().into_iter().skip(writes).find(|write| write.status == Some(200)).unwrap();
    assert!(within(MINUTE + SOON * 4, || held(&stage) == before), "{}", daemon.log());
    let took = stage.last_write() - first.at;
    assert!(took < MINUTE + SOON * 2, "{took:?}: {}", daemon.log());
    until("peace", || contested() == 0.0);
    stage.until_output("written", &[]);
}

#[test]
fn a_hundred_refreshes_without_news_are_no_write_and_no_call_but_of_the_lease() {
    let (stage, daemon) = stage();
    let (version, reads_before) = (stage.version(), reads(&stage));
    stage.gate.clear_requests();
    for _ in 0..100 {
        daemon.hang_up();
    }
    assert_eq!(stage.version(), version);
    assert!(reads(&stage) >= reads_before + 200);
    let others: Vec<Recorded> = stage.gate.requests().into_iter().filter(|request| !is_of_lease(request)).collect();
    assert!(others.is_empty(), "{others:?}");
}

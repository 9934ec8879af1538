//! The Role that keytide prints: it is enough, nothing in it is too much, and what is missing of it is said.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    namespace::Namespace,
    stage::{KubeStage, LEASE, SECRET, hub, state_of},
    support::{Daemon, stderr, stdout, until},
};

const KEY: &str = "keys: [{name: A, secret: prod/a}]";
/// Several pauses between two attempts.
const A_WHILE: Duration = Duration::from_secs(7);

/// A hub whose service account may do nothing yet, with `1` in `prod/a`, and the Role that it would need.
fn stage() -> (KubeStage, Value) {
    let stage = KubeStage::new(ControlPlane::shared());
    stage.stage.aws.put("prod/a", "1");
    let role = stage.role(&stage.config(&hub("", KEY)));
    (stage, role)
}

/// The Role without one verb of one resource.
fn without(role: &Value, resource: &str, verb: &str) -> Value {
    let mut role = role.clone();
    let mut found = 0;
    for rule in role["rules"].as_array_mut().unwrap() {
        if rule["resources"] == json!([resource]) {
            let verbs = rule["verbs"].as_array_mut().unwrap();
            let before = verbs.len();
            verbs.retain(|other| other != verb);
            found += before - verbs.len();
        }
    }
    assert_eq!(found, 1, "{verb} {resource}");
    role
}

/// What the message about a missing verb has to name.
fn named(verb: &str, group: &str, resource: &str, name: &str) -> [String; 2] {
    [
        format!("may not {verb} {resource} {name}"),
        format!("{{apiGroups: [\"{group}\"], resources: [{resource}], resourceNames: [{name}], verbs: [{verb}]}}"),
    ]
}

/// All is well, perhaps only after the pause that follows a refusal: the API server sees a new Role a moment later.
fn written(stage: &KubeStage, daemon: &Daemon, value: &str) {
    stage.until_values_at_last(daemon, &json!({"A": value}));
    stage.until_output("written", &[]);
    daemon.until_ready();
}

/// Starts without a verb, hears of it, and recovers once it is there.
fn is_missed(verb: &str, group: &str, resource: &str, name: &str) {
    let (stage, role) = stage();
    stage.namespace.role(&without(&role, resource, verb));
    let daemon = stage.run();
    let [may_not, add] = named(verb, group, resource, name);
    stage.until_output("failing", &[&may_not, &add]);
    assert!(daemon.log().contains(&may_not), "{}", daemon.log());
    assert_eq!((daemon.get("/readyz").status, daemon.get("/livez").status), (503, 200));
    stage.namespace.role(&role);
    written(&stage, &daemon, "1");
    assert_eq!(daemon.log().matches(&may_not).count(), 1, "once is enough: {}", daemon.log());
}

#[test]
fn the_printed_role_is_enough_and_each_rule_names_its_object() {
    let (stage, role) = stage();
    // As `kubectl apply` would send it.
    let output = stage.policy(&stage.stage.path("keytide.yaml"), &[]);
    let path = stage.namespace.path("roles");
    let reply = stage.api.ask_text("POST", &path, Some(("application/yaml", stdout(&output)))).unwrap();
    assert_eq!(reply.status, 201, "{reply:?}");
    assert_eq!((&role["kind"], &role["apiVersion"]), (&json!("Role"), &json!("rbac.authorization.k8s.io/v1")));
    let made = stage.api.get(&stage.namespace.path("roles/keytide")).unwrap();
    assert_eq!(made["rules"], role["rules"], "the YAML and the JSON say the same");
    for rule in role["rules"].as_array().unwrap() {
        assert!(rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty()), "{rule}");
        assert!(!rule.to_string().contains('*'), "{rule}");
    }
    stage.namespace.role(&role);
    let daemon = stage.run();
    written(&stage, &daemon, "1");
    stage.api.delete(&stage.path());
    stage.until_values(&daemon, &json!({"A": "1"}));
    until("the Events", || stage.namespace.events().len() >= 2);
    assert_eq!(stage.gate.count(|request| request.status == Some(403)), 0);
    assert!(!daemon.log().contains("forbidden"), "{}", daemon.log());
}

#[test]
fn nothing_else_can_be_made_read_or_changed_with_it() {
    let (stage, role) = stage();
    stage.namespace.role(&role);
    let keytide = stage.namespace.api(&stage.namespace.token());
    let (own, other) = (Namespace::path, Namespace::new(ControlPlane::shared()));
    let object = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    let apply = |path: &str, name: &str| keytide.try_apply(path, &object(name), "keytide", true).unwrap().status;
    assert_eq!(apply(&own(&stage.namespace, "secrets/another"), "another"), 403);
    assert_eq!(apply(&other.path(&format!("secrets/{SECRET}")), SECRET), 403);
    assert_eq!(apply(&stage.path(), SECRET), 201);
    let status = |method: &str, path: &str, body: Option<&Value>| {
        keytide.ask(method, path, body.map(|body| ("application/json", body))).unwrap().status
    };
    let secrets = own(&stage.namespace, "secrets");
    assert_eq!(status("POST", &secrets, Some(&object("another"))), 403);
    assert_eq!(status("POST", &secrets, Some(&object(SECRET))), 403);
    for path in
        [&*secrets, "/api/v1/secrets", &own(&stage.namespace, "secrets/another"), &own(&stage.namespace, "leases")]
    {
        assert_eq!(status("GET", path, None), 403, "{path}");
    }
    assert_eq!(status("DELETE", &stage.path(), None), 403);
}

#[test]
fn a_verb_of_the_secret_that_is_missing_is_named() {
    for verb in ["list", "watch", "patch", "create"] {
        is_missed(verb, "", "secrets", SECRET);
    }
}

#[test]
fn a_verb_of_the_lease_that_is_missing_is_named() {
    for verb in ["get", "patch", "create"] {
        is_missed(verb, "coordination.k8s.io", "leases", LEASE);
    }
}

#[test]
fn the_right_to_get_the_secret_is_for_check_alone() {
    let (stage, role) = stage();
    stage.namespace.role(&without(&role, "secrets", "get"));
    let daemon = stage.run();
    written(&stage, &daemon, "1");
    assert_eq!(stage.gate.count(|request| request.status == Some(403)), 0);
    let output = check(&stage, &[]);
    assert_eq!(output.0, 1);
    assert!(output.1.contains(&format!("may not get secrets {SECRET}")), "{}", output.1);
}

#[test]
fn events_that_may_not_be_told_are_no_trouble_of_the_secret_but_are_said() {
    for verb in ["patch", "create"] {
        let (stage, role) = stage();
        stage.namespace.role(&without(&role, "events", verb));
        let daemon = stage.run();
        written(&stage, &daemon, "1");
        let [may_not, _] = named(verb, "", "events", &format!("{SECRET}.keytide-synced"));
        daemon.until_log(&may_not);
        stage.namespace.role(&role);
        stage.stage.aws.put("prod/a", "2");
        daemon.hang_up();
        until("an Event", || stage.namespace.events().iter().any(|event| event["reason"] == "Updated"));
    }
}

#[test]
fn a_right_that_is_taken_away_is_missed_and_all_goes_on_when_it_is_back() {
    let (stage, role) = stage();
    stage.namespace.role(&role);
    let daemon = stage.run();
    written(&stage, &daemon, "1");
    for verb in ["patch", "list", "watch"] {
        stage.namespace.take_role("keytide");
        stage.namespace.role(&without(&role, "secrets", verb));
        let [may_not, add] = named(verb, "", "secrets", SECRET);
        if verb == "patch" {
            stage.stage.aws.put("prod/a", "2");
            daemon.hang_up();
        } else {
            stage.gate.cut_connections();
        }
        stage.until_output("failing", &[&may_not, &add]);
        // And not now and then that all is well.
        let deadline = Instant::now() + A_WHILE;
        while Instant::now() < deadline {
            assert_eq!(state_of(|| stage.output()), "failing", "{}", daemon.log());
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(daemon.get("/readyz").status, 200);
        stage.namespace.role(&role);
        written(&stage, &daemon, "2");
    }
}

/// `check --online`: its exit code and what it says.
fn check(stage: &KubeStage, more: &[&str]) -> (i32, String) {
    let config = stage.stage.path("keytide.yaml").display().to_string();
    let output = stage.stage.keytide(&[&["check", "--online", "--config", &config], more].concat());
    (output.status.code().unwrap_or(-1), stdout(&output) + &stderr(&output))
}

#[test]
fn check_online_finds_each_missing_verb_and_changes_nothing() {
    let (stage, role) = stage();
    let (code, said) = check(&stage, &[]);
    assert_eq!(code, 1);
    for rule in role["rules"].as_array().unwrap() {
        for (verb, name) in rule["verbs"].as_array().unwrap().iter().flat_map(|verb| {
            rule["resourceNames"]
                .as_array()
                .unwrap()
                .iter()
                .map(move |name| (verb.as_str().unwrap(), name.as_str().unwrap()))
        }) {
            let resource = rule["resources"][0].as_str().unwrap();
            let part = format!("may not {verb} {resource} {name} in namespace {}", stage.namespace.name());
            assert!(said.contains(&part), "{part}: {said}");
        }
    }
    for (resource, verb, name) in [("secrets", "watch", SECRET), ("leases", "patch", LEASE)] {
        stage.namespace.role(&without(&role, resource, verb));
        let (code, said) = check(&stage, &[]);
        stage.namespace.take_role("keytide");
        assert_eq!((code, said.matches("may not").count()), (1, 1), "{said}");
        assert!(said.contains(&format!("may not {verb} {resource} {name}")), "{said}");
    }
    stage.namespace.role(&role);
    let (code, said) = check(&stage, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("secrets/{SECRET}: to be made")) && said.contains("held by nobody"), "{said}");
    assert_eq!((stage.namespace.secret(SECRET), stage.namespace.lease(LEASE)), (None, None));
    let changes = |method: &str, path: &str| method != "GET" && !path.ends_with("/selfsubjectaccessreviews");
    assert_eq!(stage.gate.count(|request| changes(&request.method, &request.path)), 0);
}

#[test]
fn check_online_says_whose_secret_it_is_and_what_is_in_the_way() {
    let (stage, role) = stage();
    stage.namespace.role(&role);
    stage.make_secret(json!({"type": "example.com/other"}));
    let (code, said) = check(&stage, &[]);
    assert_eq!(code, 1);
    assert!(said.contains("is not keytide's") && said.contains("adopt: true"), "{said}");
    stage.config(&hub(", adopt: true", KEY));
    let (code, said) = check(&stage, &[]);
    assert_eq!(code, 1);
    assert!(said.contains("type example.com/other, not Opaque"), "{said}");
    stage.config(&hub(", adopt: true, type: example.com/other", KEY));
    let (code, said) = check(&stage, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("to be adopted"), "{said}");
    let daemon = stage.run();
    written(&stage, &daemon, "1");
    let (code, said) = check(&stage, &["--output", "json"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("\"keytide's\"") && said.contains("keytide-0_"), "{said}");
}

#[test]
fn a_role_is_printed_for_all_outputs_or_for_none() {
    let stage = KubeStage::new(ControlPlane::shared());
    let several = "aws: {region: us-east-1}\noutputs:\n  - kubernetes_secret: {name: one}\n  - kubernetes_secret: {name: two, create: \
                   false, lease: a-lease}\n  - env_file: {path: \"{dir}/env/keys.json\"}\nkeys: [{name: A, secret: prod/a}]";
    let role = stage.role(&stage.config(several));
    let find = |resource: &str, name: &str| -> Vec<String> {
        let rules = role["rules"].as_array().unwrap().iter();
        let of = rules.filter(|rule| {
            rule["resources"] == json!([resource]) && rule["resourceNames"].as_array().unwrap().contains(&json!(name))
        });
        of.flat_map(|rule| rule["verbs"].as_array().unwrap().clone())
            .map(|verb| verb.as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(find("secrets", "one"), ["get", "list", "watch", "patch", "create"]);
    assert_eq!(find("secrets", "two"), ["get", "list", "watch", "patch"]);
    assert_eq!(find("leases", "keytide-one"), ["get", "patch", "create"]);
    assert_eq!(find("leases", "a-lease"), ["get", "patch", "create"]);
    assert_eq!(find("events", "two.keytide-refused"), ["patch", "create"]);
    stage.namespace.role(&role);
    let none = stage.config("aws: {region: us-east-1}\noutputs:\n  - env_file: {path: \"{dir}/env/keys.json\"}\nkeys: [{name: A, secret: prod/a}]");
    let output = stage.policy(&none, &[]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), String::new()));
    assert!(stderr(&output).contains("needs no Role"), "{}", stderr(&output));
}

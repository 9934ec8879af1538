//! `keytide policy` says what is needed: with exactly that everything works, and without any part of it the complaint names
//! the part, on what, and who lacks it.

use std::{process::Output, thread, time::Duration};

use keytide_emulator::{PodIdentity, Role, Seed, Statement, User};
use serde_json::{Value, json};

use crate::support::{Stage, stderr, stdout, until};

const ACCOUNT: &str = "123456789012";
const ROOT: &str = "arn:aws:iam::123456789012:root";
const ONE: &str = "arn:aws:iam::123456789012:role/one";
const TWO: &str = "arn:aws:iam::123456789012:role/two";
const POD: &str = "arn:aws:iam::123456789012:role/eks/pod";
const KEY_ID: &str = "AKIAPOOREXAMPLE";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6YTpiIn0.c2lnbmF0dXJl";
const BATCH: &str = "secretsmanager:BatchGetSecretValue";
const GET: &str = "secretsmanager:GetSecretValue";
const SOME: &str = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]\n";
const MANY: &str = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}, {name: C, secret: prod/c}, \
                    {name: D, secret: prod/d}, {name: E, secret: prod/e}, {name: F, secret: prod/f}]\n";
const NAMES: [&str; 6] = ["prod/a", "prod/b", "prod/c", "prod/d", "prod/e", "prod/f"];

/// Identities that may do nothing yet, and a configuration that needs something of them.
struct Scene {
    stage: Stage,
    /// Whom the policies call by words, as the emulator knows it.
    base: &'static str,
    /// The same, as messages call it.
    called: String,
    /// How `policy` is told where credentials come from.
    way: &'static str,
}

/// What somebody may do.
#[derive(Clone)]
struct Grant {
    /// As the emulator knows it.
    who: String,
    /// As messages call it.
    called: String,
    statements: Vec<Statement>,
}

impl Scene {
    /// Static keys of a user of this account.
    fn of_user(account: &str, roles: &[Role], aws: &str, rest: &str) -> Self {
        Self::of_user_in(seed(roles), account, aws, rest)
    }

    fn of_user_in(seed: Seed, account: &str, aws: &str, rest: &str) -> Self {
        let user = User::new("poor", KEY_ID, "poor").account(account);
        let mut scene = Self::with(seed.user(user), KEY_ID, KEY_ID, aws, rest);
        scene.stage.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", "poor");
        scene.way = "other";
        scene
    }

    /// A pod with EKS Pod Identity.
    fn of_pod_identity(roles: &[Role], aws: &str, rest: &str) -> Self {
        let mut seed = seed(roles).role(Role { path: "/eks/".to_owned(), ..Role::new("pod") });
        seed.pod_identity = Some(PodIdentity::new(POD));
        let mut scene = Self::with(seed, POD, "", aws, rest);
        let address = scene.stage.aws.address();
        scene.called = format!("the agent at {address}");
        scene.way = "pod-identity";
        let token = scene.stage.write("token", TOKEN).display().to_string();
        scene.stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("http://{address}/v1/credentials"));
        scene.stage.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token);
        scene
    }

    /// A pod with IRSA.
    fn of_irsa(roles: &[Role], aws: &str, rest: &str) -> Self {
        let role = Role { path: "/eks/".to_owned(), ..Role::new("pod").trusts_web_identity() };
        let mut scene = Self::with(seed(roles).role(role), POD, POD, aws, rest);
        let token = scene.stage.write("token", TOKEN).display().to_string();
        scene.stage.env("AWS_ROLE_ARN", POD).env("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
        scene
    }

    fn with(seed: Seed, base: &'static str, called: &str, aws: &str, rest: &str) -> Self {
        let mut stage = Stage::with(seed);
        stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        for name in NAMES {
            stage.aws.put(name, r#"{"user": "u"}"#);
        }
        let arn = stage.aws.arn("prod/a").unwrap();
        let rest = rest.replace("{arn}", &arn).replace("{bare}", arn.rsplit_once('-').unwrap().0);
        stage.config(&format!(
            "aws: {{region: us-east-1{aws}}}\nrefresh: {{interval: 700h, call_timeout: 10s}}\noutputs:\n  - env_file: \
             {{path: \"{{dir}}/env/keys.json\", format: json}}\n{rest}"
        ));
        Self { stage, base, called: called.to_owned(), way: "irsa" }
    }

    fn keytide(&self, command: &[&str], more: &[&str]) -> Output {
        let config = self.stage.path("keytide.yaml").display().to_string();
        self.stage.keytide(&[command, &["--config", &config], more].concat())
    }

    fn documents(&self, more: &[&str]) -> Vec<Value> {
        let output = self.keytide(&["policy", "--output", "json"], more);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What everybody needs, says `keytide policy`.
    fn grants(&self) -> Vec<Grant> {
        let provider = ["--oidc-provider", "oidc.example.com/id/A", "--service-account", "a:b", "--identity", self.way];
        let documents = self.documents(&[&["--account", ACCOUNT][..], &provider].concat());
        assert_minimal(&documents);
        let permissions = documents.iter().filter(|document| document["kind"] == "permissions");
        let grants = permissions.map(|document| {
            let of = document["of"].as_str().unwrap();
            let is_arn = of.starts_with("arn:");
            let (who, called) = if is_arn { (of, of) } else { (self.base, self.called.as_str()) };
            let statements = statements(&document["document"]);
            Grant { who: who.to_owned(), called: called.to_owned(), statements }
        });
        grants.collect()
    }

    fn give(&self, grants: &[Grant]) {
        for Grant { who, called: _, statements } in grants {
            self.stage.aws.allow(who, statements);
        }
    }

    fn check(&self) -> Value {
        serde_json::from_slice(&self.keytide(&["check", "--online", "--output", "json"], &[]).stdout).unwrap()
    }

    fn assert_works(&self) {
        for output in [self.stage.once(), self.keytide(&["check", "--online"], &[])] {
            assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
            assert!(!stderr(&output).contains("denied"), "{}", stderr(&output));
        }
    }

    /// With what is printed it works; without any action it complains of that action, or says how it goes on without it.
    fn walk(&self, expected: &[(&str, &str)]) {
        let grants = self.grants();
        self.give(&grants);
        self.assert_works();
        let mut seen = Vec::new();
        for (i, grant) in grants.iter().enumerate() {
            for (j, statement) in grant.statements.iter().enumerate() {
                for action in &statement.actions {
                    let mut less = grants.clone();
                    less[i].statements[j].actions.retain(|other| other != action);
                    self.give(&less);
                    let report = self.assert_complains(action, &statement.resources, &grant.called);
                    if action.starts_with("secretsmanager:") {
                        self.assert_is_enough(&report["online"]["allow"], &less[i]);
                    }
                    seen.push((grant.called.as_str(), action.as_str()));
                }
            }
        }
        seen.sort_unstable();
        let mut expected: Vec<_> =
            expected.iter().map(|(who, action)| (if who.is_empty() { &self.called } else { *who }, *action)).collect();
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }

    /// `run` and `check` name the action, and the one who lacks it; `check` names every secret. What `check` reports.
    fn assert_complains(&self, action: &str, resources: &[String], called: &str) -> Value {
        let run = if action == BATCH { self.stage.once() } else { self.stage.once_in_vain("600ms") };
        let check = self.keytide(&["check", "--online", "--output", "json"], &[]);
        let report: Value = serde_json::from_slice(&check.stdout).unwrap();
        let told = format!("{}{}", report["problems"], stderr(&check));
        for (code, said) in [(run.status.code(), stderr(&run)), (check.status.code(), told.clone())] {
            assert_eq!(code, Some(i32::from(action != BATCH)), "without {action}: {said}");
            for part in [action, called] {
                assert!(said.contains(part), "without {action} to {called}, {part} is not named: {said}");
            }
        }
        for resource in resources.iter().filter(|resource| *resource != "*") {
            let name = resource.rsplit(":secret:").next().unwrap();
            let name = name.strip_suffix("-??????").unwrap_or(name);
            assert!(told.contains(name), "without {action}, {name} is not named: {told}");
        }
        report
    }

    /// What `check` says would allow it does so, and is no more than that.
    fn assert_is_enough(&self, allow: &Value, lacking: &Grant) {
        assert_minimal(&[json!({"document": allow})]);
        let statements = [lacking.statements.clone(), statements(allow)].concat();
        self.give(&[Grant { statements, ..lacking.clone() }]);
        let report = self.check();
        assert!(report["ok"] == true && report["online"]["batch_denied"] == false, "{allow} is not enough: {report}");
    }
}

fn seed(roles: &[Role]) -> Seed {
    roles.iter().fold(Seed::default(), |seed, role| seed.role(role.clone()))
}

/// A role that leaves it to the policies of its own account who may be it.
fn role(name: &str) -> Role {
    Role::new(name).trusts(ROOT)
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn statements(document: &Value) -> Vec<Statement> {
    let all = document["Statement"].as_array().unwrap().iter();
    all.map(|one| Statement::new(texts(&one["Action"]), texts(&one["Resource"]))).collect()
}

/// No more than is needed: whole actions, whole secrets, and nothing left to fill in.
fn assert_minimal(documents: &[Value]) {
    for document in documents {
        assert!(!document.to_string().contains("ACCOUNT"), "{document}");
        let policy = &document["document"];
        assert_eq!(policy["Version"], "2012-10-17", "{policy}");
        for statement in policy["Statement"].as_array().unwrap() {
            assert_eq!(statement["Effect"], "Allow");
            let actions = texts(&statement["Action"]);
            assert!(!actions.iter().any(|action| action.contains(['*', '?'])), "{statement}");
            let Some(resources) = statement.get("Resource") else { continue };
            let resources = texts(resources);
            if actions == [BATCH] {
                assert_eq!(resources, ["*"]);
            } else {
                assert!(resources.iter().all(|resource| !resource.contains('*')), "{statement}");
            }
        }
    }
}

fn roles(list: &str) -> String {
    format!(", roles: [{list}]")
}

#[test]
fn a_few_secrets_need_to_be_read_and_nothing_else() {
    Scene::of_user(ACCOUNT, &[], "", SOME).walk(&[("", GET)]);
}

#[test]
fn many_secrets_may_be_read_in_a_batch_and_go_on_one_by_one_without() {
    Scene::of_user(ACCOUNT, &[], "", MANY).walk(&[("", GET), ("", BATCH)]);
}

#[test]
fn a_stage_a_primary_secret_and_arns_are_each_named_as_narrowly_as_they_can_be() {
    let rest = "primary_secret: {name: prod/b}\nkeys: [{name: A, secret: \"{arn}\"}, {name: A2, secret: \"{bare}\"}, \
                {name: C, secret: prod/c, version_stage: AWSCURRENT}]\n";
    let scene = Scene::of_user(ACCOUNT, &[], "", rest);
    let arn = scene.stage.aws.arn("prod/a").unwrap();
    scene.walk(&[("", GET)]);
    let resources = scene.grants()[0].statements[0].resources.clone();
    let here = |name: &str| format!("arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:{name}-??????");
    // The six characters are random, and sort before or behind the question marks.
    let mut expected = [here("prod/a"), arn, here("prod/b"), here("prod/c")];
    expected.sort_unstable();
    assert_eq!(resources, expected);
}

#[test]
fn every_secret_of_a_mix_is_needed_by_itself() {
    let rest = format!("primary_secret: {{name: prod/f, rename: {{user: USER}}}}\n{MANY}");
    let rest = rest.replace("{name: F, secret: prod/f}", "{name: F, secret: prod/e, version_stage: AWSCURRENT}");
    let scene = Scene::of_user(ACCOUNT, &[], "", &rest);
    let grants = scene.grants();
    let statement = grants[0].statements.iter().position(|statement| statement.actions == [GET]).unwrap();
    for resource in &grants[0].statements[statement].resources {
        let mut less = grants.clone();
        less[0].statements[statement].resources.retain(|other| other != resource);
        scene.give(&less);
        let report = scene.check();
        let name = resource.rsplit(":secret:").next().unwrap().replace("-??????", "");
        let denied = report["online"]["secrets"].as_array().unwrap().iter().filter(|one| one["result"] == "denied");
        assert!(denied.clone().count() > 0 && denied.clone().all(|one| one["secret"] == name), "{name}: {report}");
        let allow = json!([{"Effect": "Allow", "Action": [GET], "Resource": [resource]}]);
        assert_eq!(report["online"]["allow"]["Statement"], allow, "and no more than that");
    }
    scene.walk(&[("", GET), ("", BATCH)]);
}

#[test]
fn each_of_a_chain_needs_to_become_the_next_one() {
    let list = roles(&format!("{{arn: \"{ONE}\"}}, {{arn: \"{TWO}\"}}"));
    let scene = Scene::of_user(ACCOUNT, &[role("one"), role("two")], &list, SOME);
    scene.walk(&[("", "sts:AssumeRole"), (ONE, "sts:AssumeRole"), (TWO, GET)]);
}

#[test]
fn tags_and_those_that_go_on_need_to_be_passed() {
    let tags = "session_tags: {team: a}, transitive_tag_keys: [team]";
    let list = roles(&format!("{{arn: \"{ONE}\", {tags}}}, {{arn: \"{TWO}\"}}"));
    let scene = Scene::of_user(ACCOUNT, &[role("one"), role("two")], &list, SOME);
    scene.walk(&[
        ("", "sts:AssumeRole"),
        ("", "sts:TagSession"),
        (ONE, "sts:AssumeRole"),
        (ONE, "sts:TagSession"),
        (TWO, GET),
    ]);
}

#[test]
fn a_pod_with_pod_identity_needs_to_read_and_nothing_else() {
    Scene::of_pod_identity(&[], "", SOME).walk(&[("", GET)]);
}

#[test]
fn the_tags_of_pod_identity_need_to_be_passed_to_another_role() {
    let list = roles(&format!("{{arn: \"{TWO}\"}}"));
    let scene = Scene::of_pod_identity(&[role("two")], &list, SOME);
    scene.walk(&[("", "sts:AssumeRole"), ("", "sts:TagSession"), (TWO, GET)]);
}

#[test]
fn a_pod_with_irsa_needs_to_become_another_role_without_tags() {
    let list = roles(&format!("{{arn: \"{TWO}\"}}"));
    thread::scope(|scope| {
        scope.spawn(|| Scene::of_irsa(&[role("two")], &list, SOME).walk(&[(POD, "sts:AssumeRole"), (TWO, GET)]));
        scope.spawn(|| Scene::of_irsa(&[], "", SOME).walk(&[(POD, GET)]));
    });
}

#[test]
fn from_another_account_both_sides_have_to_allow_it() {
    let list = roles(&format!("{{arn: \"{ONE}\", external_id: x-1}}"));
    let trusting = Role::new("one").trusts("arn:aws:iam::999999999999:user/poor").external_id("x-1");
    let scene = Scene::of_user("999999999999", &[trusting], &list, SOME);
    scene.walk(&[("", "sts:AssumeRole"), (ONE, GET)]);
    let grants = scene.grants();
    for other in [Role::new("one"), Role::new("one").trusts("arn:aws:iam::999999999999:user/poor").external_id("y")] {
        scene.stage.aws.add_role(other);
        scene.give(&grants);
        let output = scene.stage.once_in_vain("600ms");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1));
        for part in ["sts:AssumeRole", ONE, KEY_ID, "trust policy", "external id"] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
}

#[test]
fn what_is_taken_away_from_a_daemon_is_told_in_its_status() {
    let list = roles(&format!("{{arn: \"{ONE}\"}}"));
    let seed = seed(&[role("one")]).session_lifetime(Duration::from_secs(3));
    let scene = Scene::of_user_in(seed, ACCOUNT, &list, SOME);
    let grants = scene.grants();
    scene.give(&grants);
    let daemon = scene.stage.run();
    daemon.until_ready();
    let told = |state: &str, parts: &[&str]| {
        until(&format!("{state}, with {parts:?}"), || {
            daemon.hang_up();
            let message = scene.stage.status()["keys"][0]["message"].as_str().unwrap_or_default().to_owned();
            scene.stage.key_state("A") == state && parts.iter().all(|part| message.contains(part))
        });
    };
    scene.stage.aws.allow(ONE, &[]);
    told("stale (denied)", &[GET, "prod/a", ONE]);
    scene.give(&grants);
    told("fresh", &[]);
    scene.stage.aws.allow(KEY_ID, &[]);
    told("stale (identity)", &["sts:AssumeRole", ONE, KEY_ID]);
}

#[test]
fn the_trust_policies_as_they_are_printed_let_the_chain_work() {
    let tags = "session_tags: {team: a}, transitive_tag_keys: [team], external_id: x-1";
    let list = roles(&format!("{{arn: \"{ONE}\", {tags}}}, {{arn: \"{TWO}\", external_id: x-2}}"));
    let scene = Scene::of_irsa(&[], &list, SOME);
    for document in scene.documents(&[]).iter().filter(|document| document["kind"] == "role-trust") {
        let statement = &document["document"]["Statement"][0];
        let name = document["of"].as_str().unwrap().rsplit('/').next().unwrap();
        let role = Role::new(name)
            .trusts(statement["Principal"]["AWS"].as_str().unwrap())
            .external_id(statement["Condition"]["StringEquals"]["sts:ExternalId"].as_str().unwrap());
        let mut statements = document["document"]["Statement"].as_array().unwrap().iter();
        let tags = statements.any(|one| texts(&one["Action"]).contains(&"sts:TagSession"));
        scene.stage.aws.add_role(if tags { role } else { role.denies_tags() });
    }
    scene.give(&scene.grants());
    scene.assert_works();
}

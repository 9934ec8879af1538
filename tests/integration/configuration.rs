//! The configuration as people write it, break it and change it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use crate::support::{Stage, block, stderr, stdout, until};

const MASTER_KEY: &str = "sk-canary-master-key";

fn check(stage: &Stage, name: &str) -> (i32, String, String) {
    let path = stage.path(name).display().to_string();
    let output = stage.keytide(&["check", "--config", &path]);
    (output.status.code().unwrap_or(-1), stdout(&output), stderr(&output))
}

fn refused(text: impl AsRef<[u8]>) -> String {
    let stage = Stage::new();
    stage.write("keytide.yaml", text);
    let (code, out, err) = check(&stage, "keytide.yaml");
    assert_eq!((code, out.as_str()), (64, ""), "{err}");
    assert!(!err.contains(MASTER_KEY), "{err}");
    err
}

#[test]
fn the_examples_of_litellms_documentation_pass_as_they_stand() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/litellm-docs");
    let mut examples = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mut stage = Stage::new();
        stage.env("AWS_REGION_NAME", "us-east-1");
        stage.env("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/eks.amazonaws.com/serviceaccount/token");
        stage.env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/LiteLLMServiceAccountRole");
        let text = fs::read_to_string(&path).unwrap();
        stage.write("config.yaml", &text);
        let (code, out, err) = check(&stage, "config.yaml");
        assert_eq!(code, 0, "{}: {err}", path.display());
        assert!(out.ends_with("valid\n"));
        examples += 1;
    }
    assert_eq!(examples, 7);
}

#[test]
fn a_configuration_that_only_writes_is_ready_and_calls_nobody_before_there_is_an_entry() {
    let stage = Stage::new();
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/litellm-docs/write.yaml")).unwrap();
    stage.write(
        "keytide.yaml",
        format!(
            "{text}\nkeytide:\n  http: {{listen: \"127.0.0.1:0\"}}\n  admin: {{socket: none}}\n  spool: {{directory: {}}}\n",
            stage.path("spool/in").display()
        ),
    );
    let mut daemon = stage.run();
    daemon.until_ready();
    assert!(daemon.is_running());
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn a_changed_file_is_in_force_without_another_process() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    let one = "keys:\n  - {name: A, secret: prod/a}\n";
    stage.config(&block("interval: 700h", one));
    let mut daemon = stage.run();
    daemon.until_ready();
    let id = daemon.id();
    let before = stage.stamp("env/keys.json");
    stage.config(&block("interval: 700h", &format!("{one}  - {{name: B, secret: prod/b}}\n")));
    stage.until_values(&serde_json::json!({"A": "1", "B": "2"}));
    assert_ne!(stage.stamp("env/keys.json"), before);
    assert!(daemon.is_running());
    assert_eq!(daemon.id(), id);
    daemon.until_log("keytide replaces itself");
    until("the new doors", || stage.key_state("B") == "fresh");
}

#[test]
fn a_config_map_is_followed_through_its_links() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    let text = |secret: &str| {
        stage.config(&block("interval: 700h", &format!("keys: [{{name: A, secret: {secret}}}]\n")));
        stage.read("keytide.yaml")
    };
    let (first, second) = (text("prod/a"), text("prod/b"));
    stage.write("map/..1/keytide.yaml", first);
    stage.write("map/..2/keytide.yaml", second);
    symlink("..1", stage.path("map/..data")).unwrap();
    symlink("..data/keytide.yaml", stage.path("map/keytide.yaml")).unwrap();
    let daemon = stage.run_with(&["run", "--config", &stage.path("map/keytide.yaml").display().to_string()]);
    daemon.until_ready();
    assert_eq!(stage.values(), serde_json::json!({"A": "1"}));
    symlink("..2", stage.path("map/..tmp")).unwrap();
    fs::rename(stage.path("map/..tmp"), stage.path("map/..data")).unwrap();
    stage.until_values(&serde_json::json!({"A": "2"}));
}

#[test]
fn an_invalid_change_is_refused_and_the_old_configuration_goes_on() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 1s", "keys: [{name: A, secret: prod/a}]\n"));
    let good = stage.read("keytide.yaml");
    let mut daemon = stage.run();
    daemon.until_ready();
    stage.write("keytide.yaml", good.replace("interval: 1s", "interval: soon"));
    daemon.until_log("the changed configuration is refused");
    assert_eq!(daemon.metric("keytide_config_valid", &[]), 0.0);
    assert_eq!(daemon.metric("keytide_config_reloads_total", &["refused"]), 1.0);
    assert!(stage.status()["config"]["refused"].as_str().unwrap().contains("keytide.refresh.interval"));
    stage.aws.put("prod/a", "2");
    stage.until_values(&serde_json::json!({"A": "2"}));
    stage.write("keytide.yaml", good);
    until("the files to be valid again", || daemon.metric("keytide_config_valid", &[]) == 1.0);
    assert!(daemon.is_running());
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    let stage = Stage::new();
    stage.config(&block("interval: 1s", "keys: [{name: A, secret: prod/a}]\n"));
    fs::set_permissions(stage.path("keytide.yaml"), fs::Permissions::from_mode(0o666)).unwrap();
    let (code, _, err) = check(&stage, "keytide.yaml");
    assert_eq!(code, 64);
    assert!(err.contains("keytide.yaml") && err.contains("chmod"), "{err}");
}

#[test]
fn files_that_cannot_be_a_configuration_are_refused() {
    assert!(refused(vec![b'#'; 10 << 20]).contains("1 MiB"));
    let invalid = refused(b"general_settings:\n  master_key: sk-canary-master-key\nkeytide: \xff\n");
    assert!(invalid.contains("keytide.yaml:3:10: not UTF-8"), "{invalid}");
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(b'b'..=b'i')
            .map(|c| {
                let (name, before) = (char::from(c), char::from(c - 1));
                format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(","))
            })
            .collect::<String>()
        + "keytide: *i\n";
    refused(bomb);
    assert!(refused("").contains("nothing"));
    assert!(refused("keytide:\n  aws: {region: us-east-1}\n").contains("nothing"));
}

#[test]
fn a_syntax_error_beside_a_key_never_shows_the_key() {
    for broken in [
        "general_settings:\n  master_key: \"sk-canary-master-key\n  x: 1\n",
        "general_settings:\n  master_key: sk-canary-master-key: x\n",
        "general_settings:\n  master_key: {sk-canary-master-key\n",
        "general_settings: {master_key: sk-canary-master-key, key_management_system: sk-canary-master-key}\n",
        "general_settings:\n  key_management_system: aws_secret_manager\n  key_management_settings: sk-canary-master-key\n",
        "general_settings: sk-canary-master-key\nkeytide: [sk-canary-master-key]\n",
        "keytide:\n\taws: sk-canary-master-key\n",
        "keytide: {aws: {region: sk-canary-master-key/}}\n",
    ] {
        let err = refused(broken);
        assert!(err.contains("keytide.yaml:"), "{err}");
    }
}

#[test]
fn a_key_that_is_unknown_or_given_twice_is_told_with_its_place() {
    let unknown = refused("keytide:\n  aws: {region: us-east-1}\n  refrehs: {interval: 5m}\n");
    assert!(unknown.contains("keytide.yaml:3:3: keytide.refrehs: unknown key; did you mean refresh"), "{unknown}");
    let twice = refused("keytide:\n  aws: {region: us-east-1}\n  refresh: {interval: 5m}\n  refresh: {interval: 1m}\n");
    assert!(twice.contains("keytide.yaml:4:3") && twice.contains("refresh"), "{twice}");
}

#[test]
fn every_error_of_the_fields_is_found_in_one_run() {
    let err = refused(concat!(
        "general_settings:\n",
        "  key_management_system: aws_secret_manager\n",
        "  key_management_settings: {hosted_keys: [A], access_mode: readonly, tags: {C: 1}}\n",
        "keytide:\n",
        "  aws: {region: US_EAST}\n",
        "  keys: [{name: A, secret: a}, {name: \"1B\", secret: b}, {name: C, secret: c, template: \"{A}\"}]\n",
        "  refresh: {interval: 0s, jitter: 2, call_timeout: soon, on_missing: maybe, startup_timeout: 1, max_stale: 1s}\n",
        "  outputs:\n",
        "    - env_file: {path: keys.env, format: env, mode: 440}\n",
        "    - files: {directory: relative}\n",
        "  http: {listen: everywhere}\n",
        "  admin: {socket: here}\n",
        "  state: {directory: here}\n",
    ));
    for (place, key) in [
        ("3:", "general_settings.key_management_settings.access_mode"),
        ("3:", "general_settings.key_management_settings.tags"),
        ("5:", "keytide.aws.region"),
        ("6:", "keytide.keys"),
        ("7:", "keytide.refresh.interval"),
        ("7:", "keytide.refresh.jitter"),
        ("7:", "keytide.refresh.call_timeout"),
        ("7:", "keytide.refresh.on_missing"),
        ("7:", "keytide.refresh.startup_timeout"),
        ("9:", "path"),
        ("9:", "format"),
        ("9:", "mode"),
        ("10:", "directory"),
        ("11:", "keytide.http.listen"),
        ("12:", "keytide.admin.socket"),
        ("13:", "keytide.state.directory"),
    ] {
        let found = err.lines().any(|line| line.contains(&format!("keytide.yaml:{place}")) && line.contains(key));
        assert!(found, "no error for {key} in:\n{err}");
    }
}

#[test]
fn names_that_change_how_programs_run_and_double_names_are_told() {
    let litellm = "general_settings:\n  key_management_system: custom\n  key_management_settings: {hosted_keys: [A, LD_PRELOAD]}\n";
    let err = refused(format!("{litellm}keytide:\n  aws: {{region: us-east-1}}\n  keys: [{{name: A, secret: a}}]\n"));
    assert!(err.contains("hosted_keys[1]") && err.contains("allow_reserved: true"), "{err}");
    assert!(
        err.lines().any(|line| line.contains(":6:10:") && line.contains("keytide.yaml:3")),
        "both places of A in:\n{err}"
    );
}

#[test]
fn what_a_kubernetes_secret_cannot_be_is_told_with_its_place() {
    let of = |outputs: &str| {
        let keys = "aws: {region: us-east-1}\n  keys: [{name: A, secret: a}, {name: .B, secret: b}]";
        refused(format!("keytide:\n  {keys}\n  outputs:\n{outputs}"))
    };
    for (outputs, words) in [
        ("    - kubernetes_secret: {keys: [A]}\n", "name is required"),
        ("    - kubernetes_secret: {name: App, keys: [A]}\n", "Kubernetes object"),
        ("    - kubernetes_secret: {name: app}\n", "cannot write the key .B"),
        (
            "    - kubernetes_secret: {name: app, keys: [A], type: kubernetes.io/service-account-token}\n",
            "expected a type",
        ),
        ("    - kubernetes_secret: {name: app, keys: [A], labels: {a/b/c: d}}\n", "expected a key such as"),
        ("    - kubernetes_secret: {name: app, keys: [A], labels: {a: \"-\"}}\n", "at most 63"),
        ("    - kubernetes_secret: {name: app, keys: [A], annotations: {keytide.dev/content: x}}\n", "keytide's own"),
        (
            "    - kubernetes_secret: {name: app, keys: [A]}\n    - kubernetes_secret: {name: app, keys: [A], lease: b}\n",
            "Secret app",
        ),
        (
            "    - kubernetes_secret: {name: a, keys: [A]}\n    - kubernetes_secret: {name: b, keys: [A], lease: keytide-a}\n",
            "Lease keytide-a",
        ),
    ] {
        let err = of(outputs);
        assert!(err.contains(words) && err.contains("keytide.yaml:"), "{outputs}: {err}");
    }
    let rollout = |rest: &str| {
        let keys = "aws: {region: us-east-1}\n  keys: [{name: A, secret: a}]";
        refused(format!("keytide:\n  {keys}\n{rest}"))
    };
    let both = rollout(
        "  reload: [{rollout: {deployment: a, daemonset: b}}]\n  outputs: [{kubernetes_secret: {name: app}}]\n",
    );
    assert!(both.contains("exactly one of deployment"), "{both}");
    let sidecar = rollout("  reload: [{rollout: {deployment: a}}]\n");
    assert!(sidecar.contains("for a hub"), "{sidecar}");
}

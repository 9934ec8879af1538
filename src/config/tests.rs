//! The configuration from outside: files in, a [`Config`] or errors out.

use super::*;

/// Stands in the files where a key could; no message may hold it.
const CANARY: &str = "sk-canary-7f3a";

fn environment(more: &[(&str, &str)]) -> Environment {
    let base = [("AWS_REGION_NAME", "us-east-1"), ("HOME", "/nonexistent")];
    Environment::from_pairs(base.into_iter().chain(more.iter().copied()))
}

/// Loads a text; the errors are without the file's name.
fn load_in(yaml: &str, environment: &Environment) -> Result<Config, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("c");
    std::fs::write(&config, yaml).unwrap();
    let prefix = format!("{}:", config.display());
    let loaded = load(&Sources { config: config.clone(), litellm_config: None }, environment);
    loaded.map_err(|errors| {
        let text = errors.to_string();
        assert!(!text.contains(CANARY), "{text}");
        text.lines().map(|line| line.replace(&prefix, "")).collect()
    })
}

fn loaded(yaml: &str) -> Config {
    load_in(yaml, &environment(&[])).unwrap_or_else(|errors| panic!("{yaml}\n{errors:#?}"))
}

fn errors(yaml: &str) -> Vec<String> {
    match load_in(yaml, &environment(&[])) {
        Ok(_) => panic!("loaded:\n{yaml}"),
        Err(errors) => errors,
    }
}

fn names(config: &Config) -> Vec<&str> {
    config.keys.iter().map(|key| key.name.as_str()).collect()
}

#[test]
fn the_examples_of_litellms_documentation_load_as_they_stand() {
    let environment = environment(&[
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", CANARY),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/LiteLLMServiceAccountRole"),
    ]);
    let load = |name: &str| {
        let yaml = std::fs::read_to_string(format!("tests/config/litellm-docs/{name}.yaml")).unwrap();
        load_in(&yaml, &environment).unwrap_or_else(|errors| panic!("{name}: {errors:#?}"))
    };
    let secret = |name: &str| Origin::Secret(Request { secret: SecretId::parse(name).unwrap(), stage: None });
    let read = load("read");
    assert_eq!(names(&read), ["litellm_master_key"]);
    assert_eq!(read.keys[0].origin, secret("litellm_master_key"));
    assert!(matches!(read.aws.reader.base, Credentials::Static(_)));
    assert_eq!(read.outputs.len(), 1);
    let write = load("write");
    assert!(write.virtual_keys.is_some() && write.keys.is_empty() && write.outputs.is_empty());
    let both = load("read-and-write");
    assert!(both.virtual_keys.is_some() && names(&both) == ["litellm_master_key"]);
    let primary = load("primary-secret");
    assert_eq!(names(&primary), ["OPENAI_API_KEY_MODEL_1", "OPENAI_API_KEY_MODEL_2"]);
    assert!(primary.wholesale.is_empty());
    let Origin::Member(request, member) = &primary.keys[0].origin else { panic!("not a member") };
    assert_eq!((request.secret.as_str(), member.as_str()), ("litellm_secrets", "OPENAI_API_KEY_MODEL_1"));
    let role = load("role").aws.reader;
    assert!(matches!(role.base, Credentials::Static(_)));
    let [role] = &role.roles[..] else { panic!("one role: {:?}", role.roles) };
    assert_eq!(role.arn.as_str(), "arn:aws:iam::123456789012:role/LiteLLMSecretManagerRole");
    assert_eq!((role.session_name.as_str(), &role.external_id), ("litellm-session", &None));
    let [role] = &load("cross-account").aws.reader.roles[..] else { panic!("not one role") };
    assert_eq!(role.arn.as_str(), "arn:aws:iam::999999999999:role/CrossAccountRole");
    assert_eq!((role.session_name.as_str(), role.external_id.as_deref()), ("keytide", Some("unique-external-id")));
    let irsa = load("irsa").aws.reader;
    let Credentials::WebIdentity { role, token: Token::File(file) } = irsa.base else { panic!("not a web identity") };
    assert!(irsa.roles.is_empty());
    assert_eq!(role.arn.as_str(), "arn:aws:iam::123456789012:role/LiteLLMServiceAccountRole");
    assert_eq!((role.session_name.as_str(), file.as_path()), ("keytide", Path::new("/var/run/secrets/token")));
}

const FULL: &str = r#"
keytide:
  aws: {region: eu-central-1, allow_plain_http: false}
  primary_secret: {name: app/config, rename: {db_password: DB_PASSWORD}}
  keys:
    - {name: DB_USER, secret: prod/db, member: username, export: false}
    - {name: DB_PASS, secret: prod/db, member: password, version_stage: AWSPREVIOUS}
    - {name: TLS_KEY, secret: prod/tls}
    - {name: PYTHONPATH, member: python_path, allow_reserved: true}
    - {name: DATABASE_URL, template: "postgresql://{DB_USER|url}:{DB_PASS|url}@db:5432/app"}
  refresh: {interval: 1h30m, jitter: 0, call_timeout: 500ms, on_missing: skip, startup_timeout: 1m, max_stale: 3h}
  outputs:
    - env_file: {path: /run/keytide/env/keys.env, format: posix, mode: auto, allow_disk: true}
    - env_file: {name: docker, path: /run/keytide/env/docker.env, format: docker, mode: "0440", group: 1000, owner: 0}
    - files: {directory: /run/keytide/env/files, keys: [TLS_KEY], rename: {TLS_KEY: tls.key}}
  http: {listen: none}
  admin: {socket: none}
"#;

#[test]
fn our_block_alone_is_a_whole_configuration() {
    let config = loaded(FULL);
    assert_eq!(config.aws.region, "eu-central-1");
    assert!(matches!(config.aws.reader.base, Credentials::Missing));
    assert_eq!(names(&config), ["DB_USER", "DB_PASS", "TLS_KEY", "PYTHONPATH", "DATABASE_URL"]);
    assert!(!config.keys[0].export && config.keys[1].export);
    assert_eq!(config.wholesale.len(), 1);
    assert_eq!(
        config.refresh,
        Refresh {
            interval: Duration::from_mins(90),
            jitter: 0.0,
            call_timeout: Duration::from_millis(500),
            on_missing: OnMissing::Skip,
            startup_timeout: Duration::from_mins(1),
            max_stale: Some(Duration::from_hours(3)),
        }
    );
    let outputs: Vec<&str> = config.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(outputs, ["env_file", "docker", "files"]);
    let OutputKind::EnvFile { format, access, .. } = config.outputs[1].kind else { panic!("not an env file") };
    assert_eq!(format, Format::Docker);
    assert_eq!(access, FileAccess { mode: Some(0o440), group: Some(1000), owner: Some(0), allow_disk: false });
    assert_eq!(config.state, Some(State { directory: "/run/keytide/env/.keytide".into(), allow_disk: true }));
    assert_eq!((config.http, config.admin), (None, None));
}

#[test]
fn what_is_left_out_has_defaults() {
    let config = loaded("keytide: {keys: [{name: A, secret: a}]}");
    assert_eq!(config.aws.region, "us-east-1");
    assert_eq!(
        config.refresh,
        Refresh {
            interval: Duration::from_mins(5),
            jitter: 0.1,
            call_timeout: Duration::from_secs(10),
            on_missing: OnMissing::Fail,
            startup_timeout: Duration::from_mins(5),
            max_stale: None,
        }
    );
    let OutputKind::EnvFile { path, format, .. } = &config.outputs[0].kind else { panic!("not an env file") };
    assert_eq!((path.as_path(), *format), (Path::new("/run/keytide/env/keys.env"), Format::Dotenv));
    assert_eq!(config.state, Some(State { directory: "/run/keytide/env/.keytide".into(), allow_disk: false }));
    assert_eq!(config.http.unwrap().to_string(), "[::]:19847");
    assert_eq!(config.admin.unwrap(), Path::new("/run/keytide/private/admin.sock"));
    assert!(config.notices.is_empty(), "{:?}", config.notices);
}

#[test]
fn a_name_or_a_setting_given_twice_names_both_places() {
    let yaml = "general_settings:\n  key_management_system: custom\n  key_management_settings:\n    hosted_keys: [A]\n    aws_region_name: eu-west-1\nkeytide:\n  aws: {region: us-east-1}\n  keys: [{name: A, secret: a}]\n";
    let errors = errors(yaml);
    let of = |key: &str, other: &str| errors.iter().any(|error| error.contains(key) && error.contains(other));
    assert!(of("keytide.keys[0]", "hosted_keys[0]"), "{errors:#?}");
    assert!(of("region", "aws_region_name"), "{errors:#?}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    /// Whatever is done to the bytes of a good file: no panic, and no error that shows the key in it.
    #[test]
    fn mutated_files_are_refused_or_read_but_never_shown(
        cuts in proptest::collection::vec((0..2000_usize, 0..12_usize, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..6)), 1..6)
    ) {
        const GOOD: &str = "general_settings:\n  master_key: sk-canary-4711\n  key_management_system: custom\n  key_management_settings: {hosted_keys: [A, B], primary_secret_name: p, tags: {a: b}, access_mode: read_only}\nkeytide:\n  aws: {region: us-east-1}\n  keys:\n    - {name: C, secret: c, member: m, version_stage: AWSCURRENT}\n    - {name: D, template: \"x{C|url}\"}\n  refresh: {interval: 5m, jitter: 0.1, on_missing: skip}\n  outputs:\n    - env_file: {path: /run/k/env, format: json, mode: \"0440\", rename: {C: E}}\n    - files: {directory: /run/k/files, keys: [C]}\n";
        let mut bytes = GOOD.as_bytes().to_vec();
        for (at, length, with) in cuts {
            let at = at % bytes.len().max(1);
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, with);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keytide.yaml");
        std::fs::write(&path, &bytes).unwrap();
        let sources = Sources { config: path, litellm_config: None };
        let environment = Environment::from_pairs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")]);
        if let Err(errors) = load(&sources, &environment) {
            let text = errors.to_string();
            proptest::prop_assert!(!text.contains("sk-canary") && !text.contains("4711"), "{}", text);
        }
    }
}

#[test]
fn a_pin_that_was_left_empty_or_refers_to_nothing_is_an_error() {
    let with = |aws: &str| format!("keytide:\n  aws: {{region: us-east-1, {aws}}}\n  primary_secret: {{name: app}}\n");
    for aws in
        ["expect_role: ", "expect_role: null", "expect_role: \"\"", "expect_role: []", "expect_role: os.environ/GONE"]
    {
        let errors = errors(&with(aws));
        assert!(errors.iter().any(|error| error.contains("keytide.aws.expect_role")), "{aws}: {errors:?}");
    }
    // What decides who keytide is, is not left out because a variable is not set.
    for aws in [
        "profile: os.environ/GONE",
        "web_identity_token_file: os.environ/GONE",
        "roles: [{arn: \"arn:aws:iam::123456789012:role/a\", external_id: os.environ/GONE}]",
    ] {
        let errors = errors(&with(aws));
        assert!(errors.iter().any(|error| error.contains("is not set")), "{aws}: {errors:?}");
    }
    let config = loaded(&with("expect_role: [\"arn:aws:iam::123456789012:role/a\", \"123456789012\"]"));
    assert!(config.aws.reader.expected.is_set());
    assert_eq!(errors(&with("expect_role: [\"arn:aws:iam::123456789012:role/a\", \"999999999999\"]")).len(), 1);
}

//! Profiles of AWS's shared files: what they lead to, and what is refused. No program is run, nobody signs in.

use std::{fs, os::unix::fs::PermissionsExt as _};

use keytide_emulator::{PodIdentity, Seed};

use crate::{
    cast::{
        AWAY, HOME, SECOND, arn, aws, fails, keys_of, nobody, of_user, play, reader, reads, says, second_user,
        shared_files, sts, together, token,
    },
    support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Stage, until},
};

const FIRST: (&str, &str) = (ACCESS_KEY_ID, SECRET_ACCESS_KEY);

/// Roles that the user of the static keys may assume, roles that those may, and a second user who may do as the first.
fn seed() -> Seed {
    let second = format!("arn:aws:iam::{HOME}:user/second");
    Seed::default()
        .user(second_user())
        .role(of_user("one").trusts(&second).trusts_web_identity())
        .role(of_user("two").trusts(&arn("one")).trusts(&arn("node")))
        .role(reader("far").account(AWAY).trusts(&arn("one")).external_id("x-1"))
        .role(reader("node"))
}

fn stage(config: &str, credentials: &str) -> Stage {
    let mut stage = nobody(seed());
    let fill = |text: &str| text.replace("ROLE/", &arn("")).replace("DIR", &stage.path("").display().to_string());
    let (config, credentials) = (fill(config), fill(credentials));
    shared_files(&mut stage, &config, &credentials);
    stage.env("AWS_PROFILE", "team");
    stage
}

fn credentials(profile: &str) -> String {
    format!("[{profile}]\n{}", keys_of(FIRST))
}

const TEAM: &str = "[profile team]\nrole_arn = ROLE/one\nsource_profile = base\n";
const ONE: &str = "AssumeRole role/one as keytide by user/keytide in us-east-1";

#[test]
fn a_profile_with_a_role_begins_at_its_source_profile() {
    // The session's name of the profile, its external id and its duration are sent; the names of others stay the default.
    let far = format!(
        "{TEAM}role_session_name = team\n[profile far]\nrole_arn = arn:aws:iam::{AWAY}:role/far\nsource_profile = team\n\
         external_id = x-1\nduration_seconds = 900\n"
    );
    let mut stage = stage(&far, &credentials("base"));
    let one = "AssumeRole role/one as team by user/keytide in us-east-1";
    reads(&stage, "assumed-role/one/team in us-east-1", &[one]);
    stage.env("AWS_PROFILE", "far");
    let far = format!(
        "AssumeRole arn:aws:iam::{AWAY}:role/far as keytide id x-1 for 900 by assumed-role/one/team in us-east-1"
    );
    reads(&stage, &format!("arn:aws:sts::{AWAY}:assumed-role/far/keytide in us-east-1"), &[one, &far]);
    // Both kinds of sections may stand in either file, as far as AWS's tools read them there.
    shared_files(
        &mut stage,
        "",
        &format!("{}[team]\nrole_arn = {}\nsource_profile = base\n", credentials("base"), arn("one")),
    );
    stage.env("AWS_PROFILE", "team").env("AWS_ROLE_SESSION_NAME", "env");
    let one = "AssumeRole role/one as env by user/keytide in us-east-1";
    reads(&stage, "assumed-role/one/env in us-east-1", &[one]);
}

#[test]
fn a_profile_may_name_itself_as_the_source_of_its_own_static_keys() {
    let itself = "[profile team]\nrole_arn = ROLE/one\nsource_profile = team\n";
    reads(&stage(itself, &credentials("team")), "assumed-role/one/keytide in us-east-1", &[ONE]);
}

#[test]
fn static_keys_of_a_source_profile_are_its_credentials_also_beside_a_role_as_in_awss_tools() {
    // botocore and the SDKs: a profile that is somebody's source, and has static keys, is those keys.
    let config = "[profile team]\nrole_arn = ROLE/one\nsource_profile = base\n\
                  [profile base]\nrole_arn = ROLE/two\nsource_profile = team\n";
    reads(&stage(config, &credentials("base")), "assumed-role/one/keytide in us-east-1", &[ONE]);
}

#[test]
fn a_profile_may_begin_with_the_environments_keys() {
    let mut stage = stage("[profile team]\nrole_arn = ROLE/one\ncredential_source = Environment\n", "");
    aws(&stage, "profile: team");
    let missing = "credential_source is Environment, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set";
    fails(&stage, 1, &["profile team", missing]);
    stage.env("AWS_ACCESS_KEY_ID", FIRST.0).env("AWS_SECRET_ACCESS_KEY", FIRST.1);
    reads(&stage, "assumed-role/one/keytide in us-east-1", &[ONE]);
}

#[test]
fn a_profile_may_begin_with_a_token() {
    let config = "[profile team]\nrole_arn = ROLE/two\nsource_profile = base\n\
                  [profile base]\nrole_arn = ROLE/one\nweb_identity_token_file = DIRtoken\nrole_session_name = eks\n";
    let stage = stage(config, "");
    stage.write("token", token("pod"));
    let calls = [
        "AssumeRoleWithWebIdentity role/one as eks unsigned",
        "AssumeRole role/two as keytide by assumed-role/one/eks in us-east-1",
    ];
    reads(&stage, "assumed-role/two/keytide in us-east-1", &calls);
}

#[test]
fn a_profile_may_begin_with_the_containers_agent() {
    let mut stage = stage("[profile team]\nrole_arn = ROLE/two\ncredential_source = EcsContainer\n", "");
    fails(&stage, 1, &["credential_source is EcsContainer, and AWS_CONTAINER_CREDENTIALS_FULL_URI is not set"]);
    stage.aws.set_pod_identity(Some(PodIdentity::new(&arn("node")).session_name("eks")));
    let agent = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent).env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token("pod"));
    let two = "AssumeRole role/two as keytide by assumed-role/node/eks in us-east-1";
    reads(&stage, "assumed-role/two/keytide in us-east-1", &[two]);
}

#[test]
fn a_profile_may_begin_with_the_nodes_role_only_where_that_is_allowed() {
    let mut stage = stage("[profile team]\nrole_arn = ROLE/two\ncredential_source = Ec2InstanceMetadata\n", "");
    stage.aws.set_instance_role(Some(&arn("node")));
    let metadata = stage.aws.url();
    stage.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata);
    fails(&stage, 1, &["Ec2InstanceMetadata", "only with keytide.aws.allow_instance_role"]);
    assert!(stage.aws.requests().is_empty(), "nobody is asked");
    aws(&stage, "allow_instance_role: true");
    let two = "AssumeRole role/two as keytide by assumed-role/node/i-0123456789abcdef0 in us-east-1";
    reads(&stage, "assumed-role/two/keytide in us-east-1", &[two]);
}

#[test]
fn the_roles_of_the_configuration_come_after_those_of_a_profile() {
    let stage = stage(TEAM, &credentials("base"));
    aws(&stage, &format!("profile: team, roles: [{{arn: \"{}\"}}]", arn("two")));
    let calls = [
        ONE,
        "GetCallerIdentity by assumed-role/one/keytide in us-east-1",
        "AssumeRole role/two as keytide by assumed-role/one/keytide in us-east-1",
    ];
    reads(&stage, "assumed-role/two/keytide in us-east-1", &calls);
    // A role that the profile is already is not assumed again.
    aws(&stage, &format!("profile: team, roles: [{{arn: \"{}\"}}]", arn("one")));
    reads(&stage, "assumed-role/one/keytide in us-east-1", &calls[..2]);
}

#[test]
fn the_default_profile_is_used_where_there_are_files_and_nothing_else() {
    let mut stage = stage("", &format!("[default]\n{}[team]\n{}", keys_of(FIRST), keys_of(SECOND)));
    reads(&stage, "user/second in us-east-1", &[]);
    stage.env_remove("AWS_PROFILE");
    reads(&stage, "user/keytide in us-east-1", &[]);
    // Below HOME, if nothing says where.
    stage.env_remove("AWS_CONFIG_FILE").env_remove("AWS_SHARED_CREDENTIALS_FILE");
    let home = stage.write("home/.aws/credentials", credentials("default"));
    let home = home.parent().and_then(std::path::Path::parent).unwrap().display().to_string();
    stage.env("HOME", &home);
    reads(&stage, "user/keytide in us-east-1", &[]);
}

#[test]
fn what_would_run_a_program_or_ask_a_person_is_refused_and_nothing_else_is_tried() {
    let role = "role_arn = ROLE/one\nsource_profile = base\n";
    let cases = [
        ("credential_process = touch DIRran\n".to_owned(), "credential_process", "keytide runs no program"),
        (format!("{role}[profile base]\ncredential_process = touch DIRran\n"), "credential_process", "runs no program"),
        ("sso_session = corp\nsso_account_id = 1\n".to_owned(), "sso_session", "does not sign in by a browser"),
        ("sso_start_url = https://x.awsapps.com/start\n".to_owned(), "sso_start_url", "does not sign in by a browser"),
        ("login_session = x\n".to_owned(), "login_session", "does not sign in by a browser"),
        (format!("{role}mfa_serial = arn:aws:iam::1:mfa/x\n"), "mfa_serial", "nobody is there who could type a code"),
    ];
    together(cases, |(profile, setting, why)| {
        let mut stage = stage(&format!("[profile team]\n{profile}"), "");
        // Somebody who would be next in the order.
        stage.aws.set_pod_identity(Some(PodIdentity::new(&arn("node"))));
        let agent = format!("{}/v1/credentials", stage.aws.url());
        stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent).env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token("pod"));
        let files = [stage.path("aws/config"), stage.path("aws/credentials")].map(|file| file.display().to_string());
        let log = fails(&stage, 1, &[&format!("{setting} is not supported"), why, &files[0], &files[1]]);
        let whose = if profile.contains("[profile base]") { "profile base" } else { "profile team" };
        says(&log, &[whose, "expected static keys or a role"]);
        assert!(!stage.path("ran").exists(), "no program is run");
        assert!(stage.aws.requests().is_empty(), "nobody is asked");
    });
}

#[test]
fn a_profile_that_leads_nowhere_says_which_and_why() {
    let source = |name: &str, next: &str| format!("[profile {name}]\nrole_arn = ROLE/one\nsource_profile = {next}\n");
    let half = |setting: &str| format!("[profile team]\n{setting} = canary-half\n");
    let cases = [
        (String::new(), "team", "there is no such profile"),
        (source("team", "nobody"), "nobody", "there is no such profile"),
        (source("team", "team"), "team", "leads in a circle"),
        (source("team", "b") + &source("b", "team"), "b", "leads in a circle"),
        (source("team", "b") + &source("b", "c") + &source("c", "b"), "c", "leads in a circle"),
        ("[profile team]\nregion = x\n".to_owned(), "team", "neither aws_access_key_id nor role_arn"),
        ("[profile team]\nrole_arn = ROLE/one\n".to_owned(), "team", "needs exactly one of source_profile"),
        (source("team", "b") + "credential_source = Environment\n", "team", "needs exactly one of source_profile"),
        (
            "[profile team]\nrole_arn = one\nsource_profile = b\n".to_owned(),
            "team",
            "role_arn: expected the ARN of a role",
        ),
        (source("team", "b") + "duration_seconds = 60\n", "team", "duration_seconds: expected 900 to 43200"),
        (
            "[profile team]\nrole_arn = ROLE/one\ncredential_source = Elsewhere\n".to_owned(),
            "team",
            "credential_source: expected",
        ),
        (
            "[profile team]\nrole_arn = ROLE/one\nweb_identity_token_file = t\n".to_owned(),
            "team",
            "expected an absolute path",
        ),
        (half("aws_access_key_id"), "team", "it has no aws_secret_access_key"),
        (half("aws_secret_access_key"), "team", "it has no aws_access_key_id"),
        ("[profile team\ncanary-line".to_owned(), "team", "not in the format of AWS's shared configuration"),
    ];
    together(cases, |(config, name, why)| {
        let stage = stage(&config, "");
        let log = fails(&stage, 1, &[&format!("profile {name} "), why]);
        assert!(stage.aws.requests().is_empty(), "{log}");
    });
}

#[test]
fn a_profile_is_read_again_at_every_renewal() {
    let stage = {
        let mut stage = nobody(Seed { session_lifetime_seconds: Some(2), ..seed() });
        shared_files(&mut stage, &TEAM.replace("ROLE/", &arn("")), &credentials("base"));
        stage.env("AWS_PROFILE", "team");
        stage
    };
    let mut scene = play(stage);
    scene.stage.write("aws/credentials", format!("[base]\n{}", keys_of(SECOND)));
    until("the new keys", || sts(&scene.stage).iter().any(|call| call.contains("by user/second")));
    scene.heals();
    scene.stage.write("aws/credentials", "[base]\n");
    scene.suffers("identity", &["profile base", "neither aws_access_key_id nor role_arn"]);
    fs::remove_file(scene.stage.path("aws/config")).unwrap();
    until("the next trouble", || scene.message().contains("there is no such profile"));
    scene.stage.write("aws/config", TEAM.replace("ROLE/", &arn("")));
    scene.stage.write("aws/credentials", credentials("base"));
    scene.recovers();
}

#[test]
fn a_profiles_file_that_cannot_be_read_is_named() {
    let stage = stage(TEAM, &credentials("base"));
    let file = stage.path("aws/credentials");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
    fails(&stage, 1, &[&format!("{}: permission denied", file.display())]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    fails(&stage, 1, &[&format!("{}: not a regular file", file.display())]);
}

#[test]
fn a_profiles_file_that_is_a_pipe_does_not_hold_up_the_start() {
    let stage = stage(TEAM, "");
    let file = stage.path("aws/credentials");
    fs::remove_file(&file).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let config = stage.path("keytide.yaml").display().to_string();
    let mut daemon = stage.run_with(&["run", "--config", &config, "--once", "--timeout", "4s"]);
    assert_eq!(daemon.wait(), 1);
    says(&daemon.log(), &[&file.display().to_string()]);
}

#[test]
fn a_profile_whose_files_are_gone_is_told_at_the_start_and_is_no_end_later() {
    let mut stage = nobody(Seed { session_lifetime_seconds: Some(2), ..seed() });
    shared_files(&mut stage, &TEAM.replace("ROLE/", &arn("")), &credentials("base"));
    stage.env("AWS_PROFILE", "team");
    let (config, keys) = (stage.path("aws/config"), stage.path("aws/credentials"));
    let texts = (fs::read(&config).unwrap(), fs::read(&keys).unwrap());
    let remove = || {
        fs::remove_file(&config).unwrap();
        fs::remove_file(&keys).unwrap();
    };
    remove();
    fails(&stage, 1, &["profile team", "neither file is there"]);
    stage.write("aws/config", &texts.0);
    stage.write("aws/credentials", &texts.1);
    let mut scene = play(stage);
    remove();
    scene.suffers("identity", &["neither file is there"]);
    assert!(scene.daemon.is_running());
    scene.stage.write("aws/config", &texts.0);
    scene.stage.write("aws/credentials", &texts.1);
    scene.recovers();
}

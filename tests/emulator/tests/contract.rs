//! What Secrets Manager and STS promise, asked through the real SDK: of the emulator always, and of moto too when
//! `KEYTIDE_MOTO_URL` names one. Where the two differ the test says which of them follows AWS.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::ProvideErrorMetadata as _;
use aws_sdk_secretsmanager::primitives::Blob;
use aws_sdk_secretsmanager::types::{ReplicaRegionType, ReplicationStatusType, StatusType, Tag};
use aws_sdk_sts::Client as Sts;
use keytide_emulator::{Emulator, Fault, FaultKind, Role, SecretView, Seed, Statement, VersionView};

#[path = "support/sdk.rs"]
mod sdk;
#[path = "support/sessions.rs"]
mod sessions;

use sdk::{client, code, owner};
use sessions::{jwt, session, sts};

const CURRENT: &str = "AWSCURRENT";
const PREVIOUS: &str = "AWSPREVIOUS";

/// Something that speaks the two protocols.
struct Target {
    url: String,
    /// None: moto.
    emulator: Option<Emulator>,
}

impl Target {
    fn secrets(&self) -> Client {
        client(&self.url, owner(), "us-east-1")
    }

    fn sts(&self) -> Sts {
        sts(&self.url, owner())
    }

    /// What is expected: of the emulator, which follows AWS, and of moto, which does not.
    fn expect(&self, aws: &'static str, moto: &'static str) -> &'static str {
        if self.emulator.is_some() { aws } else { moto }
    }
}

fn targets() -> Vec<Target> {
    let emulator = Emulator::start().unwrap();
    let mut targets = vec![Target { url: emulator.url(), emulator: Some(emulator) }];
    #[expect(clippy::disallowed_methods, reason = "how the test stage names the moto that it started")]
    if let Ok(url) = std::env::var("KEYTIDE_MOTO_URL") {
        targets.push(Target { url, emulator: None });
    }
    targets
}

/// A name that no other test uses, since moto serves them all.
fn fresh(name: &str) -> String {
    format!("contract/{name}/{:016x}", fastrand::u64(..))
}

fn token() -> String {
    format!("{:032x}", fastrand::u128(..))
}

async fn create(client: &Client, name: &str, value: &str) -> String {
    client.create_secret().name(name).secret_string(value).send().await.unwrap().version_id.unwrap()
}

async fn put(client: &Client, name: &str, value: &str) -> String {
    client.put_secret_value().secret_id(name).secret_string(value).send().await.unwrap().version_id.unwrap()
}

async fn staged(client: &Client, name: &str, stage: &str) -> String {
    let answer = client.get_secret_value().secret_id(name).version_stage(stage).send().await.unwrap();
    answer.secret_string.unwrap()
}

async fn get(client: &Client, id: &str) -> String {
    code(client.get_secret_value().secret_id(id).send().await)
}

// === the same of both ===

#[tokio::test]
async fn a_put_moves_the_labels() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("labels"));
        let first = create(&client, &name, "one").await;
        let second = put(&client, &name, "two").await;
        assert_eq!(staged(&client, &name, CURRENT).await, "two");
        assert_eq!(staged(&client, &name, PREVIOUS).await, "one");
        let answer = client.get_secret_value().secret_id(&name).version_id(&first).send().await.unwrap();
        assert_eq!(answer.secret_string(), Some("one"));
        assert_eq!(answer.version_stages(), [PREVIOUS]);

        let pending = client.put_secret_value().secret_id(&name).secret_string("three").version_stages("AWSPENDING");
        pending.send().await.unwrap();
        assert_eq!(staged(&client, &name, "AWSPENDING").await, "three");
        let answer = client.get_secret_value().secret_id(&name).send().await.unwrap();
        assert_eq!((answer.secret_string(), answer.version_id()), (Some("two"), Some(second.as_str())));
        assert!(answer.created_date().unwrap().secs() > 1_700_000_000);
    }
}

#[tokio::test]
async fn binary_values_come_back_as_they_were() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("binary"));
        let value = Blob::new([0, 255, 10, 13]);
        client.create_secret().name(&name).secret_binary(value.clone()).send().await.unwrap();
        let answer = client.get_secret_value().secret_id(&name).send().await.unwrap();
        assert_eq!((answer.secret_binary(), answer.secret_string()), (Some(&value), None));
    }
}

#[tokio::test]
async fn a_name_an_arn_and_a_partial_arn_mean_the_same() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("arn"));
        create(&client, &name, "one").await;
        let arn = client.get_secret_value().secret_id(&name).send().await.unwrap().arn.unwrap();
        let (partial, suffix) = arn.rsplit_once('-').unwrap();
        assert!(partial.starts_with("arn:aws:secretsmanager:us-east-1:123456789012:secret:") && suffix.len() == 6);
        assert_eq!(get(&client, &arn).await, "ok");
        assert_eq!(get(&client, partial).await, "ok");
        let elsewhere = client_in(&target, "eu-west-1");
        assert_eq!(get(&elsewhere, &name).await, "ResourceNotFoundException");
    }
}

fn client_in(target: &Target, region: &'static str) -> Client {
    client(&target.url, owner(), region)
}

#[tokio::test]
async fn what_is_absent_is_not_found() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("absent"));
        let error = client.get_secret_value().secret_id(&name).send().await.unwrap_err();
        // AWS answers every error with 400.
        let status = if target.emulator.is_some() { 400 } else { 404 };
        assert_eq!(error.raw_response().unwrap().status().as_u16(), status);
        assert_eq!(code::<(), _>(Err(error)), "ResourceNotFoundException");

        create(&client, &name, "one").await;
        let pending = client.get_secret_value().secret_id(&name).version_stage("AWSPENDING");
        assert_eq!(code(pending.send().await), "ResourceNotFoundException");
        let version = client.get_secret_value().secret_id(&name).version_id(token());
        assert_eq!(code(version.send().await), "ResourceNotFoundException");
    }
}

#[tokio::test]
async fn a_create_is_idempotent_by_its_token() {
    for target in targets() {
        let (client, name, token) = (target.secrets(), fresh("create"), token());
        let again = |value: &str| client.create_secret().name(&name).secret_string(value).client_request_token(&token);
        assert_eq!(code(again("one").send().await), "ok");
        assert_eq!(code(again("one").send().await), "ok");
        assert_eq!(code(again("two").send().await), "ResourceExistsException");
        let other = client.create_secret().name(&name).secret_string("one").send().await;
        assert_eq!(code(other), "ResourceExistsException");
    }
}

#[tokio::test]
async fn a_put_is_idempotent_by_its_token_and_moves_no_label_back() {
    for target in targets() {
        let (client, name, token) = (target.secrets(), fresh("put"), token());
        create(&client, &name, "zero").await;
        let again =
            |value: &str| client.put_secret_value().secret_id(&name).secret_string(value).client_request_token(&token);
        assert_eq!(again("one").send().await.unwrap().version_stages(), [CURRENT]);
        put(&client, &name, "two").await;
        assert_eq!(again("one").send().await.unwrap().version_stages(), [PREVIOUS]);
        assert_eq!(staged(&client, &name, CURRENT).await, "two");
        assert_eq!(code(again("other").send().await), "ResourceExistsException");
    }
}

#[tokio::test]
async fn a_scheduled_deletion_refuses_everything_until_it_is_taken_back() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("scheduled"));
        create(&client, &name, "one").await;
        for days in [6, 31] {
            let deletion = client.delete_secret().secret_id(&name).recovery_window_in_days(days).send().await;
            assert_eq!(code(deletion), "InvalidParameterException");
        }
        client.delete_secret().secret_id(&name).recovery_window_in_days(7).send().await.unwrap();
        assert_eq!(get(&client, &name).await, "InvalidRequestException");
        let description = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert!(description.deleted_date().is_some());
        // moto's code sends a client to a Put, which on AWS is refused too.
        let created = client.create_secret().name(&name).secret_string("two").send().await;
        assert_eq!(code(created), target.expect("InvalidRequestException", "ResourceExistsException"));
        let written = client.put_secret_value().secret_id(&name).secret_string("two").send().await;
        assert_eq!(code(written), target.expect("InvalidRequestException", "ok"));

        client.restore_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(staged(&client, &name, CURRENT).await, target.expect("one", "two"));
        let forced = client.delete_secret().secret_id(&name).force_delete_without_recovery(true);
        forced.clone().send().await.unwrap();
        assert_eq!(get(&client, &name).await, "ResourceNotFoundException");
        assert_eq!(code(forced.send().await), "ok");
        create(&client, &name, "three").await;
    }
}

#[tokio::test]
async fn names_and_values_have_limits() {
    for target in targets() {
        let client = target.secrets();
        let secret = |name: &str, value: &str| client.create_secret().name(name).secret_string(value).send();
        // moto takes them all.
        let refused = target.expect("ValidationException", "ok");
        for name in [fresh("bad name"), fresh("umläut"), fresh(&"x".repeat(512))] {
            assert_eq!(code(secret(&name, "x").await), refused, "{name}");
        }
        let name = fresh("value");
        assert_eq!(code(secret(&name, &"x".repeat(65_536)).await), "ok");
        let larger = client.put_secret_value().secret_id(&name).secret_string("x".repeat(65_537)).send().await;
        assert_eq!(code(larger), refused);
    }
}

#[tokio::test]
async fn an_empty_value_is_refused() {
    for target in targets() {
        let client = target.secrets();
        let empty = client.create_secret().name(fresh("empty")).secret_string("").send().await;
        assert_eq!(code(empty), target.expect("ValidationException", "ok"));
    }
}

#[tokio::test]
async fn a_batch_answers_values_and_names_what_failed() {
    for target in targets() {
        let client = target.secrets();
        let (here, absent, scheduled) = (fresh("here"), fresh("absent"), fresh("scheduled"));
        create(&client, &here, "one").await;
        create(&client, &scheduled, "two").await;
        client.delete_secret().secret_id(&scheduled).send().await.unwrap();
        let batch = client.batch_get_secret_value();
        let batch = batch.secret_id_list(&here).secret_id_list(&absent).secret_id_list(&scheduled);
        let answer = batch.send().await.unwrap();
        let values: Vec<_> = answer.secret_values().iter().map(|value| (value.name(), value.secret_string())).collect();
        assert_eq!(values, [(Some(here.as_str()), Some("one"))]);
        let mut errors: Vec<_> =
            answer.errors().iter().map(|error| (error.secret_id().unwrap(), error.error_code().unwrap())).collect();
        errors.sort_unstable();
        let expected =
            [(absent.as_str(), "ResourceNotFoundException"), (scheduled.as_str(), "InvalidRequestException")];
        assert_eq!(errors, expected);
    }
}

#[tokio::test]
async fn a_batch_has_twenty_ids_at_most() {
    for target in targets() {
        let client = target.secrets();
        let batch = |count: usize| {
            let ids = (0..count).map(|_| fresh("many")).collect();
            client.batch_get_secret_value().set_secret_id_list(Some(ids)).send()
        };
        assert_eq!(code(batch(20).await), "ok");
        // moto has no limit.
        assert_eq!(code(batch(21).await), target.expect("ValidationException", "ok"));
    }
}

#[tokio::test]
async fn moving_a_label_is_a_compare_and_swap() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("swap"));
        let first = create(&client, &name, "one").await;
        let second = put(&client, &name, "two").await;
        let swap = |from: &str, to: &str| {
            let swap = client.update_secret_version_stage().secret_id(&name).version_stage(CURRENT);
            swap.remove_from_version_id(from).move_to_version_id(to).send()
        };
        assert_eq!(code(swap(&first, &second).await), "InvalidParameterException");
        assert_eq!(code(swap(&second, &first).await), "ok");
        assert_eq!(staged(&client, &name, CURRENT).await, "one");
    }
}

#[tokio::test]
async fn tags_are_kept() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("tags"));
        let tag = |key: &str| Tag::builder().key(key).value("1").build();
        client.create_secret().name(&name).secret_string("one").tags(tag("a")).send().await.unwrap();
        client.tag_resource().secret_id(&name).tags(tag("b")).send().await.unwrap();
        client.untag_resource().secret_id(&name).tag_keys("a").send().await.unwrap();
        let description = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(description.tags(), [tag("b")]);
    }
}

#[tokio::test]
async fn a_secret_with_replicas_is_not_deleted() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("replicas"));
        create(&client, &name, "one").await;
        let region = ReplicaRegionType::builder().region("eu-west-1").build();
        client.replicate_secret_to_regions().secret_id(&name).add_replica_regions(region).send().await.unwrap();
        let description = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(description.replication_status()[0].region(), Some("eu-west-1"));
        let delete = || client.delete_secret().secret_id(&name).send();
        assert_eq!(code(delete().await), "InvalidParameterException");
        let removal = client.remove_regions_from_replication().secret_id(&name).remove_replica_regions("eu-west-1");
        removal.send().await.unwrap();
        assert_eq!(code(delete().await), "ok");
    }
}

#[tokio::test]
async fn an_update_changes_what_it_names() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("update"));
        let update = || client.update_secret().secret_id(&name);
        assert_eq!(code(update().description("none").send().await), "ResourceNotFoundException");
        let tag = Tag::builder().key("a").value("1").build();
        client.create_secret().name(&name).secret_string("one").description("old").tags(tag).send().await.unwrap();

        let answer = update().description("new").kms_key_id("alias/mine").send().await.unwrap();
        assert_eq!((answer.name(), answer.version_id()), (Some(name.as_str()), None));
        assert!(answer.arn().unwrap().contains(&name));
        let described = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!((described.description(), described.kms_key_id()), (Some("new"), Some("alias/mine")));
        assert_eq!(described.tags().len(), 1);
        assert_eq!(staged(&client, &name, CURRENT).await, "one");

        let token = token();
        let answer = update().secret_string("two").client_request_token(&token).send().await.unwrap();
        assert_eq!(answer.version_id(), Some(token.as_str()));
        assert_eq!(staged(&client, &name, CURRENT).await, "two");
        assert_eq!(staged(&client, &name, PREVIOUS).await, "one");
        let described = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!((described.description(), described.kms_key_id()), (Some("new"), Some("alias/mine")));
        // moto takes the same value again.
        let again = |value: &str| update().secret_string(value).client_request_token(&token).send();
        assert_eq!(code(again("two").await), target.expect("ResourceExistsException", "ok"));
        assert_eq!(code(again("three").await), "ResourceExistsException");
        assert_eq!(staged(&client, &name, CURRENT).await, "two");

        // AWS does not name its own key; moto keeps the empty text.
        update().kms_key_id("").send().await.unwrap();
        let described = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(described.kms_key_id(), target.emulator.is_none().then_some(""));

        client.delete_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(code(update().description("late").send().await), "InvalidRequestException");
        let late = update().description("late").secret_string("late").send().await;
        assert_eq!(code(late), "InvalidRequestException");
    }
}

#[tokio::test]
async fn a_secret_is_created_with_replicas() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("create-replicas"));
        let region = |name: &str| ReplicaRegionType::builder().region(name).kms_key_id("alias/there").build();
        let create = client.create_secret().name(&name).secret_string("one").force_overwrite_replica_secret(true);
        let create = |regions: &[&str]| {
            let regions = regions.iter().map(|name| region(name)).collect();
            create.clone().set_add_replica_regions(Some(regions)).send()
        };
        // moto lets none of it stand in the way.
        if target.emulator.is_some() {
            assert_eq!(code(create(&["eu-west-1", "us-east-1"]).await), "InvalidParameterException");
            assert_eq!(code(create(&["Europe"]).await), "ValidationException");
            assert_eq!(code(create(&[]).await), "ValidationException");
        }
        let answer = create(&["eu-west-1", "eu-central-1"]).await.unwrap();
        let regions = |status: &[ReplicationStatusType]| {
            let mut regions: Vec<_> = status.iter().map(|one| one.region().unwrap().to_owned()).collect();
            regions.sort_unstable();
            regions
        };
        assert_eq!(regions(answer.replication_status()), ["eu-central-1", "eu-west-1"]);
        let described = client.describe_secret().secret_id(&name).send().await.unwrap();
        assert_eq!(regions(described.replication_status()), ["eu-central-1", "eu-west-1"]);
        if let Some(emulator) = &target.emulator {
            assert_eq!(described.replication_status()[0].kms_key_id(), Some("alias/there"));
            let replicas = emulator.secret(&name).unwrap().replicas;
            assert_eq!(replicas.iter().collect::<Vec<_>>(), ["eu-central-1", "eu-west-1"]);
        }
        let deletion = client.delete_secret().secret_id(&name).send().await;
        assert_eq!(code(deletion), "InvalidParameterException");
    }
}

#[tokio::test]
async fn descriptions_keys_and_tags_have_limits() {
    for target in targets() {
        let (client, name) = (target.secrets(), fresh("metadata"));
        create(&client, &name, "one").await;
        // moto takes them all.
        let refused = |code| target.expect(code, "ok");
        let update = || client.update_secret().secret_id(&name);
        let most = "\u{fc}".repeat(2048);
        assert_eq!(code(update().description(&most).kms_key_id(&most).send().await), "ok");
        let more = format!("{most}x");
        assert_eq!(code(update().description(&more).send().await), refused("ValidationException"));
        assert_eq!(code(update().kms_key_id(&more).send().await), refused("ValidationException"));
        let create = || client.create_secret().name(fresh("metadata")).secret_string("one");
        assert_eq!(code(create().description(&more).send().await), refused("ValidationException"));
        assert_eq!(code(create().kms_key_id(&more).send().await), refused("ValidationException"));

        let tag = |key: &str| Tag::builder().key(key).value("1").build();
        for key in ["aws:mine", "AWS:mine"] {
            assert_eq!(code(create().tags(tag(key)).send().await), refused("InvalidParameterException"));
            let tagged = client.tag_resource().secret_id(&name).tags(tag(key)).send().await;
            assert_eq!(code(tagged), refused("InvalidParameterException"));
        }
    }
}

#[tokio::test]
async fn a_role_is_assumed_with_a_web_identity() {
    for target in targets() {
        if let Some(emulator) = &target.emulator {
            emulator.add_role(Role::new("reader").trusts_web_identity());
        }
        let sts = target.sts();
        let request = sts
            .assume_role_with_web_identity()
            .role_arn("arn:aws:iam::123456789012:role/reader")
            .role_session_name("pod")
            .web_identity_token(jwt(r#"{"sub":"pod","aud":["sts"]}"#));
        let answer = request.send().await.unwrap();
        let arn = "arn:aws:sts::123456789012:assumed-role/reader/pod";
        assert_eq!(answer.assumed_role_user().unwrap().arn(), arn);
        let credentials = answer.credentials().unwrap();
        assert!(credentials.access_key_id().starts_with("ASIA"));
        let identity = sts_as(&target, credentials).get_caller_identity().send().await.unwrap();
        assert_eq!(identity.arn(), Some(arn));
        assert_eq!(identity.account(), Some("123456789012"));
    }
}

#[tokio::test]
async fn a_session_has_tags() {
    for target in targets() {
        if let Some(emulator) = &target.emulator {
            emulator.add_role(Role::new("tagged").trusts("arn:aws:iam::123456789012:user/keytide"));
        }
        let sts = target.sts();
        let assume = |tags: &[(&str, &str)], transitive: &str| {
            let tag = |(key, value): &(&str, &str)| aws_sdk_sts::types::Tag::builder().key(*key).value(*value).build();
            let tags = tags.iter().map(tag).collect::<Result<_, _>>().unwrap();
            let assume = sts.assume_role().role_arn("arn:aws:iam::123456789012:role/tagged").role_session_name("me");
            assume.set_tags(Some(tags)).transitive_tag_keys(transitive).send()
        };
        let answer = assume(&[("team", "a b"), ("stage", "")], "team").await.unwrap();
        let identity = sts_as(&target, answer.credentials().unwrap()).get_caller_identity().send().await.unwrap();
        assert_eq!(identity.arn(), Some("arn:aws:sts::123456789012:assumed-role/tagged/me"));
        // moto checks nothing of it.
        let refused = target.expect("InvalidParameterValue", "ok");
        assert_eq!(code(assume(&[("team", "a"), ("Team", "b")], "team").await), refused);
        assert_eq!(code(assume(&[("team", "a")], "stage").await), refused);
    }
}

fn sts_as(target: &Target, credentials: &aws_sdk_sts::types::Credentials) -> Sts {
    sts(&target.url, session(credentials))
}

// === of the emulator only: moto evaluates no signatures, no permissions, no trust ===

#[tokio::test]
async fn only_the_right_signature_in_time_is_accepted() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let as_user = |id: &str, key: &str| Credentials::from_keys(id, key, None);
    let unknown = as_user("AKIAUNKNOWN", "x");
    assert_eq!(get(&client(&emulator.url(), unknown.clone(), "us-east-1"), "a").await, "UnrecognizedClientException");
    assert_eq!(code(sts(&emulator.url(), unknown).get_caller_identity().send().await), "InvalidClientTokenId");
    let wrong = as_user("AKIAIOSFODNN7EXAMPLE", "x");
    assert_eq!(get(&client(&emulator.url(), wrong.clone(), "us-east-1"), "a").await, "InvalidSignatureException");
    assert_eq!(code(sts(&emulator.url(), wrong).get_caller_identity().send().await), "SignatureDoesNotMatch");

    let right = client(&emulator.url(), owner(), "us-east-1");
    assert_eq!(get(&right, "a").await, "ok");
    emulator.set_clock(|| later(6 * 60));
    assert_eq!(get(&right, "a").await, "InvalidSignatureException");
    // STS is more patient. And the SDK has learnt the time from the refusal.
    assert_eq!(code(sts(&emulator.url(), owner()).get_caller_identity().send().await), "ok");
}

#[expect(clippy::disallowed_methods, reason = "a clock that is wrong by a known time")]
fn later(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

#[tokio::test]
async fn a_role_may_do_what_its_statements_allow() {
    let role = Role::new("reader").trusts_web_identity().allow(Statement::new(
        ["secretsmanager:Get*"],
        ["arn:aws:secretsmanager:us-east-1:123456789012:secret:team/*-??????"],
    ));
    let seed = Seed::default().secret("team/a", "one").secret("other/a", "two").role(role);
    let emulator = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
    let assumed = sts(&emulator.url(), owner())
        .assume_role_with_web_identity()
        .role_arn("arn:aws:iam::123456789012:role/reader")
        .role_session_name("pod")
        .web_identity_token(jwt("{}"))
        .send()
        .await
        .unwrap();
    let reader = client(&emulator.url(), session(assumed.credentials().unwrap()), "us-east-1");
    assert_eq!(get(&reader, "team/a").await, "ok");
    let denied = reader.get_secret_value().secret_id("other/a").send().await.unwrap_err().into_service_error();
    assert_eq!(denied.code(), Some("AccessDeniedException"));
    assert_eq!(
        denied.message().unwrap(),
        "User: arn:aws:sts::123456789012:assumed-role/reader/pod is not authorized to perform: \
         secretsmanager:GetSecretValue on resource: other/a because no identity-based policy allows the \
         secretsmanager:GetSecretValue action"
    );
    let batch = || reader.batch_get_secret_value().secret_id_list("team/a").secret_id_list("other/a").send();
    assert_eq!(code(batch().await), "AccessDeniedException");
    emulator.allow(
        "reader",
        &[
            Statement::new(["secretsmanager:BatchGetSecretValue"], ["*"]),
            Statement::new(["secretsmanager:GetSecretValue"], ["*:team/*"]),
        ],
    );
    let answer = batch().await.unwrap();
    assert_eq!(answer.secret_values().len(), 1);
    assert_eq!(answer.errors()[0].error_code(), Some("AccessDeniedException"));
    let last = emulator.requests().pop().unwrap();
    assert_eq!(last.principal.as_deref(), Some("arn:aws:sts::123456789012:assumed-role/reader/pod"));
}

#[tokio::test]
async fn a_role_trusts_whom_it_names() {
    let emulator = Emulator::start().unwrap();
    let hop = emulator.add_role(Role::new("hop").trusts("arn:aws:iam::123456789012:user/keytide"));
    let far =
        emulator.add_role(Role { max_session_seconds: Some(7200), ..Role::new("far") }.trusts(&hop).external_id("x"));
    let user = sts(&emulator.url(), owner());
    let assume = |sts: &Sts, arn: &str| sts.assume_role().role_arn(arn).role_session_name("me");
    assert_eq!(code(assume(&user, &far).external_id("x").send().await), "AccessDenied");
    assert_eq!(code(assume(&user, "arn:aws:iam::123456789012:role/none").send().await), "AccessDenied");
    assert_eq!(code(assume(&user, &hop).duration_seconds(899).send().await), "ValidationError");
    let answer = assume(&user, &hop).send().await.unwrap();
    let hopped = sts(&emulator.url(), session(answer.credentials().unwrap()));
    assert_eq!(code(assume(&hopped, &far).send().await), "AccessDenied");
    assert_eq!(code(assume(&hopped, &far).external_id("y").send().await), "AccessDenied");
    assert_eq!(code(assume(&hopped, &far).external_id("x").duration_seconds(7200).send().await), "ValidationError");
    assert_eq!(code(assume(&hopped, &far).external_id("x").duration_seconds(3600).send().await), "ok");
}

#[tokio::test]
async fn a_web_identity_token_is_checked() {
    let emulator = Emulator::start().unwrap();
    let arn = emulator.add_role(Role::new("reader").token("known"));
    emulator.add_role(Role::new("closed"));
    let sts = sts(&emulator.url(), owner());
    let assume = |arn: &str, token: &str| {
        sts.assume_role_with_web_identity().role_arn(arn).role_session_name("pod").web_identity_token(token).send()
    };
    assert_eq!(code(assume(&arn, "known").await), "ok");
    assert_eq!(code(assume(&arn, "unknown").await), "InvalidIdentityToken");
    assert_eq!(code(assume(&arn, &jwt("{}")).await), "InvalidIdentityToken");
    assert_eq!(code(assume(&arn, &jwt(r#"{"exp":1}"#)).await), "ExpiredTokenException");
    assert_eq!(code(assume("arn:aws:iam::123456789012:role/closed", &jwt("{}")).await), "AccessDenied");
}

#[tokio::test]
async fn sessions_end() {
    let seed = Seed::default().session_lifetime(Duration::from_mins(1));
    let emulator = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
    let role = Role::new("reader").trusts_web_identity().allow(Statement::everything());
    let arn = emulator.add_role(role);
    emulator.put("a", "one");
    let user = sts(&emulator.url(), owner());
    let request = user.assume_role_with_web_identity().role_arn(&arn).role_session_name("pod");
    let answer = request.web_identity_token(jwt("{}")).send().await.unwrap();
    let credentials = answer.credentials().unwrap();
    let left = credentials.expiration().secs() - i64::try_from(since_1970()).unwrap();
    assert!((55..=60).contains(&left), "{left}");
    let reader = client(&emulator.url(), session(credentials), "us-east-1");
    assert_eq!(get(&reader, "a").await, "ok");
    emulator.expire_sessions();
    assert_eq!(get(&reader, "a").await, "ExpiredTokenException");
    let identity = sts(&emulator.url(), session(credentials)).get_caller_identity().send().await;
    assert_eq!(code(identity), "ExpiredToken");
}

fn since_1970() -> u64 {
    later(0).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn faults_strike_what_they_match() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    emulator.put("a", "one");
    emulator.put("b", "two");
    emulator.fault(Fault::on("GetSecretValue").secret("a").skip(1).times(2));
    let mut seen = Vec::new();
    for name in ["a", "b", "a", "a", "a"] {
        seen.push(get(&client, name).await);
    }
    assert_eq!(seen, ["ok", "ok", "ThrottlingException", "ThrottlingException", "ok"]);

    let arn = emulator.arn("a").unwrap();
    let error = FaultKind::Error { code: "Odd".into(), status: 418, message: String::new() };
    for (kind, expected) in [
        (FaultKind::InternalError, "InternalServiceError"),
        (FaultKind::ExpiredToken, "ExpiredTokenException"),
        (error, "Odd"),
        (FaultKind::CutAfter(0), "network"),
        (FaultKind::CutAfter(10), "network"),
        (FaultKind::CutAfter(100_000), "network"),
        // The SDK calls what it cannot read an error of the service, without a code.
        (FaultKind::Body("<html>".into()), "none"),
        (FaultKind::Latency(Duration::from_millis(10)), "ok"),
    ] {
        emulator.fault(Fault::any().secret("a").times(1).kind(kind.clone()));
        assert_eq!(get(&client, &arn).await, expected, "{kind:?}");
        assert_eq!(get(&client, "a").await, "ok", "{kind:?}");
    }
    emulator.fault(Fault::on("GetSecretValue").kind(FaultKind::EchoValue));
    let error = client.get_secret_value().secret_id("b").send().await.unwrap_err().into_service_error();
    assert!(error.message().unwrap().ends_with("two"));
    emulator.fault(Fault::on("PutSecretValue").kind(FaultKind::EchoValue));
    let error = client.put_secret_value().secret_id("b").secret_string("three").send().await.unwrap_err();
    assert!(error.into_service_error().message().unwrap().ends_with("three"));
    assert_eq!(emulator.value("b").as_deref(), Some("two"));
    emulator.clear_faults();
    assert_eq!(get(&client, "b").await, "ok");
}

#[tokio::test]
async fn a_hanging_call_never_answers() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    emulator.fault(Fault::on("GetSecretValue").times(1).kind(FaultKind::Hang));
    let call = client.get_secret_value().secret_id("a").send();
    tokio::time::timeout(Duration::from_millis(300), call).await.unwrap_err();
    assert_eq!(emulator.requests()[0].outcome, "pending");
    assert_eq!(get(&client, "a").await, "ok");
}

#[tokio::test]
async fn a_cut_answer_does_not_undo_a_write() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    emulator.fault(Fault::on("PutSecretValue").times(1).kind(FaultKind::CutAfter(0)));
    let call = client.put_secret_value().secret_id("a").secret_string("two").send().await;
    assert_eq!(code(call), "network");
    assert_eq!(emulator.value("a").as_deref(), Some("two"));
}

#[tokio::test]
async fn updates_and_replicas_have_permissions_of_their_own() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    let allow = |actions: &[&str]| {
        let actions = actions.iter().map(|action| format!("secretsmanager:{action}"));
        emulator.allow("AKIAIOSFODNN7EXAMPLE", &[Statement::new(actions, ["*"])]);
    };
    allow(&["PutSecretValue", "CreateSecret"]);
    let update = || client.update_secret().secret_id("a").description("new").send();
    let replica = ReplicaRegionType::builder().region("eu-west-1").build();
    let create = || client.create_secret().name("b").secret_string("two").add_replica_regions(replica.clone()).send();
    assert_eq!(code(update().await), "AccessDeniedException");
    let denied = create().await.unwrap_err().into_service_error();
    assert_eq!(denied.code(), Some("AccessDeniedException"));
    assert!(denied.message().unwrap().contains("secretsmanager:ReplicateSecretToRegions"));
    assert_eq!(emulator.secret("b"), None);
    allow(&["UpdateSecret", "CreateSecret", "ReplicateSecretToRegions"]);
    assert_eq!(code(update().await), "ok");
    assert_eq!(code(create().await), "ok");
    assert_eq!(emulator.secret("a").unwrap().description.as_deref(), Some("new"));
}

#[tokio::test]
async fn what_is_not_ones_own_is_not_changed() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    let changes = async || {
        let tag = Tag::builder().key("a").value("1").build();
        [
            code(client.put_secret_value().secret_id("a").secret_string("two").send().await),
            code(client.update_secret().secret_id("a").description("new").send().await),
            code(client.update_secret().secret_id("a").secret_string("two").send().await),
            code(client.tag_resource().secret_id("a").tags(tag).send().await),
            code(client.untag_resource().secret_id("a").tag_keys("a").send().await),
            code(client.delete_secret().secret_id("a").send().await),
            code(client.delete_secret().secret_id("a").force_delete_without_recovery(true).send().await),
        ]
    };
    let before = emulator.secret("a");
    let describe = async || client.describe_secret().secret_id("a").send().await.unwrap();

    emulator.set_owner("a", Some("rds"));
    assert_eq!(describe().await.owning_service(), Some("rds"));
    assert_eq!(changes().await, ["InvalidRequestException"; 7]);
    emulator.set_owner("a", None);
    assert_eq!(describe().await.owning_service(), None);

    emulator.set_primary_region("a", Some("eu-west-1"));
    assert_eq!(describe().await.primary_region(), Some("eu-west-1"));
    // As seen on AWS, and unlike what its reference lets one expect.
    assert_eq!(changes().await, ["InvalidParameterException"; 7]);
    assert_eq!(get(&client, "a").await, "ok");
    emulator.set_primary_region("a", None);
    assert_eq!(describe().await.primary_region(), None);

    assert_eq!(emulator.secret("a"), before);
    let put = client.put_secret_value().secret_id("a").secret_string("two").send().await;
    assert_eq!(code(put), "ok");
}

#[tokio::test]
async fn replicas_can_take_their_time_to_go() {
    let emulator = Emulator::start().unwrap();
    emulator.set_slow_replication(2);
    let client = client(&emulator.url(), owner(), "us-east-1");
    let replicas = ["eu-central-1", "eu-west-1"].map(|name| ReplicaRegionType::builder().region(name).build());
    let create = client.create_secret().name("a").secret_string("one");
    create.set_add_replica_regions(Some(replicas.to_vec())).send().await.unwrap();
    let remove = async |region: &str| {
        let removal = client.remove_regions_from_replication().secret_id("a").remove_replica_regions(region);
        let answer = removal.send().await.unwrap();
        answer.replication_status().iter().filter(|one| one.status() == Some(&StatusType::InProgress)).count()
    };
    let describe = async || {
        let answer = client.describe_secret().secret_id("a").send().await.unwrap();
        let status = answer.replication_status().iter();
        status.map(|one| format!("{}: {}", one.region().unwrap(), one.status().unwrap())).collect::<Vec<_>>().join(", ")
    };
    let delete = || client.delete_secret().secret_id("a").send();
    assert_eq!(describe().await, "eu-central-1: InSync, eu-west-1: InSync");
    assert_eq!(remove("eu-west-1").await, 1);
    assert_eq!(describe().await, "eu-central-1: InSync, eu-west-1: InProgress");
    // Asked again it does not begin again.
    assert_eq!(remove("eu-west-1").await, 1);
    assert_eq!(describe().await, "eu-central-1: InSync, eu-west-1: InProgress");
    assert_eq!(describe().await, "eu-central-1: InSync");
    assert_eq!(remove("eu-central-1").await, 1);
    assert_eq!(code(delete().await), "InvalidParameterException");
    assert_eq!(describe().await, "eu-central-1: InProgress");
    assert_eq!(code(delete().await), "InvalidParameterException");
    assert_eq!(describe().await, "eu-central-1: InProgress");
    assert_eq!(describe().await, "");
    assert_eq!(code(delete().await), "ok");
}

#[tokio::test]
async fn a_write_can_be_done_and_answered_with_an_error() {
    let error = FaultKind::ErrorAfter { code: "InternalServiceError".into(), status: 500, message: "later".into() };
    for (kind, expected) in [(error, "InternalServiceError"), (FaultKind::CutAfter(0), "network")] {
        let emulator = Emulator::start().unwrap();
        let client = client(&emulator.url(), owner(), "us-east-1");
        let once = |action: &str| emulator.fault(Fault::on(action).times(1).kind(kind.clone()));
        let current = || emulator.secret("a").unwrap().staged(CURRENT).unwrap().clone();

        let made = token();
        let create = client.create_secret().name("a").secret_string("one").client_request_token(&made);
        once("CreateSecret");
        assert_eq!(code(create.clone().send().await), expected);
        assert_eq!((current().id, current().value.as_str()), (made, "one"));
        assert_eq!(code(create.send().await), "ok");

        let put = client.put_secret_value().secret_id("a").secret_string("two").client_request_token(token());
        once("PutSecretValue");
        assert_eq!(code(put.clone().send().await), expected);
        assert_eq!(current().value, "two");
        assert_eq!(code(put.send().await), "ok");

        once("UpdateSecret");
        assert_eq!(code(client.update_secret().secret_id("a").secret_string("three").send().await), expected);
        assert_eq!(current().value, "three");

        let delete = client.delete_secret().secret_id("a");
        once("DeleteSecret");
        assert_eq!(code(delete.clone().send().await), expected);
        assert!(emulator.secret("a").unwrap().scheduled_for_deletion);
        assert_eq!(code(delete.send().await), "InvalidRequestException");
        assert_eq!(emulator.secret("a").unwrap().versions.len(), 3);
    }
    let json = r#"{"kind":{"error_after":{"code":"Odd","status":500,"message":""}}}"#;
    assert!(matches!(serde_json::from_str::<Fault>(json).unwrap().kind, FaultKind::ErrorAfter { status: 500, .. }));
}

#[tokio::test]
async fn an_update_too_can_be_denied_with_its_value() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    emulator.put("a", "one");
    emulator.fault(Fault::on("UpdateSecret").kind(FaultKind::EchoValue));
    let error = client.update_secret().secret_id("a").secret_string("two").send().await.unwrap_err();
    assert!(error.into_service_error().message().unwrap().ends_with("two"));
    assert_eq!(emulator.value("a").as_deref(), Some("one"));
}

#[tokio::test]
async fn a_secret_has_a_hundred_versions() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    for _ in 0..100 {
        emulator.put("young", "x");
        emulator.put_dated("old", "x", 1_500_000_000_000);
    }
    let put = |name: &str| client.put_secret_value().secret_id(name).secret_string("y").send();
    let update = |name: &str| client.update_secret().secret_id(name).secret_string("z").description("new").send();
    assert_eq!(code(put("young").await), "LimitExceededException");
    assert_eq!(code(update("young").await), "LimitExceededException");
    assert_eq!(emulator.secret("young").unwrap().description, None);
    assert_eq!(code(put("old").await), "ok");
    assert_eq!(code(update("old").await), "ok");
    assert_eq!(emulator.secret("old").unwrap().versions.len(), 100);
    let described = client.describe_secret().secret_id("old").send().await.unwrap();
    assert_eq!(described.version_ids_to_stages().unwrap().len(), 2);
}

#[tokio::test]
async fn deletions_take_place_when_they_are_due() {
    let emulator = Emulator::start().unwrap();
    emulator.set_clock(|| later(0));
    for name in ["gone", "restored", "later", "again", "kept"] {
        emulator.put(name, "one");
    }
    for name in ["gone", "restored", "again"] {
        emulator.schedule_deletion(name);
    }
    emulator.restore("restored");
    emulator.remove("again");
    emulator.put("again", "two");
    emulator.set_clock(|| later(29 * 24 * 60 * 60));
    emulator.schedule_deletion("later");
    assert_eq!(emulator.names(), ["again", "gone", "kept", "later", "restored"]);
    emulator.set_clock(|| later(31 * 24 * 60 * 60));
    assert_eq!(emulator.names(), ["again", "kept", "later", "restored"]);
    emulator.set_clock(|| later(60 * 24 * 60 * 60));
    assert_eq!(emulator.names(), ["again", "kept", "restored"]);
}

#[tokio::test]
async fn a_secret_can_be_looked_at_and_changed_by_hand() {
    let emulator = Emulator::start().unwrap();
    let first = emulator.put("a", "canary-one");
    let second = emulator.put("a", "canary-two");
    emulator.put_in("eu-west-1", "far", "three");
    emulator.set_metadata("a", Some("by hand"), &[("a", "1"), ("b", "2")]);
    emulator.tag("a", "c", "3");
    emulator.untag("a", "a");
    emulator.set_kms_key("a", Some("alias/mine"));
    let view = emulator.secret("a").unwrap();
    let version = |id: &str, value: &str, stage: &str| VersionView {
        id: id.to_owned(),
        value: value.to_owned(),
        stages: [stage.to_owned()].into(),
    };
    let expected = SecretView {
        description: Some("by hand".to_owned()),
        kms_key_id: Some("alias/mine".to_owned()),
        tags: [("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())].into(),
        replicas: [].into(),
        versions: vec![version(&first, "canary-one", PREVIOUS), version(&second, "canary-two", CURRENT)],
        scheduled_for_deletion: false,
    };
    assert_eq!(view, expected);
    assert!(!format!("{view:?}").contains("canary"));
    assert_eq!((emulator.secret("far"), emulator.secret_in("us-east-1", "far")), (None, None));
    assert_eq!(emulator.secret_in("eu-west-1", "far").unwrap().versions[0].value, "three");
}

#[tokio::test]
async fn requests_need_not_be_recorded() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    emulator.set_recording(false);
    emulator.fault(Fault::on("GetSecretValue").secret("a").times(1));
    assert_eq!(get(&client, "a").await, "ThrottlingException");
    assert_eq!(get(&client, "a").await, "ok");
    assert_eq!((emulator.requests().len(), emulator.count("GetSecretValue")), (0, 2));
    emulator.set_recording(true);
    assert_eq!(get(&client, "a").await, "ok");
    assert_eq!((emulator.requests().len(), emulator.count("GetSecretValue")), (1, 3));
}

#[tokio::test]
async fn stale_reads_answer_the_version_before() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    let old = emulator.put("a", "one");
    emulator.put("a", "two");
    emulator.put("new", "one");
    emulator.fault(Fault::any().kind(FaultKind::Stale));
    let answer = client.get_secret_value().secret_id("a").send().await.unwrap();
    assert_eq!((answer.secret_string(), answer.version_id()), (Some("one"), Some(old.as_str())));
    assert_eq!(answer.version_stages(), [CURRENT]);
    assert_eq!(get(&client, "new").await, "ResourceNotFoundException");
    emulator.clear_faults();
    emulator.fault(Fault::any().kind(FaultKind::Alternate));
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(staged(&client, "a", CURRENT).await);
    }
    assert_eq!(seen, ["two", "one", "two", "one"]);
}

#[tokio::test]
async fn a_batch_comes_in_pages() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    let names = ["a", "b", "c"];
    for name in names {
        emulator.put(name, name);
    }
    for (size, expected) in [(2, vec![2, 1]), (0, vec![0, 3]), (3, vec![3])] {
        emulator.fault(Fault::on("BatchGetSecretValue").times(1).kind(FaultKind::Pages(size)));
        let (mut pages, mut token) = (Vec::new(), None);
        loop {
            let ids = names.map(str::to_owned).to_vec();
            let batch = client.batch_get_secret_value().set_secret_id_list(Some(ids)).set_next_token(token);
            let answer = batch.send().await.unwrap();
            pages.push(answer.secret_values().len());
            token = answer.next_token;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(pages, expected);
    }
    let wrong = client.batch_get_secret_value().secret_id_list("a").next_token("wrong").send().await;
    assert_eq!(code(wrong), "InvalidNextTokenException");

    emulator.fault(Fault::on("BatchGetSecretValue").secret("b").kind(FaultKind::DropEntries));
    let entry = FaultKind::EntryError { code: "InternalServiceError".into(), message: String::new() };
    emulator.fault(Fault::on("BatchGetSecretValue").secret("c").kind(entry));
    let batch = client.batch_get_secret_value().set_secret_id_list(Some(names.map(str::to_owned).to_vec()));
    let answer = batch.send().await.unwrap();
    assert_eq!(answer.secret_values()[0].name(), Some("a"));
    assert_eq!((answer.secret_values().len(), answer.errors().len()), (1, 1));
    assert_eq!(answer.errors()[0].secret_id(), Some("c"));
}

#[tokio::test]
async fn a_port_that_is_down_comes_back_as_the_same() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    for _ in 0..3 {
        assert_eq!(get(&client, "a").await, "ok");
        emulator.set_down(true);
        assert_eq!(get(&client, "a").await, "network");
        assert_eq!(get(&client, "a").await, "network");
        emulator.set_down(false);
    }
    assert_eq!(get(&client, "a").await, "ok");
    assert_eq!(emulator.count("GetSecretValue"), 4);
}

#[tokio::test]
async fn the_record_holds_no_value() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    let canary = "canary-3f9c";
    create(&client, "a", canary).await;
    put(&client, "a", canary).await;
    assert_eq!(get(&client, "a").await, "ok");
    let requests = emulator.requests();
    assert_eq!(requests.iter().map(|request| request.outcome.as_str()).collect::<Vec<_>>(), ["200"; 3]);
    assert_eq!(requests[2].secret_ids, ["a"]);
    assert_eq!(requests[2].region.as_deref(), Some("us-east-1"));
    assert!(!format!("{requests:?}{emulator:?}").contains(canary));
    emulator.clear_requests();
    assert_eq!((emulator.requests().len(), emulator.count("GetSecretValue")), (0, 0));
}

#[tokio::test]
async fn changes_from_outside_are_seen() {
    let emulator = Emulator::start().unwrap();
    let client = client(&emulator.url(), owner(), "us-east-1");
    emulator.put_dated("a", "one", 1_500_000_000_250);
    let created = client.get_secret_value().secret_id("a").send().await.unwrap().created_date.unwrap();
    assert_eq!(created.to_millis().unwrap(), 1_500_000_000_250);
    emulator.put("a", "two");
    emulator.put_stage("a", "AWSPENDING", "three");
    assert_eq!(staged(&client, "a", "AWSPENDING").await, "three");
    emulator.rollback("a");
    assert_eq!(staged(&client, "a", CURRENT).await, "one");
    emulator.schedule_deletion("a");
    assert_eq!(get(&client, "a").await, "InvalidRequestException");
    emulator.restore("a");
    assert_eq!(emulator.value("a").as_deref(), Some("one"));
    emulator.remove("a");
    assert_eq!(get(&client, "a").await, "ResourceNotFoundException");
    emulator.put_in("eu-west-1", "a", "far");
    assert_eq!(get(&client, "a").await, "ResourceNotFoundException");
    emulator.put_binary("b", b"\xff");
    assert_eq!(emulator.value("b"), None);
    assert_eq!(emulator.names(), ["b"]);
}

#[test]
fn dropping_it_frees_the_port_and_the_thread() {
    for _ in 0..50 {
        let emulator = Emulator::start().unwrap();
        let address = emulator.url().trim_start_matches("http://").to_owned();
        drop(emulator);
        std::net::TcpStream::connect(address).unwrap_err();
    }
}

#[test]
fn the_example_seed_is_one() {
    let seed = Seed::parse(include_str!("../examples/seed.json")).unwrap();
    let emulator = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
    let expected = r#"{ "OPENAI_API_KEY": "sk-example-openai", "ANTHROPIC_API_KEY": "sk-example-anthropic" }"#;
    assert_eq!(emulator.value("litellm/providers").as_deref(), Some(expected));
    assert_eq!(emulator.names().len(), 3);
}

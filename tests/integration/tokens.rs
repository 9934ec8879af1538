//! Web-identity tokens whose file is not what it should be, at the start and later.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    time::Duration,
};

use keytide_emulator::{Role, Seed, WebIdentity};

use crate::{
    cast::{LATE, arn, fails, lenient, play, pod, reader, sts, together, token, token_until},
    support::{Stage, until},
};

/// A token that ended on this day.
const ENDED: (i64, &str) = (1_700_000_000, "2023-11-14T22:13:20Z");

/// Trusts the token of `pod`, and of nobody else.
fn strict() -> Role {
    let web_identity = WebIdentity { subject: Some("pod".to_owned()), ..WebIdentity::default() };
    Role { web_identity: Some(web_identity), ..reader("pod") }
}

fn short_lived(role: Role) -> Stage {
    pod(Seed::default().role(role).session_lifetime(Duration::from_secs(2)))
}

/// What can be wrong with the file, and what is said of it.
const CASES: [(&str, &[&str]); 11] = [
    ("missing", &["entity not found"]),
    ("empty", &["the file is empty"]),
    ("blank", &["the file is empty"]),
    ("cut", &["not a whole JSON web token"]),
    ("without a signature", &["not a whole JSON web token"]),
    ("unreadable", &["permission denied"]),
    ("directory", &["not a regular file"]),
    ("pipe", &["not a regular file"]),
    ("huge", &["64 KiB at most"]),
    ("ended", &["ExpiredTokenException", "ended at", ENDED.1, "the kubelet writes a new one"]),
    ("somebody else's", &["AccessDenied", "trust policy must allow sts:AssumeRoleWithWebIdentity"]),
];

fn spoil(stage: &Stage, case: &str) {
    let (good, path) = (token("pod"), stage.path("token"));
    let write = |content: &str| drop(stage.write("token", content));
    match case {
        "missing" => fs::remove_file(&path).unwrap(),
        "empty" => write(""),
        "blank" => write(" \n"),
        "cut" => write(&good[..good.len() / 2]),
        "without a signature" => write(&good[..=good.rfind('.').unwrap()]),
        "unreadable" => fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap(),
        "directory" => {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        "pipe" => {
            fs::remove_file(&path).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        "huge" => write(&good.repeat(1000)),
        "ended" => write(&token_until(ENDED.0)),
        "somebody else's" => write(&token("another-pod")),
        _ => panic!("no case {case}"),
    }
}

fn restore(stage: &Stage) {
    let path = stage.path("token");
    if path.is_dir() {
        fs::remove_dir(&path).unwrap();
    } else {
        drop(fs::remove_file(&path));
    }
    stage.write("token", token("pod"));
}

#[test]
fn a_token_file_that_cannot_be_used_ends_the_start_and_is_named_with_what_to_do() {
    together(CASES, |(case, parts)| {
        let stage = pod(Seed::default().role(strict()));
        spoil(&stage, case);
        let file = stage.path("token").display().to_string();
        let log = fails(&stage, 1, parts);
        // Who the token is not for is a matter of the role, not of the file.
        let subject = if case == "somebody else's" { arn("pod") } else { file };
        assert!(log.contains(&subject), "{subject} in {log}");
        let asked = matches!(case, "ended" | "somebody else's");
        assert_eq!(!sts(&stage).is_empty(), asked, "{case}: STS is asked only with what could be a token");
    });
}

#[test]
fn a_token_file_that_goes_bad_leaves_the_last_good_value_until_it_is_good_again() {
    together(CASES, |(case, parts)| {
        let mut scene = play(short_lived(strict()));
        spoil(&scene.stage, case);
        scene.suffers("identity", parts);
        restore(&scene.stage);
        scene.heals();
    });
}

#[test]
fn a_token_of_an_unknown_cluster_is_told_as_that() {
    let stage = pod(Seed::default().role(reader("pod").token(&token("elsewhere"))));
    let file = stage.path("token").display().to_string();
    let advice = "is it of this cluster, and is the cluster's OIDC provider known in the role's account?";
    fails(&stage, 1, &["InvalidIdentityToken", &arn("pod"), &file, advice]);
}

#[test]
fn a_rotated_token_is_the_one_that_the_next_renewal_sends() {
    let (first, second) = (token("first"), token("second"));
    let role = reader("pod").token(&first).token(&second);
    let stage = pod(Seed::default().role(role).session_lifetime(Duration::from_secs(2) + LATE));
    lenient(&stage);
    // As the kubelet does it: a link to a directory, swapped.
    fs::remove_file(stage.path("token")).unwrap();
    stage.write("..1/token", &first);
    stage.write("..2/token", &second);
    symlink("..1/token", stage.path("token")).unwrap();
    let scene = play(stage);
    symlink("..2/token", scene.stage.path("next")).unwrap();
    fs::rename(scene.stage.path("next"), scene.stage.path("token")).unwrap();
    scene.stage.aws.add_role(reader("pod").token(&second));
    let before = scene.stage.aws.count("AssumeRoleWithWebIdentity");
    until("two renewals", || scene.stage.aws.count("AssumeRoleWithWebIdentity") >= before + 2);
    let refused = scene.stage.aws.requests().into_iter().filter(|request| request.outcome == "InvalidIdentityToken");
    assert_eq!(refused.count(), 0);
    assert_eq!(scene.daemon.metric("keytide_refreshes_total", &["incomplete"]), 0.0);
    scene.recovers();
}

#[test]
fn the_end_of_a_token_is_shown_and_only_that() {
    let stage = pod(Seed::default().role(strict()));
    stage.write("token", token_until(4_102_444_800));
    let scene = play(stage);
    assert_eq!(scene.metric("keytide_web_identity_token_expiry_timestamp_seconds"), 4_102_444_800.0);
    assert_eq!(scene.stage.status()["identity"]["token_expires"], "2100-01-01T00:00:00Z");
    scene.stays();
}

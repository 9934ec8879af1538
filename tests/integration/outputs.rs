//! Env files: their content, access, atomicity, and what others may do to them.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Stage, USER, is_root, until};

const PRIMARY: &str = "aws: {region: us-east-1}\nprimary_secret: {name: app}\nrefresh: {interval: 1s}\noutputs:\n";

fn stage(outputs: &str) -> Stage {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"A": "1", "B": "two words"}"#);
    stage.config(&format!("{PRIMARY}{outputs}"));
    stage
}

fn mode(stage: &Stage, name: &str) -> u32 {
    fs::metadata(stage.path(name)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn several_env_files_have_their_own_keys_names_formats_and_modes() {
    let stage = stage(concat!(
        "  - env_file: {path: \"{dir}/env/a.env\", format: posix, keys: [A]}\n",
        "  - env_file: {path: \"{dir}/env/b.json\", format: json, rename: {A: FIRST}, mode: \"0440\"}\n",
        "  - env_file: {path: \"{dir}/env/c.env\", format: docker}\n",
        "  - env_file: {path: \"{dir}/env/d.env\", format: kubernetes, name: kubelet}\n",
        "  - env_file: {path: \"{dir}/env/e.env\"}\n",
    ));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.read("env/a.env"), "A='1'\n");
    assert_eq!(stage.read("env/b.json"), "{\"FIRST\":\"1\",\"B\":\"two words\"}\n");
    assert_eq!(stage.read("env/c.env"), "A=1\nB=two words\n");
    assert_eq!(stage.read("env/d.env"), "A='1'\nB='two words'\n");
    assert_eq!(stage.read("env/e.env"), "A='1'\nB='two words'\n");
    assert_eq!((mode(&stage, "env/a.env"), mode(&stage, "env/b.json")), (0o400, 0o440));
    assert_eq!(daemon.metric("keytide_output_up", &["output=\"kubelet\""]), 1.0);
    assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 5.0);
}

#[test]
fn the_mode_follows_the_directory_and_the_pod() {
    let mut in_pod = stage("  - env_file: {path: \"{dir}/env/keys.env\"}");
    in_pod.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let daemon = in_pod.run();
    daemon.until_ready();
    assert_eq!(mode(&in_pod, "env/keys.env"), 0o444);

    let with_group = stage("  - env_file: {path: \"{dir}/env/keys.env\"}");
    with_group.make_directory("env", 0o2775);
    let daemon = with_group.run();
    daemon.until_ready();
    assert_eq!(mode(&with_group, "env/keys.env"), 0o440);
}

#[test]
fn a_group_that_is_not_ours_is_told() {
    // Of whoever runs the tests, who is keytide's user where that is not root.
    let ours = || rustix::process::getgroups().unwrap().into_iter().chain([rustix::process::getegid()]);
    let foreign =
        (1..=u32::from(u16::MAX)).find(|group| is_root() || ours().all(|ours| ours.as_raw() != *group)).unwrap();
    let stage = stage(&format!("  - env_file: {{path: \"{{dir}}/env/keys.env\", group: {foreign}}}"));
    let daemon = stage.run();
    daemon.until_log("failed to set the owner or group of");
    assert!(!stage.path("env/keys.env").exists());
    assert!(fs::read_dir(stage.path("env")).unwrap().all(|entry| entry.unwrap().file_name() == ".keytide"));
}

#[test]
fn unchanged_refreshes_write_nothing() {
    let stage = stage("  - env_file: {path: \"{dir}/env/keys.env\"}\n  - files: {directory: \"{dir}/files\"}");
    let daemon = stage.run();
    daemon.until_ready();
    let stamps = || {
        ["env/keys.env", "files/A", "env/.keytide/last-good.json"].map(|name| {
            let metadata = fs::metadata(stage.path(name)).unwrap();
            (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
        })
    };
    let before = stamps();
    until("five refreshes", || daemon.metric("keytide_refreshes_total", &["complete"]) >= 6.0);
    assert_eq!(stamps(), before);
    assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 2.0);
    assert_eq!(daemon.metric("keytide_output_repairs_total", &[]), 0.0);
}

#[test]
fn what_somebody_does_to_a_file_is_undone() {
    let deeds: [fn(&Path, &Path); 5] = [
        |path, _| fs::remove_file(path).unwrap(),
        |path, _| {
            fs::remove_file(path).unwrap();
            fs::write(path, "A='other'\n").unwrap();
        },
        |path, _| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
        |path, elsewhere| {
            // At once: a repair in between would be in the link's way.
            let link = path.with_extension("link");
            symlink(elsewhere, &link).unwrap();
            fs::rename(link, path).unwrap();
        },
        |path, _| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(path, "").unwrap();
        },
    ];
    // Each to a daemon of its own: somebody who does it again and again is met at a growing distance.
    for (number, deed) in deeds.into_iter().enumerate() {
        let stage = stage("  - env_file: {path: \"{dir}/env/keys.env\"}");
        let daemon = stage.run();
        daemon.until_ready();
        let path = stage.path("env/keys.env");
        deed(&path, &stage.write("elsewhere", "mine"));
        until(&format!("the repair of deed {number}"), || {
            let regular = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
            let content = "A='1'\nB='two words'\n";
            regular && stage.read("env/keys.env") == content && mode(&stage, "env/keys.env") == 0o400
        });
        assert_eq!(stage.read("elsewhere"), "mine", "deed {number}: nothing is written through a link");
        assert!(daemon.metric("keytide_output_repairs_total", &[]) >= 1.0);
        assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 1.0, "a repair is not a change");
    }
}

#[test]
fn a_directory_in_the_place_of_the_file_is_told_and_holds_up_no_other() {
    let stage = stage("  - env_file: {path: \"{dir}/env/keys.env\"}\n  - env_file: {path: \"{dir}/env/other.env\"}");
    stage.make_directory("env", 0o755);
    stage.make_directory("env/keys.env", 0o755);
    let daemon = stage.run();
    stage.until_file("env/other.env", "A='1'\nB='two words'\n");
    daemon.until_log("output env_file cannot be written");
    assert_eq!(daemon.get("/startupz").status, 503);
    assert!(daemon.get("/startupz").body.contains("env_file"));
    fs::remove_dir(stage.path("env/keys.env")).unwrap();
    daemon.until_ready();
    assert_eq!(stage.read("env/keys.env"), "A='1'\nB='two words'\n");
}

#[test]
fn a_directory_on_a_disk_is_refused_unless_it_is_allowed() {
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if is_root() {
        std::os::unix::fs::chown(disk.path(), Some(USER), Some(USER)).unwrap();
        fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = disk.path().join("keys.env");
    let refused =
        stage(&format!("  - env_file: {{path: \"{}\"}}\nstate: {{directory: \"{{dir}}/state\"}}", path.display()));
    let output = refused.once();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("is not on a tmpfs") && log.contains("allow_disk"), "{log}");
    assert!(!path.exists());
    let allowed = stage(&format!(
        "  - env_file: {{path: \"{}\", allow_disk: true}}\nstate: {{directory: \"{{dir}}/state\"}}",
        path.display()
    ));
    assert_eq!(allowed.once().status.code(), Some(0));
    assert!(path.exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_told_and_tried_again() {
    let stage = stage("  - env_file: {path: \"{dir}/env/keys.env\"}\nstate: {directory: \"{dir}/state\"}");
    stage.make_directory("env", 0o555);
    let daemon = stage.run();
    daemon.until_log("output env_file cannot be written");
    assert_eq!(daemon.get("/readyz").status, 503);
    stage.make_directory("env", 0o755);
    daemon.until_ready();
    assert_eq!(stage.read("env/keys.env"), "A='1'\nB='two words'\n");
}

#[test]
fn a_missing_directory_that_cannot_be_made_is_told_at_the_start() {
    let stage = stage("  - env_file: {path: \"{dir}/closed/env/keys.env\"}\nstate: {directory: \"{dir}/state\"}");
    stage.make_directory("closed", 0o555);
    let output = stage.once();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("closed/env"), "{log}");
}

#[test]
fn a_directory_that_was_swapped_for_a_link_is_not_followed() {
    let stage = stage("  - env_file: {path: \"{dir}/env/keys.env\"}\nstate: {directory: \"{dir}/state\"}");
    let daemon = stage.run();
    daemon.until_ready();
    let trap = stage.make_directory("trap", 0o777);
    fs::rename(stage.path("env"), stage.path("away")).unwrap();
    symlink(&trap, stage.path("env")).unwrap();
    stage.aws.put("app", r#"{"A": "2", "B": "two words"}"#);
    daemon.until_log("was replaced by something that keytide does not follow");
    assert_eq!(fs::read_dir(&trap).unwrap().count(), 0);
    assert_eq!(stage.read("away/keys.env"), "A='1'\nB='two words'\n");
    fs::remove_file(stage.path("env")).unwrap();
    fs::rename(stage.path("away"), stage.path("env")).unwrap();
    stage.until_file("env/keys.env", "A='2'\nB='two words'\n");
}

#[test]
fn a_full_volume_keeps_the_old_file_and_is_told() {
    let stage = stage("  - env_file: {path: \"{dir}/env/keys.env\"}\nstate: {directory: \"{dir}/state\"}");
    // A limit on the size of files stands for a full volume: the write fails in its middle.
    let config = stage.path("keytide.yaml").display().to_string();
    let keytide = stage.command(&["run", "--config", &config]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 8; trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(keytide.get_program())
        .args(keytide.get_args());
    limited
        .env_clear()
        .envs(keytide.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(stage.path(""));
    if is_root() {
        use std::os::unix::process::CommandExt as _;
        limited.uid(USER).gid(USER);
    }
    let mut child = limited.stderr(fs::File::create(stage.path("log")).unwrap()).spawn().unwrap();
    stage.until_file("env/keys.env", "A='1'\nB='two words'\n");
    let long = "x".repeat(40_000);
    stage.aws.put("app", &format!(r#"{{"A": "{long}", "B": "two words"}}"#));
    until("the failure", || stage.read("log").contains("output env_file cannot be written"));
    assert_eq!(stage.read("env/keys.env"), "A='1'\nB='two words'\n");
    let names: Vec<_> = fs::read_dir(stage.path("env")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["keys.env"], "nothing is left beside it");
    stage.aws.put("app", r#"{"A": "3", "B": "two words"}"#);
    stage.until_file("env/keys.env", "A='3'\nB='two words'\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_value_that_a_format_cannot_carry_leaves_the_last_one_also_over_a_restart() {
    let stage = stage(
        "  - env_file: {path: \"{dir}/env/keys.env\", format: kubernetes}\n  - env_file: {path: \"{dir}/env/keys.json\", format: json, name: json}",
    );
    let mut daemon = stage.run();
    daemon.until_ready();
    stage.aws.put("app", r#"{"A": "it's", "B": "new"}"#);
    stage.until_file("env/keys.env", "A='1'\nB='new'\n");
    stage.until_file("env/keys.json", "{\"A\":\"it's\",\"B\":\"new\"}\n");
    assert_eq!(daemon.metric("keytide_output_keys", &["output=\"env_file\"", "unrepresentable"]), 1.0);
    let status = stage.status();
    let reason = status["outputs"][0]["unrepresentable"]["A"].as_str().unwrap();
    assert!(reason.contains("single quote"), "{reason}");
    daemon.kill();
    fs::remove_file(stage.path("env/keys.env")).unwrap();
    stage.aws.set_down(true);
    let _daemon = stage.run();
    stage.until_file("env/keys.env", "A='1'\nB='new'\n");
}

#[test]
fn two_daemons_that_fight_for_a_file_do_not_become_a_hot_loop() {
    let one = stage("  - env_file: {path: \"{dir}/env/keys.env\"}\nstate: {directory: \"{dir}/one\"}");
    let mut first = one.run();
    first.until_ready();
    let config = one.read("keytide.yaml").replace("/one", "/two").replace("admin.sock", "two.sock");
    let config = config.replace("keys.env\"}", "keys.env\", rename: {A: OTHER}}");
    let other = one.write("two.yaml", config);
    let mut second = one.run_with(&["run", "--config", &other.display().to_string()]);
    second.until_ready();
    let began = Instant::now();
    thread::sleep(Duration::from_secs(4));
    let repairs =
        first.metric("keytide_output_repairs_total", &[]) + second.metric("keytide_output_repairs_total", &[]);
    // As many in the time that passed as sixteen in four seconds.
    let allowed = began.elapsed().as_secs_f64() * 4.0;
    assert!((1.0..=allowed).contains(&repairs), "{repairs} repairs in {:?}", began.elapsed());
    assert!(first.is_running() && second.is_running());
    let content = one.read("env/keys.env");
    assert!(content == "A='1'\nB='two words'\n" || content == "OTHER='1'\nB='two words'\n", "{content}");
}

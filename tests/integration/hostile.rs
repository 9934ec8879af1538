//! Whoever may write to the spool is not trusted, and neither is what the spool lies on: nothing hangs, nothing is followed,
//! nothing is lost, and no message holds a byte of an entry.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use keytide_emulator::{Fault, FaultKind};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    process::Signal,
};
use serde_json::{Value, json};

use crate::{
    producer::{
        CANARY, PRODUCER, assert_failed, claim_of, claims, create, drains, drains_but, entry, failed, failures, fed,
        leave, names, once, push_as, shell, spool, storing, until_drained, until_value, versions, waiting, yard,
        yard_with,
    },
    support::{Stage, USER, is_root, needs_root, patiently, stderr, stdout, until},
};

const NONE: [&str; 0] = [];

/// A file system of its own, until it is dropped.
struct Mounted(PathBuf);

// === impl Mounted ===

impl Mounted {
    /// A tmpfs of this size at the stage's spool.
    fn new(stage: &Stage, size: &str) -> Self {
        needs_root();
        let path = stage.path("spool");
        let options = format!("size={size},mode=1733,uid={USER},gid={USER}");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).output();
        let output = output.expect("this test needs the program mount");
        assert!(output.status.success(), "this test needs the right to mount: {}", stderr(&output));
        Self(path)
    }

    fn remount(&self, option: &str) {
        let output = Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

fn mode(stage: &Stage, path: &str) -> u32 {
    fs::metadata(stage.path(path)).unwrap().permissions().mode() & 0o7777
}

/// Makes an entry of this user, with this mode.
fn leave_as(stage: &Stage, file: &str, content: &str, owner: u32, mode: u32) {
    let temporary = stage.path("spool").join(format!(".{file}"));
    fs::write(&temporary, content).unwrap();
    fs::set_permissions(&temporary, Permissions::from_mode(mode)).unwrap();
    chown(&temporary, Some(owner), Some(owner)).unwrap();
    fs::rename(temporary, stage.path("spool").join(file)).unwrap();
}

// --- files that are none

#[test]
fn links_pipes_sockets_and_devices_are_taken_out_of_the_way_and_never_read() {
    let stage = yard();
    let spool = stage.path("spool");
    let target = stage.path("target.json");
    fs::write(&target, create("linked", CANARY)).unwrap();
    fs::set_permissions(&target, Permissions::from_mode(0o644)).unwrap();
    symlink(&target, spool.join("1.json")).unwrap();
    symlink("nowhere", spool.join("2.json")).unwrap();
    symlink(&spool, spool.join("3.json")).unwrap();
    node(&spool.join("4.json"), FileType::Fifo, 0);
    let socket = UnixListener::bind(spool.join("5.json")).unwrap();
    fs::hard_link(&target, spool.join("6.json")).unwrap();
    let mut expected = vec!["1.json", "2.json", "3.json", "4.json", "5.json", "6.json"];
    if is_root() {
        node(&spool.join("7.json"), FileType::CharacterDevice, makedev(1, 5));
        node(&spool.join("8.json"), FileType::BlockDevice, makedev(7, 0));
        expected.extend(["7.json", "8.json"]);
    }
    fs::create_dir(spool.join("9.json")).unwrap();
    fs::write(spool.join("9.json/inside.json"), create("inside", CANARY)).unwrap();
    leave(&stage, "99.json", create("real", "v"));
    let what: &[&str] = &["expected a"];
    let expected: Vec<(&str, &str, &[&str])> = expected.iter().map(|file| (*file, "not_a_file", what)).collect();
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert_failed(&stage, &expected);
    assert_eq!(stage.aws.names(), ["app/real"]);
    assert_eq!(waiting(&stage), ["9.json"], "a directory stays");
    assert_eq!(fs::read_to_string(&target).unwrap(), create("linked", CANARY));
    drop(socket);
    // They can be listed and discarded like others.
    let output = crate::producer::spool(&stage, &["list", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = crate::producer::spool(&stage, &["discard", "--all"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(target.exists());
}

#[test]
fn a_listing_of_claims_that_are_no_files_does_not_hang() {
    let stage = yard();
    drains(&stage);
    let claimed = stage.path("spool/.claimed");
    let name = |n: u32| claimed.join(format!("01a21478-419d-7131-9a7d-777c0d8cc16{n}~{n}.json"));
    node(&name(0), FileType::Fifo, 0);
    symlink("/etc/hostname", name(1)).unwrap();
    let output = spool(&stage, &["list", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    drains_but(&stage, &[("0.json", "not_a_file", &[]), ("1.json", "not_a_file", &[])]);
}

#[test]
fn a_file_is_as_large_as_an_entry_may_be_or_is_not_read() {
    let stage = yard();
    let sparse = stage.path("spool/.1");
    File::create(&sparse).unwrap().set_len(1 << 30).unwrap();
    fs::set_permissions(&sparse, Permissions::from_mode(0o644)).unwrap();
    fs::rename(&sparse, stage.path("spool/1.json")).unwrap();
    let padded = |alias: &str, length: usize| {
        let entry = create(alias, CANARY);
        format!("{entry}{}", " ".repeat(length - entry.len()))
    };
    leave(&stage, "2.json", padded("fits", 512 * 1024));
    leave(&stage, "3.json", padded("more", 512 * 1024 + 1));
    // The largest value, each byte of it escaped.
    let escaped: String = "\\u0061".repeat(65_536);
    leave(&stage, "4.json", format!(r#"{{"op":"create","alias":"escaped","value":"{escaped}"}}"#));
    leave(&stage, "5.json", create("too-long", &"v".repeat(65_537)));
    let limit: &[&str] = &["524288 bytes"];
    drains_but(
        &stage,
        &[
            ("1.json", "too_large", limit),
            ("3.json", "too_large", limit),
            ("5.json", "too_large", &["value: expected at most 65,536 bytes"]),
        ],
    );
    assert_eq!(stage.aws.names(), ["app/escaped", "app/fits"]);
    assert_eq!(stage.aws.value("app/escaped"), Some("a".repeat(65_536)));
}

#[test]
fn a_file_that_grows_while_it_is_read_is_bounded() {
    let stage = yard();
    let daemon = stage.run();
    daemon.until_log("on http://");
    for n in 0..5 {
        let path = stage.path(&format!("spool/.{n}"));
        let mut file = File::create(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        file.write_all(create(&format!("k{n}"), "v").as_bytes()).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1000 {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    (&file).write_all(&[b' '; 4096]).unwrap();
                }
            });
            fs::rename(&path, stage.path(&format!("spool/{n}.json"))).unwrap();
            until("an end", || {
                stage.aws.value(&format!("app/k{n}")).is_some()
                    || failed(&stage).iter().any(|it| it.0 == format!("{n}.json"))
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
    until_drained(&stage);
    for (file, reason, _) in failed(&stage) {
        assert_eq!(reason, "too_large", "{file}");
    }
}

// --- files that keytide may not read

#[test]
fn a_file_that_keytide_may_not_read_is_reported_and_stays_until_it_may() {
    needs_root();
    let stage = yard();
    leave_as(&stage, "1.json", &create("closed", "v"), PRODUCER, 0o600);
    leave_as(&stage, "2.json", &create("open", "v"), PRODUCER, 0o644);
    let daemon = stage.run();
    until_value(&stage, &daemon, "app/open", "v");
    daemon.until_log("file 1.json stays in the spool");
    for part in ["user 65532", "mode 0600", "user 1000", "group 1000", "chmod o+r"] {
        assert!(daemon.log().contains(part), "{part:?} in:\n{}", daemon.log());
    }
    until("the metric", || daemon.metric("keytide_spool_entries", &["unreadable"]) == 1.0);
    // Another file does not make it be said again.
    leave(&stage, "3.json", create("third", "v"));
    until_value(&stage, &daemon, "app/third", "v");
    assert_eq!(waiting(&stage), ["1.json"]);
    assert_eq!(daemon.log().matches("stays in the spool").count(), 1, "{}", daemon.log());
    assert_eq!(failed(&stage), []);
    let output = shell(&stage, PRODUCER, "chmod o+r 1.json");
    assert!(output.status.success(), "{}", stderr(&output));
    // Its mode changed and its directory did not.
    until_value(&stage, &daemon, "app/closed", "v");
    until_drained(&stage);
    until("the metric", || daemon.metric("keytide_spool_entries", &["unreadable"]) == 0.0);
}

#[test]
fn once_fails_if_something_could_not_be_read() {
    needs_root();
    let stage = yard();
    leave_as(&stage, "1.json", &create("closed", CANARY), PRODUCER, 0o600);
    leave(&stage, "2.json", create("open", "v"));
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("mode 0600, user 1000"), "{log}");
    assert_eq!(stage.aws.names(), ["app/open"]);
    assert_eq!(waiting(&stage), ["1.json"]);
}

#[test]
fn what_stays_takes_no_room_from_what_can_be_taken() {
    needs_root();
    let stage = yard_with("rate: none", "max_entries: 2");
    for n in 0..100 {
        fs::create_dir(stage.path(&format!("spool/0{n:03}.json"))).unwrap();
        leave_as(&stage, &format!("1{n:03}.json"), &create("closed", CANARY), PRODUCER, 0o600);
    }
    leave(&stage, "2.json", create("real", "v"));
    let daemon = stage.run();
    until_value(&stage, &daemon, "app/real", "v");
    leave(&stage, "3.json", create("later", "v"));
    until_value(&stage, &daemon, "app/later", "v");
}

#[test]
fn however_many_files_cannot_be_read_the_others_are_taken() {
    needs_root();
    let stage = yard();
    for n in 0..9000 {
        leave_as(&stage, &format!("1{n:05}.json"), &create("closed", CANARY), PRODUCER, 0o600);
    }
    leave(&stage, "2.json", create("real", "v"));
    let daemon = stage.run();
    until_value(&stage, &daemon, "app/real", "v");
    assert!(daemon.log().matches("stays in the spool").count() < 100, "not one line for each");
}

#[test]
fn a_file_that_stops_being_readable_once_it_is_taken_fails() {
    needs_root();
    let stage = yard();
    let hang = stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    leave(&stage, "1.json", create("k", "v"));
    leave_as(&stage, "2.json", &entry("delete", "k", &json!({})), PRODUCER, 0o644);
    let held = File::open(stage.path("spool/2.json")).unwrap();
    let daemon = stage.run();
    claim_of(&stage, "2.json");
    until("a call", || !stage.aws.requests().is_empty());
    held.set_permissions(Permissions::from_mode(0o000)).unwrap();
    stage.aws.remove_fault(hang);
    until_value(&stage, &daemon, "app/k", "v");
    until("a failure", || failed(&stage).len() == 1);
    assert_failed(&stage, &[("2.json", "unreadable", &["0644"])]);
    assert!(!stage.aws.secret("app/k").unwrap().scheduled_for_deletion);
}

// --- who may do what in the directory

#[test]
fn the_drop_directory_is_for_dropping_only_whatever_the_umask() {
    needs_root();
    for umask in ["000", "022", "077", "177"] {
        let stage = yard();
        fs::remove_dir(stage.path("spool")).unwrap();
        let command = stage.command(&["run"]);
        let program = command.get_program().to_string_lossy().into_owned();
        let config = stage.path("keytide.yaml").display().to_string();
        // A shell sets the umask, and becomes keytide with the stage's environment.
        let environment: Vec<_> =
            command.get_envs().map(|(key, value)| (key.to_owned(), value.unwrap().to_owned())).collect();
        let mut shell_command = Command::new("/bin/sh");
        shell_command
            .args(["-c", &format!("umask {umask}; exec {program} run --config {config} --once")])
            .env_clear()
            .envs(environment);
        std::os::unix::process::CommandExt::uid(&mut shell_command, USER);
        std::os::unix::process::CommandExt::gid(&mut shell_command, USER);
        let output = shell_command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{umask}: {}", stderr(&output));
        assert_eq!(mode(&stage, "spool"), 0o1733, "{umask}");
        for (directory, expected) in [(".claimed", 0o700), (".retry", 0o700), ("failed", 0o700), (".results", 0o711)] {
            assert_eq!(mode(&stage, &format!("spool/{directory}")), expected, "{umask}: {directory}");
            assert_eq!(fs::metadata(stage.path("spool").join(directory)).unwrap().uid(), USER);
        }
    }
}

#[test]
fn producers_neither_list_nor_take_nor_change_what_others_left() {
    needs_root();
    let stage = yard();
    drains(&stage);
    leave_as(&stage, "1.json", &create("k", CANARY), PRODUCER, 0o644);
    leave(&stage, "2.json", "{");
    let before = names(&stage, "spool");
    for script in [
        "ls .",
        "ls .claimed",
        "ls failed",
        "ls .retry",
        "ls .results",
        "rm -f 1.json",
        "mv 1.json mine.json",
        "mv 1.json /dev/shm/",
        "echo x >> 1.json",
        "chmod 600 1.json",
        "ln -sf /etc/passwd 1.json",
        "rmdir .claimed",
        "mv .claimed .other",
        "mv failed other",
        "rm -rf .results",
        "touch .claimed/x",
        "touch failed/x",
        "touch .retry/x",
        "touch .results/1.json",
        "chmod 777 .",
    ] {
        let output = shell(&stage, PRODUCER + 1, script);
        assert!(!output.status.success(), "{script}: {}", stdout(&output));
        assert!(!stdout(&output).contains("json") && !stdout(&output).contains(CANARY), "{script}");
    }
    assert_eq!(names(&stage, "spool"), before);
    drains_but(&stage, &[("2.json", "malformed", &[])]);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some(CANARY));
}

#[test]
fn only_keytides_user_looks_into_the_spool() {
    needs_root();
    let stage = yard();
    leave(&stage, "1.json", format!("{{{CANARY}"));
    assert_eq!(once(&stage).0, Some(1));
    let directory = stage.path("spool").display().to_string();
    for arguments in [&["spool", "list"][..], &["spool", "discard", "--all"], &["spool", "retry", "--all"]] {
        let output = fed(&stage, PRODUCER, &[arguments, &["--spool", &directory]].concat(), b"");
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        assert!(stderr(&output).contains("run this as keytide's user"), "{}", stderr(&output));
    }
    assert_eq!(failures(&stage).len(), 1);
}

#[test]
fn producers_of_any_user_are_served_by_a_keytide_without_capabilities() {
    needs_root();
    let stage = yard();
    let daemon = stage.run();
    daemon.until_log("on http://");
    let capabilities = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    for set in ["CapEff", "CapPrm", "CapAmb"] {
        assert!(capabilities.contains(&format!("{set}:\t0000000000000000\n")), "{capabilities}");
    }
    for user in [PRODUCER, PRODUCER + 1, 0, USER] {
        let name = format!("app/of-{user}");
        let output = push_as(&stage, user, &[&name, "--wait", "15s"], b"v");
        assert_eq!(stdout(&output), "stored\n", "{user}: {}", stderr(&output));
        assert_eq!(stage.aws.value(&name).as_deref(), Some("v"));
        // Each learns why its own failed.
        let output = push_as(&stage, user, &["other/k", "--wait", "15s"], b"v");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("the entry failed (not_allowed)"), "{}", stderr(&output));
    }
    let output =
        shell(&stage, PRODUCER, &format!("umask 000; printf '%s' '{}' > .x && mv .x x.json", create("by-shell", "v")));
    assert!(output.status.success(), "{}", stderr(&output));
    until_value(&stage, &daemon, "app/by-shell", "v");
}

#[test]
fn a_spool_of_somebody_else_is_refused() {
    needs_root();
    for (owner, mode) in [(PRODUCER, 0o1777), (0, 0o1777), (PRODUCER, 0o777)] {
        let stage = yard();
        chown(stage.path("spool"), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(stage.path("spool"), Permissions::from_mode(mode)).unwrap();
        leave(&stage, "1.json", create("k", CANARY));
        let (code, log) = once(&stage);
        assert_eq!(code, Some(1), "{log}");
        let path = stage.path("spool").display().to_string();
        for part in [&path, &format!("belongs to user {owner}"), "user 65532", "remove it"] {
            assert!(log.contains(part), "{part:?} in: {log}");
        }
        assert_eq!(names(&stage, "spool"), ["1.json"]);
        let mut daemon = stage.run();
        assert_eq!(daemon.wait(), 1, "{}", daemon.log());
    }
}

#[test]
fn directories_that_somebody_made_before_keytide_are_refused() {
    needs_root();
    for directory in [".claimed", ".retry", ".results", "failed"] {
        for kind in ["directory", "link", "file", "pipe"] {
            let stage = yard();
            let path = stage.path("spool").join(directory);
            let elsewhere = stage.make_directory("elsewhere", 0o700);
            match kind {
                "directory" => {
                    fs::create_dir(&path).unwrap();
                    chown(&path, Some(PRODUCER), Some(PRODUCER)).unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
                }
                "link" => symlink(&elsewhere, &path).unwrap(),
                "file" => fs::write(&path, "").unwrap(),
                _ => node(&path, FileType::Fifo, 0),
            }
            leave(&stage, "1.json", create("k", CANARY));
            let (code, log) = once(&stage);
            assert_eq!(code, Some(1), "{directory} as {kind}: {log}");
            assert!(log.contains(&path.display().to_string()), "{directory} as {kind}: {log}");
            assert_eq!(names(&stage, "elsewhere"), NONE);
            assert!(stage.path("spool/1.json").exists(), "{directory} as {kind}");
            assert_eq!(stage.aws.requests().len(), 0);
        }
    }
}

#[test]
fn a_drop_directory_that_is_a_link_is_refused_and_one_that_is_replaced_is_not_followed() {
    let stage = yard();
    let other = stage.make_directory("other", 0o1733);
    fs::remove_dir(stage.path("spool")).unwrap();
    symlink(&other, stage.path("spool")).unwrap();
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("symbolic link"), "{log}");
    assert_eq!(names(&stage, "other"), NONE);
    fs::remove_file(stage.path("spool")).unwrap();
    stage.make_directory("spool", 0o1733);
    let mut daemon = stage.run();
    leave(&stage, "1.json", create("first", "v"));
    until_value(&stage, &daemon, "app/first", "v");
    // Claims are in the directory that is held, whatever stands in its place.
    for link in [true, false] {
        fs::rename(stage.path("spool"), stage.path("held")).unwrap();
        if link {
            symlink(&other, stage.path("spool")).unwrap();
        } else {
            stage.make_directory("spool", 0o1733);
        }
        leave(&stage, "2.json", create("elsewhere", CANARY));
        daemon.until_log("the spool cannot be used");
        assert!(daemon.is_running());
        assert_eq!(stage.aws.value("app/elsewhere"), None);
        assert!(stage.path("spool/2.json").exists());
        fs::rename(stage.path("spool"), stage.path(&format!("replaced-{link}"))).unwrap();
        fs::remove_dir_all(&other).unwrap_or_default();
        stage.make_directory("other", 0o1733);
        fs::rename(stage.path("held"), stage.path("spool")).unwrap();
        let alias = format!("again-{link}");
        leave(&stage, "3.json", create(&alias, "v"));
        until_value(&stage, &daemon, &format!("app/{alias}"), "v");
        until_drained(&stage);
    }
    daemon.until_log("the spool can be used again");
}

// --- what the spool lies on

#[test]
fn a_spool_on_a_disk_is_refused_unless_that_is_allowed() {
    let disk = tempfile::TempDir::with_prefix_in("keytide-test-", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(disk.path()).output().unwrap();
    assert_ne!(
        stdout(&kind).trim(),
        "tmpfs",
        "this test needs a target directory on a disk: CARGO_TARGET_DIR names one"
    );
    let stage = yard();
    let directory = disk.path().join("spool");
    let config = stage.read("keytide.yaml");
    let ours = format!("\"{}\"", stage.path("spool").display());
    stage.write("keytide.yaml", config.replace(&ours, &format!("\"{}\"", directory.display())));
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is not on a tmpfs") && log.contains("allow_disk"), "{log}");
    assert!(!directory.exists());
}

#[test]
fn a_spool_that_becomes_read_only_keeps_its_entries_and_makes_no_second_version() {
    let stage = yard();
    storing(&stage, "rate: none", "", "refresh: {call_timeout: 20s}\n");
    let mounted = Mounted::new(&stage, "1m");
    let mut daemon = stage.run();
    leave(&stage, "1.json", create("first", "v"));
    until_value(&stage, &daemon, "app/first", "v");
    until_drained(&stage);
    // What is on its way is stored, and cannot be removed.
    stage.aws.fault(Fault::on("CreateSecret").kind(FaultKind::Latency(Duration::from_secs(4))));
    leave(&stage, "2.json", create("second", "v"));
    until("a call", || stage.aws.count("CreateSecret") == 2);
    leave(&stage, "3.json", create("third", "v"));
    mounted.remount("ro");
    until_value(&stage, &daemon, "app/second", "v");
    daemon.until_log("could not be removed from the spool");
    stage.aws.clear_faults();
    daemon.signal(Signal::HUP);
    assert!(daemon.is_running());
    assert_eq!(claims(&stage).len() + waiting(&stage).len(), 2);
    mounted.remount("rw");
    until_value(&stage, &daemon, "app/third", "v");
    until_drained(&stage);
    for name in ["app/first", "app/second", "app/third"] {
        assert_eq!(versions(&stage, name).len(), 1, "{name}");
    }
    // One that is so from the start is named.
    daemon.kill();
    fs::remove_dir(stage.path("spool/.retry")).unwrap();
    mounted.remount("ro");
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the spool cannot be used (keytide.spool)") && log.contains("/spool"), "{log}");
}

#[test]
fn a_full_spool_is_emptied() {
    let stage = yard();
    let mounted = Mounted::new(&stage, "256k");
    stage.aws.put("app/scheduled", "old");
    stage.aws.set_metadata("app/scheduled", Some("old"), &[]);
    stage.aws.schedule_deletion("app/scheduled");
    let hang = stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    let daemon = stage.run();
    leave(&stage, "1.json", create("k", "v"));
    leave(&stage, "2.json", create("scheduled", "v"));
    leave(&stage, "3.json", create("waits", "v"));
    leave(&stage, "4.json", entry("rename", "absent", &json!({"new_alias": "x"})));
    until("all to be taken", || claims(&stage).len() == 4);
    let mut filler = File::create(stage.path("spool/.filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    assert!(fs::write(stage.path("spool/.more"), "x").is_err(), "the disk is full");
    stage.aws.remove_fault(hang);
    for alias in ["k", "scheduled", "waits"] {
        until_value(&stage, &daemon, &format!("app/{alias}"), "v");
    }
    until_drained(&stage);
    assert_eq!(stage.aws.secret("app/scheduled").unwrap().description, None, "made equal");
    let kept: Vec<String> =
        names(&stage, "spool/failed").into_iter().filter(|name| name.ends_with("~4.json")).collect();
    assert_eq!(kept.len(), 1, "the entry is kept, whether or not its reason could be");
    drop(mounted);
}

// --- many, and all at once

#[test]
fn what_is_renamed_or_removed_during_a_look_is_stored_once_or_not_at_all() {
    const EACH: usize = 300;
    // How many of them become secrets depends on who is faster.
    let stage = yard_with("rate: none, max_new_secrets_per_hour: none", "max_entries: 64");
    let daemon = stage.run();
    daemon.until_log("on http://");
    let removed: Vec<String> = thread::scope(|scope| {
        let producers: Vec<_> = (0..4)
            .map(|producer| {
                let stage = &stage;
                scope.spawn(move || {
                    let mut removed = Vec::new();
                    for n in 0..EACH {
                        let alias = format!("k-{producer}-{n}");
                        let file = format!("{n:04}-{producer}.json");
                        leave(stage, &file, create(&alias, &alias));
                        let path = stage.path("spool").join(&file);
                        match n % 4 {
                            1 => drop(fs::rename(&path, stage.path(&format!("spool/z-{file}")))),
                            2 if fs::remove_file(&path).is_ok() => removed.push(format!("app/{alias}")),
                            3 => {
                                // Out of keytide's sight and back.
                                let hidden = stage.path(&format!("spool/.{file}"));
                                if fs::rename(&path, &hidden).is_ok() {
                                    fs::rename(&hidden, &path).unwrap();
                                }
                            }
                            _ => {}
                        }
                    }
                    removed
                })
            })
            .collect();
        producers.into_iter().flat_map(|producer| producer.join().unwrap()).collect()
    });
    until_drained(&stage);
    let names = stage.aws.names();
    assert_eq!(names.len() + removed.len(), 4 * EACH, "{}", daemon.log());
    for name in &names {
        assert!(!removed.contains(name), "{name} was removed");
        assert_eq!(versions(&stage, name).len(), 1, "{name}");
        assert_eq!(stage.aws.value(name).as_deref(), name.strip_prefix("app/"));
    }
    assert_eq!(failed(&stage), []);
}

/// Of 100,000 the same holds, and takes minutes in a debug build.
#[test]
fn eight_thousand_files_at_once_are_all_stored_with_room_for_one_thousand() {
    const FILES: usize = 8_000;
    let stage = yard_with("rate: none, max_new_secrets_per_hour: none", "max_entries: 1000");
    stage.aws.set_recording(false);
    for n in 0..FILES {
        fs::write(stage.path(&format!("spool/{n:06}.json")), create(&format!("k{n}"), "v")).unwrap();
    }
    let mut daemon = stage.run();
    daemon.until_log("on http://");
    let mut before = 0;
    let mut most = 0;
    while before < FILES {
        let progress = patiently(|| {
            most = most.max(claims(&stage).len());
            stage.aws.count("CreateSecret") > before
        });
        assert!(progress, "no progress at {before}:\n{}", daemon.log());
        before = stage.aws.count("CreateSecret");
        assert!(daemon.is_running());
    }
    until_drained(&stage);
    // A listing is no snapshot: what is settled meanwhile is counted beside what took its place.
    assert!(most <= 2 * 1000, "{most} claims at once");
    assert_eq!(stage.aws.count("CreateSecret"), FILES);
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(failed(&stage), []);
}

// --- entries that are none

/// One entry that cannot be one: its bytes, and the word that its message must hold.
struct Case {
    text: Vec<u8>,
    names: &'static str,
}

fn case(text: impl Into<Vec<u8>>, names: &'static str) -> Case {
    Case { text: text.into(), names }
}

/// A good entry with one member set to this JSON.
fn with(member: &str, json: &str) -> String {
    let mut members = vec![("op", "\"create\""), ("value", "\"v\""), ("alias", "\"k\"")];
    if matches!(member, "new_name" | "new_alias") {
        members[0].1 = "\"rotate\"";
    }
    if member == "recovery_window_in_days" {
        members = vec![("op", "\"delete\""), ("alias", "\"k\"")];
    }
    if member == "name" {
        members.retain(|(name, _)| *name != "alias");
    }
    members.retain(|(name, _)| *name != member);
    members.push((member, json));
    let members: Vec<String> = members.iter().map(|(name, json)| format!("\"{name}\": {json}")).collect();
    format!("{{{}}}", members.join(", "))
}

const TEXTS: [&str; 8] = ["op", "name", "alias", "new_name", "new_alias", "value", "description", "kms_key_id"];
const MEMBERS: [&str; 12] = [
    "op",
    "name",
    "alias",
    "new_name",
    "new_alias",
    "value",
    "description",
    "tags",
    "kms_key_id",
    "replica_regions",
    "recovery_window_in_days",
    "team",
];

#[expect(clippy::too_many_lines, reason = "a table: a row for each member and what is wrong with it")]
fn wrong_members() -> Vec<Case> {
    let mut cases = Vec::new();
    let not_text = [
        "1",
        "true",
        "false",
        "1.5e3",
        "[\"canary-4f1d\"]",
        "{\"canary-4f1d\": 1}",
        "[]",
        "{}",
        "\"canary-4f1d\\ud800\"",
    ];
    for member in TEXTS {
        cases.extend(not_text.iter().map(|json| case(with(member, json), member)));
    }
    let not_object = ["1", "true", "\"canary-4f1d\"", "[\"canary-4f1d\"]", "[]"];
    let not_list = [
        "1",
        "true",
        "\"canary-4f1d\"",
        "{\"canary-4f1d\": 1}",
        "[1]",
        "[null]",
        "[[\"canary-4f1d\"]]",
        "[\"canary-4f1d\", 2]",
    ];
    cases.extend(not_object.iter().map(|json| case(with("tags", json), "tags")));
    cases.extend(
        [
            "{\"canary-4f1d\": 1}",
            "{\"canary-4f1d\": null}",
            "{\"a\": [\"canary-4f1d\"]}",
            "{\"a\": \"canary-4f1d\", \"a\": \"b\"}",
        ]
        .iter()
        .map(|json| case(with("tags", json), "tags")),
    );
    cases.extend(not_object.iter().map(|json| case(with("team", json), "team")));
    for json in [
        "{}",
        "{\"aws_role_name\": \"canary-4f1d\"}",
        "{\"aws_region_name\": \"canary-4f1d\"}",
        "{\"aws_role_name\": null, \"aws_region_name\": \"canary-4f1d\"}",
        "{\"aws_role_name\": 1, \"aws_region_name\": \"canary-4f1d\"}",
        "{\"aws_role_name\": \"canary-4f1d\", \"aws_region_name\": [\"canary-4f1d\"]}",
        "{\"aws_role_name\": \"canary-4f1d\", \"aws_region_name\": \"x\", \"canary-4f1d\": 1}",
        "{\"aws_role_name\": \"canary-4f1d\", \"aws_role_name\": \"x\", \"aws_region_name\": \"x\"}",
        "{\"aws_role_name\": \"canary-4f1d\", \"aws_region_name\": \"us-east-1\"}",
    ] {
        cases.push(case(
            with("team", json),
            if json.contains("null") || json.contains(": 1,") {
                "aws_role_name"
            } else if json.contains('[') {
                "aws_region_name"
            } else {
                "team"
            },
        ));
    }
    cases.extend(not_list.iter().map(|json| case(with("replica_regions", json), "replica_regions")));
    cases.push(case(with("replica_regions", "[\"canary-4f1d\"]"), "replica_regions"));
    for json in
        ["\"7\"", "7.5", "true", "[7]", "{}", "-7", "6", "31", "99999999999999999999999999", "1e400", "\"canary-4f1d\""]
    {
        cases.push(case(with("recovery_window_in_days", json), "recovery_window_in_days"));
    }
    // Too long.
    let long = |length: usize| format!("\"{CANARY}{}\"", "n".repeat(length));
    for (member, length) in [
        ("name", 600),
        ("alias", 600),
        ("new_name", 600),
        ("new_alias", 600),
        ("op", 5000),
        ("value", 65_536),
        ("description", 3000),
        ("kms_key_id", 3000),
    ] {
        cases.push(case(with(member, &long(length)), member));
    }
    cases.push(case(with("tags", &format!("{{{}: \"x\"}}", long(200))), "tags"));
    cases.push(case(with("tags", &format!("{{\"team\": {}}}", long(300))), "tags"));
    // Control characters, also escaped.
    for escaped in ["\\u0000", "\\n", "\\u0085", "\\u2028", "\\u007f", "\\u202e"] {
        for member in ["name", "alias", "new_name", "new_alias", "op", "kms_key_id"] {
            let prefix = if member.ends_with("name") { "app/" } else { "" };
            cases.push(case(with(member, &format!("\"{prefix}{CANARY}{escaped}\"")), member));
        }
    }
    // Missing, or null, which is the same.
    for (text, names) in [
        (format!(r#"{{"alias": "k", "value": "{CANARY}"}}"#), "op"),
        (format!(r#"{{"op": null, "alias": "k", "value": "{CANARY}"}}"#), "op"),
        (r#"{"op": "create", "alias": "canary-4f1d"}"#.to_owned(), "value"),
        (r#"{"op": "rotate", "alias": "canary-4f1d", "value": null}"#.to_owned(), "value"),
        (r#"{"op": "create", "alias": "canary-4f1d", "value": ""}"#.to_owned(), "value"),
        (format!(r#"{{"op": "rotate", "value": "{CANARY}"}}"#), "name or alias"),
        (r#"{"op": "delete"}"#.to_owned(), "name or alias"),
        (r#"{"op": "delete", "name": null, "alias": null}"#.to_owned(), "name or alias"),
        (r#"{"op": "rename", "alias": "canary-4f1d"}"#.to_owned(), "new_name or new_alias"),
        (r#"{"op": "rename", "alias": "canary-4f1d", "new_alias": null}"#.to_owned(), "new_name or new_alias"),
        // What another operation has.
        (format!(r#"{{"op": "delete", "alias": "k", "value": "{CANARY}"}}"#), "value"),
        (format!(r#"{{"op": "rename", "alias": "k", "new_alias": "l", "value": "{CANARY}"}}"#), "value"),
        (format!(r#"{{"op": "create", "alias": "k", "new_name": "app/{CANARY}", "value": "v"}}"#), "new_name"),
        (format!(r#"{{"op": "create", "alias": "k", "new_alias": "{CANARY}", "value": "v"}}"#), "new_alias"),
        (format!(r#"{{"op": "delete", "alias": "k", "description": "{CANARY}"}}"#), "description"),
        (format!(r#"{{"op": "delete", "alias": "k", "tags": {{"{CANARY}": "x"}}}}"#), "tags"),
        (
            format!(r#"{{"op": "create", "alias": "{CANARY}", "value": "v", "recovery_window_in_days": 7}}"#),
            "recovery_window_in_days",
        ),
        // Not a word of it.
        (format!(r#"{{"op": "{CANARY}", "alias": "k"}}"#), "op"),
        (format!(r#"{{"op": "CREATE", "alias": "k", "value": "{CANARY}"}}"#), "op"),
        (format!(r#"{{"op": "create ", "alias": "k", "value": "{CANARY}"}}"#), "op"),
        (format!(r#"{{"op": "create", "alias": "k", "value": "v", "{CANARY}": 1}}"#), "a member is unknown"),
        (format!(r#"{{"op": "create", "alias": "k", "Value": "{CANARY}"}}"#), "a member is unknown"),
    ] {
        cases.push(case(text, names));
    }
    // Each twice.
    for member in MEMBERS {
        cases.push(case(
            format!(r#"{{"op": "create", "alias": "k", "value": "v", "{member}": "{CANARY}", "{member}": null}}"#),
            member,
        ));
    }
    cases
}

fn no_objects() -> Vec<Case> {
    let good = create("k", CANARY);
    let nested = |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let mut cases: Vec<Case> = vec![
        case("", "cut off"),
        case(" \n\t", "cut off"),
        case("null", "JSON object"),
        case("true", "JSON object"),
        case("17", "JSON object"),
        case(format!("\"{CANARY}\""), "JSON object"),
        case(format!("[{good}]"), "JSON object"),
        case(format!("\u{feff}{good}"), "JSON object"),
        case(format!("{good}{good}"), "JSON object"),
        case(format!("{good}\n{good}"), "JSON object"),
        case(format!("{good} {CANARY}"), "JSON object"),
        case(format!("{good}\0"), "JSON object"),
        case(format!("\0{good}"), "JSON object"),
        case(format!("// {CANARY}\n{good}"), "JSON object"),
        case(good.replace('"', "'"), "JSON object"),
        case(good.replace('}', ",}"), "JSON object"),
        case(format!("{{op: create, value: {CANARY}}}"), "JSON object"),
        case(format!("{{\"op\": \"create\", \"value\": {CANARY}}}"), "JSON object"),
        case(format!("{{\"value\": \"{CANARY}\n\"}}"), "JSON object"),
        case(with("value", "NaN"), "JSON object"),
        case(nested("[", "]", 100_000), "JSON object"),
        case(with("value", &nested("[", "]", 100_000)), ""),
        case(with("value", &nested("{\"a\":", "}", 50_000)), ""),
        case(with("tags", &nested("{\"a\":", "}", 50_000)), ""),
        case(with("team", &nested("{\"aws_role_name\":", "}", 20_000)), ""),
        case("[".repeat(500_000), "JSON"),
        case("{\"op\":".repeat(80_000), "JSON"),
        case(vec![0xff, 0xfe, b'{', 0, b'}', 0], "UTF-8"),
        case(vec![0; 1000], "JSON object"),
        case([&[0x1f, 0x8b][..], CANARY.as_bytes()].concat(), "UTF-8"),
    ];
    for cut in 1..good.len() {
        cases.push(case(good.as_bytes()[..cut].to_vec(), "cut off"));
    }
    for member in MEMBERS {
        // Which member it is, nobody says who does not read what is no text.
        let text = with(member, "\"@\"").into_bytes();
        let bad =
            text.iter().flat_map(|byte| if *byte == b'@' { b"canary-4f1d\xff\xc3".to_vec() } else { vec![*byte] });
        cases.push(case(bad.collect::<Vec<u8>>(), "UTF-8"));
    }
    cases
}

/// Leaves all of them; each has failed, says what it must, and nobody repeats a byte of it.
fn all_fail(cases: &[Case]) {
    let stage = yard_with("rate: none, tags: {team: core}", "");
    for (n, case) in cases.iter().enumerate() {
        leave(&stage, &format!("{n:04}.json"), &case.text);
    }
    let config = stage.path("keytide.yaml").display().to_string();
    let output = stage.keytide(&["--log-level", "trace", "run", "--config", &config, "--once", "--timeout", "20s"]);
    let log = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(!log.contains(CANARY) && !log.contains("panicked"), "{log}");
    assert_eq!((claims(&stage), waiting(&stage)), (vec![], vec![]));
    let failures = failures(&stage);
    let mut wrong = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let file = format!("{n:04}.json");
        let shown: String = String::from_utf8_lossy(&case.text).chars().take(120).collect();
        let Some(failure) = failures.iter().find(|failure| failure["file"] == file.as_str()) else {
            wrong.push(format!("taken: {shown}"));
            continue;
        };
        let message = failure["message"].as_str().unwrap();
        let known = ["malformed", "not_allowed", "too_large"].contains(&failure["reason"].as_str().unwrap());
        if !known || !message.contains(case.names) {
            wrong.push(format!("{shown}\n  expected {:?} in {failure}", case.names));
        }
        if failure.to_string().contains(CANARY) || message.len() > 400 {
            wrong.push(format!("{shown}\n  is repeated in {failure}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(stage.aws.names(), NONE);
    let listed = spool(&stage, &["list", "--output", "json"]);
    assert!(listed.status.success() && !stdout(&listed).contains(CANARY));
}

#[test]
fn a_wrong_member_is_named_and_not_repeated() {
    all_fail(&wrong_members());
}

#[test]
fn what_is_no_json_object_fails_and_is_not_repeated() {
    all_fail(&no_objects());
}

#[test]
fn any_file_name_is_taken_and_shown_in_one_line() {
    let stage = yard();
    let files: [&[u8]; 10] = [
        b"a b.json",
        b"new\nline.json",
        b"\xff\xfe.json",
        b"-rf.json",
        b"~.json",
        b"$(x)`y`.json",
        b"\x1b[31mred.json",
        b"01a21478-419d-7131-9a7d-777c0d8cc160~x.json",
        b"..json.json",
        b"failed.json",
    ];
    let mut taken = 0;
    for (n, file) in files.iter().enumerate() {
        let path = stage.path("spool").join(OsStr::from_bytes(file));
        if file.starts_with(b".") {
            continue;
        }
        taken += 1;
        fs::write(&path, create(&format!("k{n}"), "v")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }
    let (code, log) = once(&stage);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(stage.aws.names().len(), taken);
    // And the same ones as failures.
    for file in files.iter().filter(|file| !file.starts_with(b".")) {
        let path = stage.path("spool").join(OsStr::from_bytes(file));
        fs::write(&path, format!("{{{CANARY}")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let output = spool(&stage, &["list"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        !stdout(&output).contains('\x1b') && stdout(&output).contains("new\u{fffd}line.json"),
        "{}",
        stdout(&output)
    );
    assert_eq!(failures(&stage).len(), taken);
    let output = spool(&stage, &["discard", "--all"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(names(&stage, "spool/failed"), NONE);
}

#[test]
fn an_entry_that_is_changed_after_it_was_dropped_is_not_carried_out_as_something_else() {
    let stage = yard();
    stage.aws.put("app/k", "old");
    stage.aws.put("app/other", "theirs");
    let hang = stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    leave(&stage, "1.json", entry("rotate", "k", &json!({"value": "new"})));
    let texts = [
        (entry("delete", "k", &json!({})), entry("delete", "other", &json!({})), "changed after it was dropped"),
        (entry("delete", "k", &json!({"recovery_window_in_days": 7})), "{".to_owned(), ""),
        (
            entry("rename", "k", &json!({"new_alias": "l"})),
            entry("rename", "k", &json!({"new_alias": "other"})),
            "changed after it was dropped",
        ),
        (
            entry("rotate", "k", &json!({"value": "v", "new_alias": "l"})),
            entry("create", "k", &json!({"value": "v"})),
            "changed after it was dropped",
        ),
    ];
    let mut held = Vec::new();
    for (n, (before, _, _)) in texts.iter().enumerate() {
        leave(&stage, &format!("2{n}.json"), before);
        held.push(OpenOptions::new().write(true).open(stage.path(&format!("spool/2{n}.json"))).unwrap());
    }
    let daemon = stage.run();
    until("all to be taken", || claims(&stage).len() == 5);
    until("a call", || !stage.aws.requests().is_empty());
    // Read, and waiting behind the first one.
    until("the status", || stage.status()["spool"]["claimed"] == 5);
    for (file, (_, after, _)) in held.iter().zip(&texts) {
        file.set_len(0).unwrap();
        file.write_all_at(after.as_bytes(), 0).unwrap();
    }
    stage.aws.remove_fault(hang);
    until_value(&stage, &daemon, "app/k", "new");
    until_drained(&stage);
    let expected: Vec<[&str; 1]> = texts.iter().map(|(_, _, part)| [*part]).collect();
    let files: Vec<String> = (0..texts.len()).map(|n| format!("2{n}.json")).collect();
    let expected: Vec<(&str, &str, &[&str])> =
        files.iter().zip(&expected).map(|(file, parts)| (file.as_str(), "malformed", parts.as_slice())).collect();
    assert_failed(&stage, &expected);
    assert_eq!(stage.aws.value("app/other").as_deref(), Some("theirs"));
    assert!(!stage.aws.secret("app/other").unwrap().scheduled_for_deletion);
    assert!(!stage.aws.secret("app/k").unwrap().scheduled_for_deletion);
    assert_eq!(versions(&stage, "app/k").len(), 2);
}

#[test]
fn a_value_that_is_changed_while_the_entry_waits_is_stored_whole_and_once() {
    let stage = yard_with("rate: 1", "");
    stage.aws.put("app/k", "0");
    leave(&stage, "1.json", create("first", "v"));
    leave(&stage, "2.json", entry("rotate", "k", &json!({"value": "a"})));
    let file = OpenOptions::new().write(true).open(stage.path("spool/2.json")).unwrap();
    let daemon = stage.run();
    claim_of(&stage, "2.json");
    file.write_all_at(entry("rotate", "k", &json!({"value": "b"})).as_bytes(), 0).unwrap();
    until_drained(&stage);
    let value = stage.aws.value("app/k").unwrap();
    assert!(["a", "b"].contains(&value.as_str()), "{value}");
    assert_eq!(versions(&stage, "app/k").len(), 2);
    assert_eq!(failed(&stage), []);
    drop(daemon);
}

#[test]
fn a_configuration_that_cannot_use_the_spool_says_so_before_it_asks_anybody() {
    let stage = yard();
    fs::remove_dir(stage.path("spool")).unwrap();
    stage.write("spool", "a file");
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the spool cannot be used (keytide.spool)") && log.contains("not a directory"), "{log}");
    assert!(stage.aws.requests().is_empty());
    storing(&stage, "rate: none", "", "");
}

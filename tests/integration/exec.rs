//! `keytide exec`: which variables a command has, for what it waits, and how it ends.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, fs::symlink, process::CommandExt as _},
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Daemon, Stage, USER, is_root, stderr, stdout, until};

/// Of values: no message may hold it.
pub(crate) const CANARY: &str = "canary-e8c2";

/// `keytide exec` in a session without a terminal, whoever sits before the tests: `exec [OPTIONS…] -- sh -c SCRIPT`.
pub(crate) fn exec(stage: &Stage, options: &[&str], script: &str) -> Command {
    command(stage, options, &["sh", "-c", script])
}

pub(crate) fn command(stage: &Stage, options: &[&str], words: &[&str]) -> Command {
    apart(stage, &[&["exec"], options, &["--"], words].concat())
}

/// keytide as the leader of a session of its own.
fn apart(stage: &Stage, arguments: &[&str]) -> Command {
    let keytide = stage.command(arguments);
    let mut command = Command::new("setsid");
    command.arg(keytide.get_program()).args(keytide.get_args()).stdin(Stdio::null()).current_dir(stage.path(""));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("INHERITED", "old").env("KEY", "old");
    if is_root() {
        command.uid(USER).gid(USER);
    }
    command
}

pub(crate) fn run(stage: &Stage, options: &[&str], script: &str) -> Output {
    exec(stage, options, script).output().unwrap()
}

/// Puts a file in place as keytide does, by a rename.
pub(crate) fn put(stage: &Stage, name: &str, content: &str) -> String {
    let new = stage.write(&format!("{name}.new"), content);
    let path = stage.path(name);
    fs::rename(new, &path).unwrap();
    path.display().to_string()
}

/// The exit code, and what was said, which holds no value.
fn ended(output: &Output) -> (i32, String) {
    let said = stderr(output);
    assert!(!said.contains(CANARY), "{said}");
    (output.status.code().unwrap(), said)
}

#[test]
fn a_command_has_what_keytide_wrote_in_each_format() {
    let stage = Stage::new();
    let values = json!({"KEY": "it's $HOME \\", "LINES_OF": "a\nb\n", "EMPTY": "", "PLAIN": "sk-1"});
    stage.aws.put("prod/primary", &values.to_string());
    let formats = ["dotenv", "posix", "docker", "kubernetes", "json"];
    let outputs = formats.map(|it| format!("  - env_file: {{path: \"{{dir}}/env/{it}.env\", format: {it}}}\n"));
    stage.config(&format!(
        "aws: {{region: us-east-1}}\nprimary_secret: {{name: prod/primary}}\noutputs:\n{}",
        outputs.concat()
    ));
    assert_eq!(stage.once().status.code(), Some(0));
    for format in formats {
        let file = stage.path(&format!("env/{format}.env")).display().to_string();
        let given = ["--env-file", &file, "--format", format];
        let options = if format == "docker" { &given[..] } else { &given[..2] };
        for options in [options, &given] {
            let output = command(&stage, options, &["env", "-0"]).output().unwrap();
            let printed = stdout(&output);
            assert_eq!(output.status.code(), Some(0), "{format}: {}", stderr(&output));
            let seen: Vec<&str> = printed.split('\0').collect();
            // What a format cannot carry is not in its file; then what was inherited stays.
            let written = fs::read_to_string(&file).unwrap();
            for (name, value) in values.as_object().unwrap() {
                let carried = written.contains(name.as_str());
                let here = seen.contains(&format!("{name}={}", value.as_str().unwrap()).as_str());
                assert_eq!(here, carried, "{format}: {name} in {printed:?}");
            }
            assert!(seen.contains(&"INHERITED=old"), "{format}: {printed:?}");
            assert_eq!(written.contains("KEY"), !seen.contains(&"KEY=old"), "{format}: {printed:?}");
            assert!(written.contains("PLAIN"), "{format}");
        }
    }
}

#[test]
fn of_several_files_the_later_one_counts() {
    let stage = Stage::new();
    let one = put(&stage, "one.env", "KEY='1'\nONE='1'\n");
    let two = put(&stage, "two.json", "{\"KEY\":\"2\"}\n");
    let output = run(&stage, &["--env-file", &one, "--env-file", &two], "echo $KEY $ONE $INHERITED");
    assert_eq!(stdout(&output), "2 1 old\n", "{}", stderr(&output));
}

#[test]
fn it_ends_as_its_command_does_and_says_as_shells_do_what_cannot_be_started() {
    let stage = Stage::new();
    let file = put(&stage, "keys.env", &format!("KEY='{CANARY}'\n"));
    for (script, code) in
        [("true", 0), ("exit 7", 7), ("exit 255", 255), ("kill -SEGV $$", 139), ("kill -KILL $$", 137)]
    {
        assert_eq!(ended(&run(&stage, &["--env-file", &file], script)), (code, String::new()), "{script}");
    }
    let plain = stage.write("plain", "echo no\n").display().to_string();
    let lost = stage.write("lost", "#!/nowhere/sh\n").display().to_string();
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o755)).unwrap();
    stage.write("bin/closed", "#!/bin/sh\n");
    for (words, code, says) in [
        (
            &["no-such-program", CANARY][..],
            127,
            "failed to start no-such-program: there is no program of that name in PATH",
        ),
        (&["/no/such", CANARY], 127, "failed to start /no/such: there is no such file"),
        (&[&lost], 127, "the interpreter or loader that it names is not in this image"),
        (&["/etc"], 126, "failed to start /etc: it is a directory"),
        (&[&plain], 126, "permission denied; expected an executable file"),
        (&["closed"], 126, "bin/closed: this user may not execute it"),
        (&[""], 127, "there is no program of that name"),
    ] {
        let mut command = command(&stage, &["--env-file", &file], words);
        command.env("PATH", format!("/usr/bin:/bin:{}", stage.path("bin").display()));
        let (ended, said) = ended(&command.output().unwrap());
        assert_eq!(ended, code, "{words:?}: {said}");
        assert!(said.contains(says) && said.lines().count() == 1, "{words:?}: {said}");
    }
    let huge = put(&stage, "huge.env", &format!("KEY='x'\nHUGE_ONE='{}'\n", CANARY.repeat(20_000)));
    let (code, said) = ended(&run(&stage, &["--env-file", &huge], "true"));
    assert!(code == 126 && said.contains("HUGE_ONE is longer than the 128 KiB"), "{code}: {said}");
}

#[test]
fn bad_arguments_end_with_64() {
    let stage = Stage::new();
    for arguments in [
        &["exec"][..],
        &["exec", "--"],
        &["exec", "true"],
        &["exec", "--on-change", "KILL", "--", "true"],
        &["exec", "--on-change", "reload", "--", "true"],
        &["exec", "--wait", "soon", "--", "true"],
        &["exec", "--format", "toml", "--", "true"],
        &["install"],
    ] {
        let output = stage.keytide(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", stderr(&output));
    }
    let output = stage.keytide(&["exec", "--on-change", "KILL", "--", "true"]);
    assert!(
        stderr(&output).contains("expected ignore, restart, or one of the signals HUP, INT"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_program_is_looked_for_in_the_path_that_the_command_has() {
    let stage = Stage::new();
    let tool = stage.write("bin/tool", "#!/bin/sh\necho found $0 $1\n");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let file = put(&stage, "keys.env", &format!("PATH='/nowhere:{}'\n", stage.path("bin").display()));
    let output = command(&stage, &["--env-file", &file], &["tool", "--version"]).output().unwrap();
    assert_eq!(stdout(&output), format!("found {} --version\n", tool.display()), "{}", stderr(&output));
    // The one that was inherited may name directories that are not UTF-8.
    let file = put(&stage, "keys.env", "KEY='1'\n");
    let mut inherits = command(&stage, &["--env-file", &file], &["tool", "--version"]);
    let bin = stage.path("bin");
    let path = [b"/usr/bin:/bin:/\xff:", bin.as_os_str().as_bytes()].concat();
    let output = inherits.env("PATH", OsStr::from_bytes(&path)).output().unwrap();
    assert_eq!(stdout(&output), format!("found {} --version\n", tool.display()), "{}", stderr(&output));
}

#[test]
fn the_first_file_is_waited_for() {
    let stage = Stage::new();
    let one = put(&stage, "one.env", "ONE='1'\n");
    let two = stage.path("sub/two.env").display().to_string();
    let options = ["--env-file", &one, "--env-file", &two, "--wait", "20s"];
    let mut waiting = stage.start(exec(&stage, &options, "echo \"got $ONE $TWO\""));
    waiting.until_log("sub/two.env is not there");
    // Written piece by piece, as by somebody who is not keytide: what is cut off is not taken.
    stage.write("sub/two.env", format!("TWO='{CANARY}"));
    waiting.until_log("sub/two.env is no env file that keytide can read: line 1: its value has no end");
    assert!(waiting.is_running() && !waiting.log().contains("got"));
    put(&stage, "sub/two.env", "TWO='2'\n");
    assert_eq!(waiting.wait(), 0, "{}", waiting.log());
    assert!(waiting.log().contains("got 1 2") && !waiting.log().contains(CANARY), "{}", waiting.log());
}

#[test]
fn without_a_file_that_can_be_read_it_ends_with_what_is_wrong() {
    let stage = Stage::new();
    let missing = stage.path("missing.env").display().to_string();
    let broken = put(&stage, "broken.env", &format!("A='1'\nB={CANARY} #1\n"));
    let closed = put(&stage, "closed.env", "A='1'\n");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let directory = stage.make_directory("directory.env", 0o755).display().to_string();
    let pipe = stage.path("pipe.env").display().to_string();
    assert!(Command::new("mkfifo").args(["-m", "666", &pipe]).status().unwrap().success());
    let windows = put(&stage, "windows.env", &format!("A='{CANARY}'\r\n"));
    let marked = put(&stage, "marked.env", &format!("\u{feff}A='{CANARY}'\n"));
    for (file, wait, says) in [
        (&missing, "1s", "missing.env is not there, after 1 s; expected the env file that keytide writes"),
        (&missing, "0s", "sh was not started: "),
        (&missing, "0s", "missing.env is not there; expected the env file that keytide writes"),
        (&windows, "0s", "line 1: its lines end in CR LF; expected LF\n"),
        (&marked, "0s", "line 1: it begins with a byte order mark; expected none\n"),
        (
            &broken,
            "0s",
            "broken.env is no env file that keytide can read: line 2: programs read this value in different ways",
        ),
        (&closed, "1s", "permission denied, after 1 s; let keytide write it for that user"),
        (&closed, "0s", "closed.env cannot be read by user"),
        (&directory, "0s", "directory.env is not a regular file"),
        (&pipe, "0s", "pipe.env is not a regular file"),
    ] {
        let (code, said) = ended(&run(&stage, &["--env-file", file, "--wait", wait], "echo started"));
        assert!(code == 1 && said.contains(says), "{file}: {code}: {said}");
        assert_eq!(said.contains("expected the env file"), file == &missing, "{file}: {said}");
    }
    let output = run(&stage, &["--wait", "0s"], "true");
    assert!(stderr(&output).contains("/run/keytide/env/keys.env is not there"), "the default: {}", stderr(&output));
}

#[test]
fn a_signal_to_end_ends_the_waiting_and_others_do_not() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let stage = Stage::new();
        let missing = stage.path("missing.env").display().to_string();
        let mut waiting = stage.start(exec(&stage, &["--env-file", &missing], "true"));
        waiting.until_log("waits up to 60 s to start sh");
        for other in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::WINCH] {
            waiting.signal(other);
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(waiting.is_running());
        waiting.signal(signal);
        assert_eq!(waiting.wait(), code);
    }
}

#[test]
fn a_mounted_secret_is_read_through_its_links() {
    let stage = Stage::new();
    stage.write("..1/keys.env", "KEY='1'\n");
    symlink("..1", stage.path("..data")).unwrap();
    symlink("..data/keys.env", stage.path("keys.env")).unwrap();
    let file = stage.path("keys.env").display().to_string();
    let started =
        stage.start(exec(&stage, &["--env-file", &file, "--on-change", "restart"], "echo has $KEY; exec sleep 60"));
    started.until_log("has 1");
    stage.write("..2/keys.env", "KEY='2'\n");
    symlink("..2", stage.path("..data_tmp")).unwrap();
    fs::rename(stage.path("..data_tmp"), stage.path("..data")).unwrap();
    started.until_log("has 2");
}

/// What the log of a started command counts up to.
pub(crate) fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.log().matches(text).count()
}

#[test]
fn a_rotation_in_aws_starts_the_command_again() {
    let stage = Stage::new();
    stage.aws.put("prod/key", "one");
    stage.config(
        "aws: {region: us-east-1}\nrefresh: {interval: 1s}\nkeys: [{name: KEY, secret: prod/key}]\n\
         outputs:\n  - env_file: {path: \"{dir}/env/keys.env\"}\n",
    );
    let file = stage.path("env/keys.env").display().to_string();
    let mut application =
        stage.start(exec(&stage, &["--env-file", &file, "--on-change", "restart"], "echo has $KEY; exec sleep 60"));
    application.until_log("keys.env is not there");
    let _daemon = stage.run();
    application.until_log("has one");
    stage.aws.put("prod/key", "two");
    application.until_log("has two");
    assert_eq!((count(&application, "has one"), count(&application, "has two")), (1, 1), "{}", application.log());
    application.signal(Signal::TERM);
    until("the end", || !application.is_running());
    assert_eq!(application.wait(), 143);
}

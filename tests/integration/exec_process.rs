//! `keytide exec` as a process: signals, orphans, the first process of a container, terminals, and who may look into
//! it.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    exec::{CANARY, command, count, exec, put, run},
    support::{Daemon, Stage, USER, is_root, patiently, stderr, stdout, until},
};

fn keys(stage: &Stage) -> String {
    put(stage, "keys.env", &format!("KEY='{CANARY}'\n"))
}

/// The command of a started `exec`, once it is itself.
fn command_of(started: &Daemon) -> u32 {
    let mut command = None;
    until("the command", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", started.id())).unwrap_or_default();
        command = children.split_whitespace().next().map(|id| id.parse().unwrap());
        command.is_some_and(|id: u32| {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            !name.is_empty() && !name.starts_with("keytide") && !name.starts_with("exe")
        })
    });
    command.unwrap()
}

fn line(id: u32, file: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{id}/{file}")).unwrap();
    text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}

#[test]
fn signals_reach_the_command() {
    let stage = Stage::new();
    let file = keys(&stage);
    let names =
        ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "CONT", "TSTP", "TTIN", "TTOU", "WINCH", "IO", "PWR"];
    let traps = names.map(|name| format!("trap 'echo got {name}.' {name}; ")).concat();
    let script = format!("{traps} echo ready; while :; do sleep 0.05; done");
    let started = stage.start(exec(&stage, &["--env-file", &file], &script));
    started.until_log("ready");
    let signals = [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::CONT,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
        Signal::WINCH,
        Signal::IO,
        Signal::POWER,
    ];
    for (name, signal) in names.iter().zip(signals) {
        started.signal(signal);
        started.until_log(&format!("got {name}."));
    }
    // Not even those that a whole process group gets come twice.
    let group = Pid::from_raw(i32::try_from(started.id()).unwrap()).unwrap();
    rustix::process::kill_process_group(group, Signal::USR1).unwrap();
    until("the second", || count(&started, "got USR1.") == 2);
    started.signal(Signal::USR2);
    until("another", || count(&started, "got USR2.") == 2);
    assert_eq!(count(&started, "got USR1."), 2, "{}", started.log());
}

#[test]
fn a_command_is_as_if_keytide_were_not_there() {
    let stage = Stage::new();
    let file = keys(&stage);
    let look = "grep -E '^(Sig|Shd|NoNewPrivs|Threads)' /proc/self/status; cat /proc/self/limits; ls /proc/self/fd";
    let bare = {
        let command = exec(&stage, &[], look);
        let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut bare = Command::new("setsid");
        bare.args(words.iter().skip_while(|word| *word != "sh")).env_clear().env("PATH", "/usr/bin:/bin");
        if is_root() {
            bare.uid(USER).gid(USER);
        }
        stdout(&bare.stdin(Stdio::null()).output().unwrap())
    };
    let output = run(&stage, &["--env-file", &file], look);
    // The number of pending signals is everybody's, and of the signals 32 and 33 a C library makes its own use.
    let settled = |text: &str| {
        let lines =
            text.lines().filter(|line| !line.starts_with("SigQ")).map(|line| match line.split_once("SigIgn:\t") {
                Some((_, mask)) => format!("ignored {:x}", u64::from_str_radix(mask, 16).unwrap() & !(0b11 << 31)),
                None => line.to_owned(),
            });
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(settled(&stdout(&output)), settled(&bare), "{}", stderr(&output));
    assert!(bare.contains("SigBlk:\t0000000000000000") && bare.contains("Max core file size"), "{bare}");
}

/// The same, started by a program that changes something of the process first.
fn behind(program: &[&str], keytide: &Command) -> Command {
    let mut command = Command::new("setsid");
    command.args(program).args(keytide.get_args()).env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    if is_root() {
        command.uid(USER).gid(USER);
    }
    command
}

#[test]
fn blocked_signals_stay_blocked_and_ignored_pipe_and_chld_do_not_stay_ignored() {
    let stage = Stage::new();
    let file = keys(&stage);
    // Not a shell, which makes its own mask.
    let keytide = command(&stage, &["--env-file", &file], &["grep", "^Sig[BI]", "/proc/self/status"]);
    let changed = ["env", "--block-signal=URG", "--ignore-signal=PIPE,CHLD,URG"];
    let output = behind(&changed, &keytide).output().unwrap();
    let said = stdout(&output);
    let sets: Vec<u64> =
        said.lines().map(|line| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap()).collect();
    let urg = 1 << (Signal::URG.as_raw() - 1);
    // Of the signals 32 and 33 a C library makes its own use.
    assert!(sets.len() == 2 && sets[0] == urg && sets[1] & !(0b11 << 31) == urg, "{said} {}", stderr(&output));
}

#[test]
fn it_does_not_start_where_it_would_not_hear_a_signal() {
    let stage = Stage::new();
    let file = keys(&stage);
    let keytide = exec(&stage, &["--env-file", &file], "echo started");
    for signal in [Signal::CHILD, Signal::TERM, Signal::USR1] {
        let output = behind(&["env", &format!("--block-signal={}", signal.as_raw())], &keytide).output().unwrap();
        let (said, expected) = (stderr(&output), format!("sh was not started: signal {} is blocked", signal.as_raw()));
        assert!(output.status.code() == Some(1) && said.contains(&expected), "{said}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_user_without_room_for_a_process_is_told_so() {
    let stage = Stage::new();
    let file = keys(&stage);
    let keytide = exec(&stage, &["--env-file", &file], "echo started");
    let output = behind(&["prlimit", "--nproc=1:1"], &keytide).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(126), "{said}");
    assert!(said.contains("failed to start sh: this user or container may have no more processes"), "{said}");
}

#[test]
fn a_real_time_signal_ends_keytide_and_the_command() {
    let stage = Stage::new();
    let file = keys(&stage);
    let mut started = stage.start(exec(&stage, &["--env-file", &file], "trap 'echo got it' 40; echo ready; sleep 60"));
    started.until_log("ready");
    let command = command_of(&started);
    let line = format!("kill -40 {}", started.id());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    until("the end of both", || !started.is_running() && !fs::exists(format!("/proc/{command}")).unwrap());
    assert!(!started.log().contains("got it"), "{}", started.log());
}

#[test]
fn what_keytide_is_told_to_ignore_the_command_ignores() {
    let stage = Stage::new();
    let file = keys(&stage);
    let keytide = exec(&stage, &["--env-file", &file], "echo ready; exec sleep 60");
    let mut started = stage.start(behind(&["nohup"], &keytide));
    started.until_log("ready");
    let command = command_of(&started);
    started.signal(Signal::HUP);
    kill_process(Pid::from_raw(i32::try_from(command).unwrap()).unwrap(), Signal::HUP).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(started.is_running() && fs::exists(format!("/proc/{command}")).unwrap(), "{}", started.log());
}

#[test]
fn whoever_kills_keytide_kills_the_command() {
    let stage = Stage::new();
    let file = keys(&stage);
    let mut started = stage.start(exec(&stage, &["--env-file", &file], "echo ready; exec sleep 60"));
    started.until_log("ready");
    let command = command_of(&started);
    started.kill();
    until("the end of the command", || !fs::exists(format!("/proc/{command}")).unwrap());
}

/// A process that ends after its parent, and says which number it had.
const ORPHAN: &str = "(sh -c 'echo orphan $$ >>orphans; sleep 0.3' &); ";

#[test]
fn orphans_are_buried_also_where_another_process_is_the_first() {
    let stage = Stage::new();
    let file = keys(&stage);
    let started = stage.start(exec(&stage, &["--env-file", &file], &format!("{ORPHAN} echo ready; exec sleep 60")));
    started.until_log("ready");
    until("an orphan", || stage.read("orphans").ends_with('\n'));
    let orphan = stage.read("orphans").trim().trim_start_matches("orphan ").to_owned();
    // It was keytide's while it lived, and nothing is left of it.
    until("its burial", || !fs::exists(format!("/proc/{orphan}")).unwrap());
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", started.id())).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "{children}");
}

/// `keytide exec` as the first process of a process namespace of its own.
fn as_first(stage: &Stage, options: &[&str], script: &str) -> Command {
    let keytide = exec(stage, options, script);
    let mut unshare = Command::new("setsid");
    unshare.args(["unshare", "--pid", "--fork", "--kill-child"]);
    if is_root() {
        let user = USER.to_string();
        unshare.args(["--mount-proc", "--setgid", &user, "--setuid", &user]);
    } else {
        unshare.args(["--user", "--map-current-user", "--mount-proc"]);
    }
    unshare.args(keytide.get_args()).current_dir(stage.path("")).stdin(Stdio::null());
    unshare.env_clear().env("PATH", "/usr/bin:/bin");
    unshare
}

#[test]
fn the_first_process_of_a_container_passes_signals_on_and_buries_orphans() {
    let stage = Stage::new();
    let file = keys(&stage);
    let script = format!(
        "trap 'echo told to end; for p in /proc/[0-9]*; do cat $p/stat; done >left; exit 6' TERM; \
         echo parent $PPID; {ORPHAN} {ORPHAN} while :; do sleep 0.1; done"
    );
    let mut started = stage.start(as_first(&stage, &["--env-file", &file], &script));
    started.until_log("parent 1");
    until("two orphans", || stage.read("orphans").lines().count() == 2);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", started.id())).unwrap();
    let first = Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    kill_process(first, Signal::TERM).unwrap();
    assert_eq!(started.wait(), 6, "{}", started.log());
    assert!(started.log().contains("told to end"), "{}", started.log());
    let left = stage.read("left");
    assert!(left.contains("(keytide)") && !left.contains(") Z "), "{left}");
}

#[test]
fn the_first_process_of_a_container_starts_its_command_again() {
    let stage = Stage::new();
    let file = put(&stage, "keys.env", "KEY='1'\n");
    let options = ["--env-file", &file, "--on-change", "restart"];
    let started = stage.start(as_first(&stage, &options, "echo has $KEY; exec sleep 60"));
    started.until_log("has 1");
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("has 2");
}

#[test]
fn nobody_looks_into_keytide_which_holds_no_value_while_the_command_runs() {
    let stage = Stage::new();
    let file = keys(&stage);
    let json = put(&stage, "keys.json", &format!("{{\"JSON\":\"{CANARY}\\n\"}}\n"));
    let options = ["--env-file", &file, "--env-file", &json, "--on-change", "restart"];
    let mut started = stage.start(exec(&stage, &options, "echo ready; exec sleep 60"));
    started.until_log("ready");
    let command = command_of(&started);
    // The command is anybody's who has its user; while the shell becomes it, it has no environment.
    until("the command's environment", || {
        let is_sleep = fs::read_to_string(format!("/proc/{command}/comm")).is_ok_and(|name| name == "sleep\n");
        let environment = fs::read(format!("/proc/{command}/environ")).unwrap_or_default();
        is_sleep && String::from_utf8_lossy(&environment).contains(&format!("KEY={CANARY}"))
    });
    if is_root() {
        assert_eq!(fs::metadata(format!("/proc/{command}/environ")).unwrap().uid(), USER);
        assert_eq!(fs::metadata(format!("/proc/{}/environ", started.id())).unwrap().uid(), 0);
        // keytide's, from all that it has mapped; the command's, to see that one can see.
        assert_ne!(holds(command, CANARY), Vec::<String>::new());
        assert_eq!(holds(started.id(), CANARY), Vec::<String>::new());
    } else {
        assert!(fs::read(format!("/proc/{}/environ", started.id())).is_err());
    }
    assert!(line(started.id(), "limits", "Max core file size").contains("unlimited") || !is_root());
    for id in [started.id(), command] {
        assert!(!fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap().contains(CANARY));
    }
    started.signal(Signal::TERM);
    assert_eq!(started.wait(), 143);
    assert!(!started.log().contains(CANARY), "{}", started.log());
}

/// Where the memory of a process holds this text.
fn holds(id: u32, text: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{id}/mem")).unwrap();
    let mut found = Vec::new();
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let (from, to) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        memory.seek(SeekFrom::Start(from)).unwrap();
        if memory.read_exact(&mut bytes).is_ok() && bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(map.to_owned());
        }
    }
    found
}

#[test]
fn no_value_is_seen_at_any_level() {
    let stage = Stage::new();
    let file = keys(&stage);
    let mut command = stage.command(&[
        "--log-level",
        "trace",
        "exec",
        "--env-file",
        &file,
        "--on-change",
        "restart",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]);
    let output =
        command.env("PATH", "/usr/bin:/bin").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(!(stdout(&output) + &stderr(&output)).contains(CANARY), "{}", stderr(&output));
    for (content, format) in [
        (format!("KEY='{CANARY}"), "auto"),
        (format!("{CANARY}\n"), "auto"),
        (format!("{}=\n", CANARY.replace('-', "_")), "kubernetes"),
        (format!("{{\"KEY\": \"{CANARY}\", \"KEY\": 1}}"), "auto"),
        (format!("{{\"KEY\": {CANARY}}}"), "json"),
        (format!("{{\"{CANARY}\": \"x\"}}"), "json"),
        (format!("KEY='{CANARY}'\nKEY='{CANARY}'\n"), "posix"),
        (format!("KEY=\"{CANARY}\\n\"\n"), "dotenv"),
    ] {
        let file = put(&stage, "broken.env", &content);
        let output = run(&stage, &["--env-file", &file, "--format", format, "--wait", "0s"], "true");
        let said = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{content}: {said}");
        assert!(!said.contains(CANARY) && !said.contains(&CANARY.replace('-', "_")), "{said}");
    }
}

/// `keytide exec` on a terminal, of which the lines that were typed go to the command.
#[test]
fn on_a_terminal_the_command_reads_and_ctrl_c_reaches_it_once() {
    let stage = Stage::new();
    let file = keys(&stage);
    let keytide = exec(&stage, &["--env-file", &file], "");
    let words: Vec<String> = keytide.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let script = stage.write(
        "application",
        "trap 'echo interrupted >>seen' INT; echo ready >>seen; while :; do read line && echo \"read $line\" >>seen; \
         [ \"$line\" = bye ] && exit 4; done\n",
    );
    // `script` makes the terminal, and its shell is replaced by keytide.
    let line = format!("exec {} exec --env-file {file} -- sh {}", words[0], script.display());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]).env_clear().env("PATH", "/usr/bin:/bin").env("SHELL", "/bin/sh");
    terminal.current_dir(stage.path("")).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    if is_root() {
        terminal.uid(USER).gid(USER);
    }
    let mut terminal = terminal.spawn().unwrap();
    let mut keyboard = terminal.stdin.take().unwrap();
    let seen = |text: &str| patiently(|| stage.read("seen").contains(text));
    assert!(seen("ready"), "{}", stage.read("seen"));
    keyboard.write_all(b"hello\n").unwrap();
    assert!(seen("read hello"), "{}", stage.read("seen"));
    keyboard.write_all(b"\x03").unwrap();
    assert!(seen("interrupted"), "{}", stage.read("seen"));
    keyboard.write_all(b"bye\n").unwrap();
    assert!(seen("read bye"), "{}", stage.read("seen"));
    assert_eq!(terminal.wait().unwrap().code(), Some(4));
    assert_eq!(stage.read("seen").matches("interrupted").count(), 1, "{}", stage.read("seen"));
}

/// A root directory with the static binary and an env file: no shell, no C library, no /proc, no /dev.
fn empty_image(stage: &Stage) -> String {
    assert!(is_root(), "chroot needs root");
    let root = stage.make_directory("root", 0o755).display().to_string();
    let installed = stage.keytide(&["install", &root]);
    assert_eq!(installed.status.code(), Some(0), "{}", stderr(&installed));
    put(stage, "root/run/keytide/env/keys.env", "KEY='1'\n");
    root
}

/// This command as the first process of a container with this root directory.
fn contained(stage: &Stage, root: &str, arguments: &str) -> Daemon {
    let mut unshare = Command::new("unshare");
    let user = USER.to_string();
    unshare.args(["--pid", "--fork", "--kill-child", "--root", root, "--setgid", &user, "--setuid", &user]);
    unshare.args(arguments.split(' ')).env_clear().env("PATH", "/:/usr/bin").stdin(Stdio::null());
    stage.start(unshare)
}

/// The cases of `tests/exec/cases`; `code` says what is expected of each.
fn each_case(stage: &Stage, root: &str, code: impl Fn(i32, &str) -> i32) {
    let cases = include_str!("../exec/cases").lines().filter(|line| !line.starts_with('#'));
    let mut seen = 0;
    for case in cases {
        let [expected, says, arguments] = case.split('\t').collect::<Vec<_>>()[..] else { panic!("{case}") };
        let expected = code(expected.parse().unwrap(), arguments);
        let mut contained = contained(stage, root, arguments);
        if expected == 6 {
            contained.until_log(says);
            let first = fs::read_to_string(format!("/proc/{0}/task/{0}/children", contained.id())).unwrap();
            let first = Pid::from_raw(first.trim().parse().unwrap()).unwrap();
            kill_process(first, Signal::TERM).unwrap();
        }
        assert_eq!(contained.wait(), expected, "{arguments}: {}", contained.log());
        assert!(expected == 127 || contained.log().contains(says), "{arguments}: {}", contained.log());
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
}

#[test]
#[ignore = "needs the static binary and root: ./tests/run footprint"]
fn an_empty_image_is_enough() {
    let stage = Stage::new();
    let root = empty_image(&stage);
    each_case(
        &stage,
        &root,
        |code, arguments| if arguments.contains("application") && code < 64 && code > 1 { 127 } else { code },
    );
}

#[test]
#[ignore = "needs the static binary, root and musl-gcc: ./tests/run footprint"]
fn an_image_with_nothing_but_musl_is_enough() {
    let stage = Stage::new();
    let root = empty_image(&stage);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exec/application.c");
    let application = stage.path("root/application");
    assert!(Command::new("musl-gcc").args(["-O1", "-o"]).arg(&application).arg(source).status().unwrap().success());
    let loader = format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH);
    fs::create_dir(stage.path("root/lib")).unwrap();
    fs::copy(&loader, stage.path(&format!("root{loader}"))).unwrap();
    each_case(&stage, &root, |code, _| code);
}

//! `keytide exec --on-change`: what is a change, and what becomes of the command.

use std::{
    fs, mem,
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    exec::{CANARY, count, exec, put},
    support::{Daemon, Stage, USER, is_root},
};

/// Says what it has, and that it was asked to end.
const APPLICATION: &str = "trap 'echo told to end; exit 3' TERM; trap 'echo told to look' HUP; echo \"has $KEY.\"; \
                           while :; do sleep 0.1; done";

fn start(stage: &Stage, on_change: &str, more: &[&str], script: &str) -> Daemon {
    let file = put(stage, "keys.env", "KEY='1'\n");
    let options = [&["--env-file", &file, "--on-change", on_change], more].concat();
    let started = stage.start(exec(stage, &options, script));
    started.until_log("has 1.");
    started
}

/// So long that a change would have been noticed and told: the pace, and a look.
fn long() {
    thread::sleep(Duration::from_secs(13));
}

#[test]
fn a_command_is_started_again_once_for_changes_that_come_together() {
    let stage = Stage::new();
    let mut started = start(&stage, "restart", &[], APPLICATION);
    put(&stage, "keys.env", "KEY='2'\n");
    thread::sleep(Duration::from_millis(1500));
    put(&stage, "keys.env", "KEY='3'\n");
    started.until_log("has 3.");
    let log = started.log();
    assert!(!log.contains("has 2.") && log.matches("told to end").count() == 1, "{log}");
    assert!(log.contains("the variables changed: sh is started again"), "{log}");
    started.signal(Signal::TERM);
    assert_eq!(started.wait(), 3, "as the command ends: {}", started.log());
}

#[test]
fn only_other_values_are_a_change() {
    let stage = Stage::new();
    let mut started = start(&stage, "restart", &[], APPLICATION);
    // The same again, in another format; and something else that is taken back.
    put(&stage, "keys.env", "{\"KEY\":\"1\"}\n");
    thread::sleep(Duration::from_millis(1500));
    put(&stage, "keys.env", "KEY='2'\n");
    thread::sleep(Duration::from_millis(1500));
    put(&stage, "keys.env", "# as before\nKEY=1\n");
    long();
    assert!(started.is_running() && !started.log().contains("told to end"), "{}", started.log());
}

#[test]
fn a_file_that_breaks_or_goes_away_leaves_the_command_alone() {
    let stage = Stage::new();
    let mut started = start(&stage, "restart", &[], APPLICATION);
    put(&stage, "keys.env", &format!("KEY='{CANARY}\n"));
    started.until_log("line 1: its value has no end");
    started.until_log("sh goes on with what it has");
    fs::remove_file(stage.path("keys.env")).unwrap();
    started.until_log("keys.env is not there; sh goes on with what it has");
    long();
    assert!(started.is_running() && !started.log().contains("told to end"), "{}", started.log());
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("has 2.");
    assert!(!started.log().contains(CANARY), "{}", started.log());
}

#[test]
fn a_file_that_could_not_be_read_for_a_while_is_read_without_a_change_of_it() {
    let stage = Stage::new();
    let started = start(&stage, "restart", &[], APPLICATION);
    let limits = fs::read_to_string(format!("/proc/{}/limits", started.id())).unwrap();
    let before = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limit = |soft: &str| {
        let mut prlimit = Command::new("prlimit");
        let id = started.id().to_string();
        if is_root() {
            prlimit.uid(USER).gid(USER);
        }
        assert!(prlimit.args(["--pid", &id, &format!("--nofile={soft}:")]).status().unwrap().success());
    };
    let before = before.split_whitespace().next().unwrap();
    limit("1");
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("keys.env cannot be read: ");
    // Longer than a file that was just written is read again in any case.
    thread::sleep(Duration::from_secs(4));
    assert_eq!(count(&started, "cannot be read"), 1, "{}", started.log());
    limit(before);
    started.until_log("has 2.");
}

#[test]
fn a_command_that_was_stopped_and_has_no_file_any_more_ends_with_what_is_wrong() {
    let stage = Stage::new();
    let slow = "trap 'echo told to end; sleep 1; exit' TERM; echo \"has $KEY.\"; while :; do sleep 0.1; done";
    let mut started = start(&stage, "restart", &["--wait", "1s"], slow);
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("told to end");
    fs::remove_file(stage.path("keys.env")).unwrap();
    assert_eq!(started.wait(), 1, "{}", started.log());
    let log = started.log();
    assert!(log.contains("sh was stopped, and not started again: ") && log.contains("not there, after 1 s"), "{log}");
}

#[test]
fn a_file_that_goes_away_while_the_command_stops_is_waited_for() {
    let stage = Stage::new();
    let slow = "trap 'echo told to end; sleep 2; exit' TERM; echo \"has $KEY.\"; while :; do sleep 0.1; done";
    let started = start(&stage, "restart", &[], slow);
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("told to end");
    fs::remove_file(stage.path("keys.env")).unwrap();
    started.until_log("waits up to 60 s to start sh");
    put(&stage, "keys.env", "KEY='3'\n");
    started.until_log("has 3.");
    assert!(!started.log().contains("has 2."), "{}", started.log());
}

#[test]
fn a_command_that_does_not_end_is_killed_with_what_it_started() {
    let stage = Stage::new();
    let stubborn = "trap '' TERM; echo \"has $KEY.\"; sleep 600 & echo $! >>children; while :; do sleep 0.1; done";
    let started = start(&stage, "restart", &["--stop-timeout", "1s"], stubborn);
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("has 2.");
    assert!(started.log().contains("sh did not end within 1 s of SIGTERM, and is killed"), "{}", started.log());
    let children = stage.read("children");
    let first = children.lines().next().unwrap();
    assert!(!fs::exists(format!("/proc/{first}")).unwrap(), "what the first one started is still there");
}

#[test]
fn what_a_command_leaves_behind_is_gone_before_it_is_started_again() {
    let stage = Stage::new();
    let careless = "sleep 600 & echo $! >>children; echo \"has $KEY.\"; wait";
    let started = start(&stage, "restart", &[], careless);
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("has 2.");
    let children = stage.read("children");
    assert!(!fs::exists(format!("/proc/{}", children.lines().next().unwrap())).unwrap(), "{children}");
}

#[test]
fn a_command_gets_a_signal_once_for_a_change() {
    let stage = Stage::new();
    let mut started = start(&stage, "HUP", &[], APPLICATION);
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("told to look");
    assert!(started.log().contains("the variables changed: SIGHUP to sh"), "{}", started.log());
    long();
    assert_eq!(count(&started, "told to look"), 1, "{}", started.log());
    put(&stage, "keys.env", "KEY='3'\n");
    crate::support::until("the second", || count(&started, "told to look") == 2);
    assert!(started.is_running() && count(&started, "has") == 1);
}

#[test]
fn by_default_a_change_is_not_even_looked_for() {
    let stage = Stage::new();
    let mut started = start(&stage, "ignore", &[], APPLICATION);
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", started.id())).unwrap();
        status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
    };
    // Once it has started all that it starts, however busy the machine is.
    let mut before = switches();
    crate::support::until("a second's sleep", || {
        thread::sleep(Duration::from_secs(1));
        let last = mem::replace(&mut before, switches());
        last == before
    });
    put(&stage, "keys.env", "KEY='2'\n");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(switches(), before, "it sleeps until it is signalled");
    long();
    assert!(started.is_running() && !started.log().contains("told"), "{}", started.log());
}

#[test]
fn looking_for_changes_costs_a_glance_a_second() {
    let stage = Stage::new();
    let started = start(&stage, "restart", &[], APPLICATION);
    let spent = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", started.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let threads = fs::read_dir(format!("/proc/{}/task", started.id())).unwrap().count();
    let (before, began) = (spent(), Instant::now());
    thread::sleep(Duration::from_secs(10));
    // Of a hundred ticks a second, two in ten seconds.
    let (ticks, passed) = (spent() - before, began.elapsed().as_secs());
    assert!(ticks <= passed / 5 && threads == 1, "{ticks} ticks in {passed} s, {threads} threads");
}

#[test]
fn a_signal_to_end_that_comes_while_the_command_is_started_again_ends_it() {
    let stage = Stage::new();
    let slow = "trap 'echo told to end; sleep 2; exit 5' TERM; echo \"has $KEY.\"; while :; do sleep 0.1; done";
    let mut started = start(&stage, "restart", &[], slow);
    put(&stage, "keys.env", "KEY='2'\n");
    started.until_log("told to end");
    started.signal(Signal::TERM);
    assert_eq!(started.wait(), 5);
    let log = started.log();
    assert!(!log.contains("has 2.") && log.matches("told to end").count() == 1, "{log}");
}

#[test]
fn a_command_that_was_told_to_end_is_not_started_again() {
    let stage = Stage::new();
    let drains = "trap 'echo told to end' TERM; echo \"has $KEY.\"; i=0; \
                  while [ $i -lt 150 ]; do i=$((i+1)); sleep 0.1; done; exit 4";
    let mut started = start(&stage, "restart", &[], drains);
    started.signal(Signal::TERM);
    started.until_log("told to end");
    put(&stage, "keys.env", "KEY='2'\n");
    let so = crate::support::patiently(|| !started.is_running());
    assert!(so && started.wait() == 4 && count(&started, "has") == 1, "{}", started.log());
}

#[test]
fn a_command_that_survives_sigint_or_sigquit_is_told_of_changes_after_the_stop_timeout() {
    let both = [("INT", Signal::INT), ("QUIT", Signal::QUIT)].map(|(name, signal)| {
        let stage = Stage::new();
        let survives = format!("trap 'echo survived' {name}; {APPLICATION}");
        let started = start(&stage, "restart", &["--stop-timeout", "12s"], &survives);
        let asked = Instant::now();
        started.signal(signal);
        started.until_log("survived");
        started.until_log("sh was asked to end: changes wait for 12 s");
        put(&stage, "keys.env", "KEY='2'\n");
        (stage, started, asked)
    });
    for (_stage, started, asked) in both {
        started.until_log("has 2.");
        assert!(asked.elapsed() >= Duration::from_secs(12), "{}", started.log());
    }
}

#[test]
fn a_command_that_ends_by_itself_is_not_started_again() {
    let stage = Stage::new();
    let mut started = start(&stage, "restart", &[], "echo \"has $KEY.\"; exit 9");
    assert_eq!(started.wait(), 9);
}

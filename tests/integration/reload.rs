//! Consumers are told of a change: by a signal, by a call, by a number in a file; and of nothing else.

use std::{
    collections::VecDeque,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use keytide_emulator::{Emulator, Fault, FaultKind, Seed, Tls};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    canary,
    support::{Daemon, Stage, USER, block, is_root, stderr, stdout, until},
};

/// As quick as it can be, so that tests need not wait.
const QUICK: &str = "debounce: 0s, splay: 0s, min_interval: 0s";
/// What would have been done by now.
const A_WHILE: Duration = Duration::from_millis(1200);

/// One key, refreshed when the test says so, with these reload actions.
fn stage(actions: &[&str]) -> Stage {
    let stage = Stage::new();
    configure(&stage, actions);
    stage
}

fn configure(stage: &Stage, actions: &[&str]) {
    stage.aws.put("prod/a", "0");
    let actions: String = actions.iter().map(|action| format!("  - {action}\n")).collect();
    let keys = "keys: [{name: A, secret: prod/a}]\nreload:\n";
    stage.config(&block("interval: 700h, jitter: 0", &format!("{keys}{actions}")));
}

fn start(stage: &Stage) -> Daemon {
    let daemon = stage.run();
    daemon.until_ready();
    daemon
}

fn change(stage: &Stage, daemon: &Daemon, value: &str) {
    stage.aws.put("prod/a", value);
    daemon.hang_up();
    stage.until_values(&json!({"A": value}));
}

/// What `keytide status` says of the first action.
fn told(stage: &Stage) -> Value {
    stage.status()["reload"][0].clone()
}

fn until_message(stage: &Stage, text: &str) {
    let message = || told(stage)["message"].as_str().unwrap_or_default().to_owned();
    until(&format!("{text:?} in the status"), || message().contains(text));
}

fn reloads(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("keytide_reloads_total", &[&format!("result=\"{result}\"")])
}

/// A program that writes a line for each SIGUSR1 it hears, and lives as long as its file. Not SIGHUP, which a shell below
/// `nohup` cannot hear.
struct Program {
    name: String,
    child: Child,
}

impl Program {
    fn start(stage: &Stage) -> Self {
        Self::start_as(stage, USER, "")
    }

    /// With a worker, a child of the same name that hears as well.
    fn start_with_worker(stage: &Stage) -> Self {
        Self::start_as(stage, USER, "(trap 'echo worker >> heard' USR1; while [ -e \"$0\" ]; do sleep 0.05; done) &\n")
    }

    fn start_as(stage: &Stage, user: u32, worker: &str) -> Self {
        let name = format!("t-{:08x}", fastrand::u32(..));
        let loops = "trap 'echo master >> heard' USR1\necho > ready\nwhile [ -e \"$0\" ]; do sleep 0.05; done\n";
        let file = stage.write(&name, format!("#!/bin/sh\n{worker}{loops}"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(&file);
        command.current_dir(stage.make_directory("heard", 0o777));
        if is_root() {
            command.uid(user).gid(user);
        }
        let child = command.spawn().unwrap();
        until("the program", || stage.path("heard/ready").exists());
        Self { name, child }
    }

    fn action(&self, more: &str) -> String {
        format!("signal: {{process: {}, signal: SIGUSR1, {more}}}", self.name)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn heard(stage: &Stage) -> Vec<String> {
    stage.read("heard/heard").lines().map(str::to_owned).collect()
}

/// A server that keeps what it was asked, and answers what it is told to.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<VecDeque<&'static str>>>,
    otherwise: Arc<Mutex<&'static str>>,
}

/// An answer that never comes.
const NEVER: &str = "";

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, answers) = (Arc::default(), Arc::default());
        let otherwise = Arc::new(Mutex::new("200 OK"));
        let server = Self {
            address,
            asked: Arc::clone(&asked),
            answers: Arc::clone(&answers),
            otherwise: Arc::clone(&otherwise),
        };
        thread::spawn(move || {
            let mut hanging = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let next = answers.lock().unwrap().pop_front();
                let answer = next.unwrap_or_else(|| *otherwise.lock().unwrap());
                asked.lock().unwrap().push(head(&mut stream));
                if answer == NEVER {
                    hanging.push(stream);
                } else {
                    let body = "canary-of-the-answer-51b0";
                    let head = format!("HTTP/1.1 {answer}\r\nContent-Length: {}\r\n\r\n", body.len());
                    drop(stream.write_all(format!("{head}{body}").as_bytes()));
                }
            }
        });
        server
    }

    fn answers(&self, answers: &[&'static str]) {
        self.answers.lock().unwrap().extend(answers);
    }

    /// What it says once those are through: whoever is slow is asked again meanwhile.
    fn answers_from_now_on(&self, answer: &'static str) {
        *self.otherwise.lock().unwrap() = answer;
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn until_asked(&self, times: usize) -> Vec<String> {
        until(&format!("{times} calls"), || self.asked().len() >= times);
        self.asked()
    }

    fn action(&self, more: &str) -> String {
        format!("http: {{url: \"http://{}/-/reload?token=query-4f\", {more}}}", self.address)
    }
}

fn head(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

// --- when

#[test]
fn a_change_is_told_and_neither_a_start_nor_a_restart_nor_a_repair() {
    let stage = Stage::new();
    let program = Program::start(&stage);
    configure(&stage, &[&program.action(QUICK)]);
    let mut daemon = start(&stage);
    daemon.hang_up();
    fs::remove_file(stage.path("env/keys.json")).unwrap();
    stage.until_values(&json!({"A": "0"}));
    until("the repair", || daemon.metric("keytide_output_repairs_total", &[]) == 1.0);
    thread::sleep(A_WHILE);
    assert_eq!((heard(&stage).len(), reloads(&daemon, "ok"), reloads(&daemon, "failed")), (0, 0.0, 0.0));
    assert_eq!(daemon.metric("keytide_reload_pending", &["action=\"signal\""]), 0.0);

    change(&stage, &daemon, "1");
    until("the signal", || heard(&stage) == ["master"]);
    until("the count", || reloads(&daemon, "ok") == 1.0);
    assert!(daemon.metric("keytide_reload_last_success_timestamp_seconds", &["action=\"signal\""]) > 1e9);
    daemon.until_log(&format!("reload action signal: SIGUSR1 to process {} (id {})", program.name, program.child.id()));
    let status = told(&stage);
    assert_eq!(
        (&status["name"], &status["kind"], &status["pending"]),
        (&json!("signal"), &json!("signal"), &json!(false))
    );
    assert!(status["last"].is_string() && status["message"].is_null(), "{status}");
    let socket = stage.socket().display().to_string();
    let table = stdout(&stage.keytide(&["status", "--socket", &socket]));
    assert!(table.lines().any(|line| line.starts_with("signal") && line.contains("idle")), "{table}");

    // Also not where the first write of the new process is one.
    daemon.kill();
    fs::remove_file(stage.path("env/keys.json")).unwrap();
    let daemon = start(&stage);
    daemon.hang_up();
    thread::sleep(A_WHILE);
    assert_eq!((heard(&stage).len(), reloads(&daemon, "ok")), (1, 0.0));
    // What was recovered is known: another value is a change.
    change(&stage, &daemon, "2");
    until("the second signal", || heard(&stage).len() == 2);
}

#[test]
fn nothing_is_told_while_a_key_is_stale_and_everything_once_all_are_fresh() {
    let stage = Stage::new();
    let program = Program::start(&stage);
    let config = |keys: &str| {
        block("interval: 700h, jitter: 0", &format!("keys: [{keys}]\nreload: [{{{}}}]", program.action(QUICK)))
    };
    stage.aws.put("prod/a", "0");
    stage.aws.put("prod/b", "0");
    stage.config(&config("{name: A, secret: prod/a}, {name: B, secret: prod/b}"));
    let daemon = start(&stage);
    let denied = FaultKind::Error { code: "AccessDeniedException".to_owned(), status: 400, message: String::new() };
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/b").kind(denied));
    stage.aws.put("prod/a", "1");
    daemon.hang_up();
    stage.until_values(&json!({"A": "1", "B": "0"}));
    until_message(&stage, "waits until every key is fresh again");
    thread::sleep(A_WHILE);
    assert_eq!((heard(&stage).len(), daemon.metric("keytide_reload_pending", &[])), (0, 1.0));
    stage.aws.clear_faults();
    daemon.hang_up();
    until("the signal", || heard(&stage).len() == 1);
    until("an end of the waiting", || daemon.metric("keytide_reload_pending", &[]) == 0.0);
    assert!(told(&stage)["message"].is_null());
}

#[test]
fn several_quick_changes_are_told_once() {
    let stage = Stage::new();
    let program = Program::start(&stage);
    configure(&stage, &[&program.action("debounce: 6s, splay: 0s")]);
    let daemon = start(&stage);
    for value in ["1", "2", "3"] {
        change(&stage, &daemon, value);
    }
    assert_eq!(heard(&stage).len(), 0);
    until("the signal", || heard(&stage).len() == 1);
    thread::sleep(A_WHILE);
    assert_eq!(heard(&stage).len(), 1);
}

#[test]
fn an_action_keeps_its_distance_and_its_splay_and_a_stop_begins_none() {
    let server = Server::start();
    let stage = stage(&[
        &server.action("name: rare, debounce: 0s, splay: 0s, min_interval: 1h"),
        &server.action("name: late, debounce: 0s, splay: 1h"),
    ]);
    let mut daemon = start(&stage);
    change(&stage, &daemon, "1");
    server.until_asked(1);
    change(&stage, &daemon, "2");
    thread::sleep(A_WHILE);
    assert_eq!(server.asked().len(), 1);
    assert_eq!(daemon.metric("keytide_reload_pending", &[]), 2.0);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let log = daemon.log();
    assert!(log.contains("keytide stops before reload action late told its consumer"), "{log}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn an_action_follows_the_outputs_that_it_names() {
    let server = Server::start();
    let stage = Stage::new();
    let outputs = "  - env_file: {path: \"{dir}/env/b.env\", name: b, keys: [B]}\n";
    let actions = format!("reload:\n  - {}\n", server.action(&format!("outputs: [b], {QUICK}")));
    let keys = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b, export: false}]\n";
    stage.aws.put("prod/a", "0");
    stage.aws.put("prod/b", "0");
    stage.config(&block("interval: 700h, jitter: 0", &format!("{outputs}{keys}{actions}")));
    let daemon = start(&stage);
    stage.until_file("env/b.env", "B='0'\n");
    change(&stage, &daemon, "1");
    thread::sleep(A_WHILE);
    assert_eq!(server.asked().len(), 0);
    stage.aws.put("prod/b", "1");
    daemon.hang_up();
    server.until_asked(1);
}

// --- signals

#[test]
fn the_master_gets_the_signal_and_its_workers_do_not() {
    let stage = Stage::new();
    let program = Program::start_with_worker(&stage);
    configure(&stage, &[&program.action(QUICK)]);
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    until("the signal", || !heard(&stage).is_empty());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(heard(&stage), ["master"]);
}

#[test]
fn keytide_never_signals_itself() {
    let name = format!("t-{:08x}", fastrand::u32(..));
    let stage = stage(&[&format!("signal: {{process: {name}, signal: TERM, {QUICK}}}")]);
    let mut command = stage.command(&["run", "--config", &stage.path("keytide.yaml").display().to_string()]);
    command.arg0(format!("/usr/bin/{name}"));
    let mut daemon = stage.start(command);
    daemon.until_ready();
    change(&stage, &daemon, "1");
    until_message(&stage, "is keytide itself, which gets no signal");
    assert!(daemon.is_running());
    assert_eq!(reloads(&daemon, "failed"), 1.0);
}

#[test]
fn a_process_that_is_not_there_is_told_with_what_the_pod_needs() {
    let name = format!("t-{:08x}", fastrand::u32(..));
    let stage = stage(&[&format!("signal: {{process: {name}, signal: HUP, {QUICK}}}")]);
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    until_message(&stage, "shareProcessNamespace: true");
    assert_eq!(told(&stage)["pending"], json!(true));
    daemon.until_log("reload action signal failed, and is tried again");
    assert_eq!(daemon.metric("keytide_reload_pending", &[]), 1.0);
    assert_eq!(daemon.get("/readyz").status, 200);
}

#[test]
fn a_process_of_another_user_is_told_with_both_users_and_gets_nothing() {
    let stage = Stage::new();
    let program = Program::start_as(&stage, 12345, "");
    configure(&stage, &[&program.action(QUICK)]);
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    if is_root() {
        let id = program.child.id();
        until_message(&stage, &format!("(id {id}) belongs to user 12345, and keytide is user {USER}"));
        assert!(daemon.log().contains("runAsUser"));
        assert_eq!(heard(&stage).len(), 0);
    } else {
        // Nobody but root can be two users.
        until("the signal", || heard(&stage).len() == 1);
    }
}

// --- calls

#[test]
fn a_server_is_called_with_headers_from_files_that_are_read_again() {
    let server = Server::start();
    let stage =
        stage(&[&server.action(&format!("method: PUT, headers: {{Authorization: \"{{dir}}/token\"}}, {QUICK}"))]);
    stage.write("token", "Bearer canary-first-9a77\n");
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    let first = server.until_asked(1).remove(0);
    assert!(first.starts_with("PUT /-/reload?token=query-4f HTTP/1.1\r\n"), "{first}");
    let lines: Vec<String> = first.lines().map(str::to_lowercase).collect();
    for line in ["authorization: bearer canary-first-9a77", "content-length: 0", &format!("host: {}", server.address)] {
        assert!(lines.iter().any(|found| found == line), "{line}:\n{first}");
    }
    stage.write("token", "Bearer canary-second-c410\r\n");
    change(&stage, &daemon, "2");
    assert!(server.until_asked(2)[1].contains("Bearer canary-second-c410\r\n"));
    fs::remove_file(stage.path("token")).unwrap();
    change(&stage, &daemon, "3");
    until_message(&stage, "failed to read");
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn a_failed_call_is_repeated_until_it_succeeds() {
    let server = Server::start();
    let stage = stage(&[&server.action(QUICK)]);
    server.answers(&["500 No", "503 No"]);
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    server.until_asked(3);
    until("the count", || reloads(&daemon, "ok") == 1.0);
    assert_eq!(reloads(&daemon, "failed"), 2.0);
    assert!(daemon.log().contains("/-/reload answered 500"), "{}", daemon.log());
    thread::sleep(A_WHILE);
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn only_the_expected_statuses_are_success_and_no_redirect_is_followed() {
    let (server, target) = (Server::start(), Server::start());
    let stage = stage(&[&server.action(&format!("expect_status: [202], {QUICK}"))]);
    let redirect: &'static str = format!("302 Found\r\nLocation: http://{}/", target.address).leak();
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    until_message(&stage, "answered 200");
    assert_eq!(reloads(&daemon, "ok"), 0.0);
    server.answers_from_now_on(redirect);
    change(&stage, &daemon, "2");
    until_message(&stage, "answered 302, a redirect, which is not followed");
    assert_eq!(reloads(&daemon, "ok"), 0.0);
    server.answers_from_now_on("202 Accepted");
    change(&stage, &daemon, "3");
    until("success", || reloads(&daemon, "ok") >= 1.0);
    // Three, and those by which a slow test was repeated.
    let counted = || reloads(&daemon, "ok") + reloads(&daemon, "failed");
    until("each to be counted once", || f64::from(u32::try_from(server.asked().len()).unwrap()) == counted());
    assert!(counted() >= 3.0 && target.asked().is_empty(), "{}", counted());
}

#[test]
fn a_server_that_never_answers_costs_its_time_limit_and_holds_up_nobody() {
    let server = Server::start();
    let other = Server::start();
    server.answers_from_now_on(NEVER);
    let stage = stage(&[
        &server.action(&format!("name: hangs, timeout: 1s, {QUICK}")),
        &other.action(&format!("name: goes-on, {QUICK}")),
        "generation: {path: \"{dir}/env/generation\"}",
    ]);
    let mut daemon = start(&stage);
    change(&stage, &daemon, "1");
    server.until_asked(1);
    other.until_asked(1);
    change(&stage, &daemon, "2");
    other.until_asked(2);
    stage.until_file("env/generation", "3\n");
    until_message(&stage, "not done within 1s");
    assert_eq!(daemon.get("/livez").status, 200);
    // In the middle of a call.
    let before = server.asked().len();
    change(&stage, &daemon, "3");
    server.until_asked(before + 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let log = daemon.log();
    let at = |text: &str| -> Timestamp {
        let line = log.lines().rfind(|line| line.contains(text)).unwrap_or_else(|| panic!("{text:?} in {log}"));
        serde_json::from_str::<Value>(line).unwrap()["timestamp"].as_str().unwrap().parse().unwrap()
    };
    // By the daemon's own clock.
    let took = at("keytide stops before reload action hangs").duration_since(at("stopping on request"));
    assert!(took < SignedDuration::from_secs(3), "{took:?}");
}

#[test]
fn a_server_of_a_private_authority_is_called_over_tls_and_no_other_is_believed() {
    let server = Emulator::start_tls(Seed::default(), (Ipv4Addr::LOCALHOST, 0).into(), &Tls::new()).unwrap();
    let other = Emulator::start_tls(Seed::default(), (Ipv4Addr::LOCALHOST, 0).into(), &Tls::new()).unwrap();
    // It takes a request that is none of AWS's for a bad one.
    let action = |name: &str, ca: &str| {
        let statuses = "expect_status: [400, 403, 404]";
        format!("http: {{name: {name}, url: \"{}/\", {statuses}, ca_file: \"{{dir}}/{ca}\", {QUICK}}}", server.url())
    };
    let stage = stage(&[&action("trusted", "ca.pem"), &action("other", "other.pem"), &action("broken", "broken.pem")]);
    stage.write("ca.pem", server.ca_pem().unwrap());
    stage.write("other.pem", other.ca_pem().unwrap());
    stage.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let daemon = start(&stage);
    change(&stage, &daemon, "1");
    let result = |name: &str, result: &str| {
        daemon.metric("keytide_reloads_total", &[&format!("action=\"{name}\""), &format!("result=\"{result}\"")]) >= 1.0
    };
    until("each to end as it must", || {
        result("trusted", "ok") && result("other", "failed") && result("broken", "failed")
    });
    let status = stage.status();
    let message = |i: usize| status["reload"][i]["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(message(0), "");
    assert!(message(1).contains("of an issuer that is not trusted; ca_file adds one"), "{}", message(1));
    assert!(message(2).contains("ca_file is not an X.509 certificate"), "{}", message(2));
}

// --- the number in a file

#[test]
fn a_generation_file_changes_when_the_content_does_and_survives_a_restart() {
    let mut stage = stage(&["generation: {path: \"{dir}/env/generation\"}"]);
    let mut daemon = start(&stage);
    stage.until_file("env/generation", "1\n");
    let mode = fs::metadata(stage.path("env/generation")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o400);
    let stamp = stage.stamp("env/generation");
    daemon.hang_up();
    fs::remove_file(stage.path("env/keys.json")).unwrap();
    stage.until_values(&json!({"A": "0"}));
    assert_eq!(stage.stamp("env/generation"), stamp);
    change(&stage, &daemon, "1");
    stage.until_file("env/generation", "2\n");
    change(&stage, &daemon, "2");
    stage.until_file("env/generation", "3\n");
    let stamp = stage.stamp("env/generation");
    daemon.kill();
    let mut daemon = start(&stage);
    until("the first look", || reloads(&daemon, "ok") == 1.0);
    assert_eq!(stage.stamp("env/generation"), stamp);
    change(&stage, &daemon, "3");
    stage.until_file("env/generation", "4\n");
    // Somebody else's content begins anew, which is another one as well.
    daemon.kill();
    stage.write("env/generation", "none of a number\n");
    stage.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let _daemon = start(&stage);
    stage.until_file("env/generation", "1\n");
    let mode = fs::metadata(stage.path("env/generation")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o444);
}

#[test]
fn a_generation_file_is_there_after_the_outputs_and_follows_them_also_while_keys_are_stale() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "0");
    let keys = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]\n";
    let action = "reload: [generation: {path: \"{dir}/env/generation\"}]";
    stage.config(&block("interval: 700h, jitter: 0", &format!("{keys}{action}")));
    let daemon = stage.run();
    daemon.until_log("prod/b");
    assert!(!stage.path("env/generation").exists());
    stage.aws.put("prod/b", "0");
    daemon.until_ready();
    stage.until_file("env/generation", "1\n");
    let denied = FaultKind::Error { code: "AccessDeniedException".to_owned(), status: 400, message: String::new() };
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/b").kind(denied));
    stage.aws.put("prod/a", "1");
    daemon.hang_up();
    stage.until_file("env/generation", "2\n");
}

// --- configuration and secrecy

#[test]
fn what_an_action_cannot_be_is_told_with_its_place() {
    let stage = Stage::new();
    for (action, expected) in [
        ("signal: {process: nginx, signal: KILL}", "signal: expected HUP, INT"),
        ("signal: {process: nginx, signal: SIGSTOP}", "signal: expected HUP, INT"),
        ("signal: {signal: HUP}", "process is required"),
        ("signal: {process: a/b, signal: HUP}", "process: expected the name of a process"),
        ("signal: {process: nginx, signal: HUP, outputs: [other]}", "outputs[0]: there is no output of the name other"),
        ("signal: {process: nginx, signal: HUP, splay: 2h}", "splay: expected a duration such as 30s, at most 1h"),
        (
            "http: {url: \"http://canary-user:canary-pass@127.0.0.1/\"}",
            "url: expected an http or https URL without a user",
        ),
        ("http: {url: \"http://app.example.com/\"}", "plain http only to this machine"),
        ("http: {url: \"https://a/\", headers: {Host: /x}}", "headers: expected the name of a header"),
        ("http: {url: \"https://a/\", headers: {Authorization: canary-value}}", "headers: expected an absolute path"),
        ("http: {url: \"https://a/\", headers: {A: /x, a: /y}}", "given twice"),
        ("http: {url: \"https://a/\", expect_status: []}", "expect_status: expected at least one status"),
        ("http: {url: \"https://a/\", method: CONNECT}", "method: expected GET"),
        ("generation: {path: \"{dir}/env/keys.json\"}", "two things would be written at one path"),
        ("generation: {path: \"{dir}/g\", splay: 1s}", "unknown key"),
        ("rollover: {}", "unknown key"),
        (
            "signal: {process: nginx, signal: HUP, name: b}\n  - signal: {process: x, signal: HUP, name: b}",
            "two reload actions have this name",
        ),
    ] {
        configure(&stage, &[action]);
        let config = stage.path("keytide.yaml").display().to_string();
        let output = stage.keytide(&["check", "--config", &config]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(64), "{action}: {said}");
        let line = said.lines().find(|line| line.contains(expected));
        assert!(line.is_some_and(|line| line.contains("keytide.yaml:") && line.contains("reload")), "{action}: {said}");
        assert!(!said.contains("canary"), "{said}");
    }
}

#[test]
fn check_says_what_is_done_and_which_files_cannot_be_read() {
    let stage = stage(&[
        "signal: {process: nginx, signal: HUP}",
        "http: {url: \"https://app.example.com/reload\", headers: {X-Token: \"{dir}/token\"}, ca_file: \"{dir}/ca.pem\"}",
    ]);
    let config = stage.path("keytide.yaml").display().to_string();
    let said = || stdout(&stage.keytide(&["check", "--config", &config]));
    let first = said();
    for expected in [
        "signal (signal) SIGHUP to process nginx",
        "http (http) POST https://app.example.com/reload",
        "token cannot be read here",
        "ca.pem cannot be read here",
    ] {
        assert!(first.contains(expected), "{expected}: {first}");
    }
    stage.write("token", "x");
    stage.write("ca.pem", "x");
    assert!(!said().contains("cannot be read here"));
}

#[test]
fn once_tells_nobody() {
    let server = Server::start();
    let stage = stage(&[&server.action(QUICK), "generation: {path: \"{dir}/env/generation\"}"]);
    assert_eq!(stage.once().status.code(), Some(0));
    stage.aws.put("prod/a", "1");
    assert_eq!(stage.once().status.code(), Some(0));
    assert_eq!(server.asked().len(), 0);
    assert!(!stage.path("env/generation").exists());
}

#[test]
fn no_header_no_query_and_no_answer_is_seen_anywhere() {
    let server = Server::start();
    let headers = "headers: {Authorization: \"{dir}/token\", X-Bad: \"{dir}/bad\"}";
    let mut stage = stage(&[
        &server.action(&format!("name: well, headers: {{Authorization: \"{{dir}}/token\"}}, {QUICK}")),
        &server.action(&format!("name: badly, {headers}, {QUICK}")),
    ]);
    stage.env("RUST_LOG", "trace");
    stage.write("token", "Bearer canary-header-2d61\n");
    stage.write("bad", "canary-bad-header-1c\u{1}x\n");
    stage.aws.put("prod/a", "canary-value-77aa");
    let daemon = canary::run(&stage);
    daemon.until_ready();
    server.answers(&["401 canary-of-the-reason"]);
    change(&stage, &daemon, "canary-value-88bb");
    until_message(&stage, "answered 401; the files of headers");
    change(&stage, &daemon, "canary-value-99cc");
    until("success", || reloads(&daemon, "ok") == 1.0);
    assert!(server.asked()[0].contains("canary-header-2d61"));
    until("the status", || {
        stage.status()["reload"][1]["message"].as_str().is_some_and(|text| text.contains("not legal in a header"))
    });
    let seen = canary::seen(&stage, &daemon);
    assert!(seen.contains("answered 401; the files of headers"), "{seen}");
    for word in ["canary-header", "canary-bad", "canary-of", "canary-value", "query-4f"] {
        assert!(!seen.contains(word), "{word} in:\n{seen}");
    }
}

//! Virtual keys on their way up: how long one takes beside the bare AWS SDK's call, how many go in a second beside boto3, and
//! how much of a given rate is used. `cargo bench --bench push`; with `-- --assert` a missed goal is a failure.
//!
//! As in `start.rs`, contenders run in turn in the same run, and keytide is the binary that `KEYTIDE_RELEASE_BINARY` names,
//! boto3 that of `KEYTIDE_PYTHON`. The emulator has a thread and a runtime of its own in this process, which knows its counts
//! and times; keytide and boto3 are processes beside it, and the bare SDK runs where otherwise nothing runs.

#![expect(clippy::print_stdout, reason = "a table, for people")]
#![expect(clippy::disallowed_methods, reason = "a program of its own: it reads its environment, the clock, and sleeps")]

mod shared;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use aws_sdk_secretsmanager::{
    Client,
    config::{self, Credentials},
};
use keytide_emulator::{Emulator, User};
use shared::{Process, Result, attempts, median, sdk, verdict};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Odd, so that there is one in the middle.
const PAIRS: usize = 201;
/// Before each contender: whoever is measured was idle.
const PAUSE: Duration = Duration::from_millis(50);
const MOST_MILLISECONDS_MORE: f64 = 5.0;

const ROUNDS: usize = 3;
const ENTRIES: u32 = 10_000;
/// A loop is as long as it is: time per call is what counts.
const BOTO3_CALLS: u32 = 1_000;
const LEAST_TIMES_BOTO3: f64 = 5.0;

/// Writes a second.
const RATE: u16 = 50;
const RATED_ENTRIES: u16 = 500;
const LEAST_OF_RATE: f64 = 0.98;
/// Beyond it the limit would be none; the clock of requests has milliseconds.
const MOST_OF_RATE: f64 = 1.01;

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often a file is looked at that shall disappear: below what is measured, and no burden.
const GLANCE: Duration = Duration::from_micros(50);

/// keytide with a spool, and an AWS for it.
struct Daemon {
    aws: Emulator,
    directory: TempDir,
    /// Ended before its directory goes.
    process: Option<Process>,
}

fn main() -> ExitCode {
    attempts(std::env::args_os().any(|argument| argument == "--assert"), measure)
}

/// Runs everything, prints the table, and says whether each goal was reached.
fn measure() -> Result<bool> {
    let mut reached = latency()?;
    reached &= throughput()?;
    reached &= used_rate()?;
    Ok(reached)
}

/// One file into the spool of an idle daemon, and one call of the SDK, in turn.
fn latency() -> Result<bool> {
    let daemon = Daemon::start("none")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = client(&daemon.aws);
    call(&runtime, &client, 0)?;
    daemon.aws.clear_requests();
    let (mut keytide, mut bare) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let n = u32::try_from(pair)? + 1;
        // Nobody always follows the other one.
        for turn in 0..2 {
            thread::sleep(PAUSE);
            if (pair + turn) % 2 == 0 {
                keytide.push(milliseconds(daemon.store(n)?));
            } else {
                bare.push(milliseconds(call(&runtime, &client, n)?));
            }
        }
    }
    let calls = daemon.aws.requests();
    if calls.len() != 2 * PAIRS || calls.iter().any(|call| call.action != "CreateSecret" || call.outcome != "200") {
        return Err(format!("a new key shall be one CreateSecret; {} calls: {calls:?}", calls.len()).into());
    }
    println!("\nFrom the drop of a file to AWS's confirmation, keytide idle, {PAIRS} pairs in turn\n");
    println!("  {:<44} {:>9} {:>9} {:>9}", "", "median", "fastest", "slowest");
    let more = median(keytide.iter().zip(&bare).map(|(keytide, bare)| keytide - bare).collect());
    for (name, times) in [("keytide, until the file is gone", keytide), ("bare SDK, CreateSecret", bare)] {
        let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
        let slowest = times.iter().copied().fold(0.0, f64::max);
        println!("  {name:<44} {:>6.2} ms {fastest:>6.2} ms {slowest:>6.2} ms", median(times));
    }
    println!();
    let goal = "at most 5";
    Ok(verdict("keytide - bare SDK, pair by pair, in ms", more, more <= MOST_MILLISECONDS_MORE, goal))
}

/// A spool full of different secrets, and boto3 in a loop, in turn.
fn throughput() -> Result<bool> {
    println!(
        "\nNew secrets one after the other: {ENTRIES} files, until the spool is empty; boto3 {BOTO3_CALLS} times in a loop, \
         without its start\n"
    );
    let Some(python) = std::env::var_os("KEYTIDE_PYTHON") else {
        println!(
            "  boto3 was NOT measured: KEYTIDE_PYTHON must name a Python that has boto3 (`./tests/run bench` makes one)"
        );
        return Ok(false);
    };
    println!("  {:<44} {:>9} {:>9} {:>9}", "per secret, in µs", "median", "fastest", "slowest");
    let (mut keytide, mut boto3) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        keytide.push(full_spool()?);
        boto3.push(boto3_loop(&python)?);
    }
    let ratio = median(boto3.iter().zip(&keytide).map(|(boto3, keytide)| boto3 / keytide).collect());
    for (name, times) in [("keytide", keytide), ("boto3", boto3)] {
        let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
        let slowest = times.iter().copied().fold(0.0, f64::max);
        println!("  {name:<44} {:>9.0} {fastest:>9.0} {slowest:>9.0}", median(times));
    }
    println!();
    Ok(verdict("boto3 / keytide, per secret", ratio, ratio >= LEAST_TIMES_BOTO3, "at least 5"))
}

/// Microseconds for each entry of a full spool.
fn full_spool() -> Result<f64> {
    let daemon = Daemon::start("none")?;
    daemon.aws.set_recording(false);
    daemon.aws.clear_requests();
    let prepared = daemon.prepare(ENTRIES)?;
    let began = Instant::now();
    for file in &prepared {
        fs::rename(daemon.staging().join(file), daemon.spool().join(file))?;
    }
    daemon.until(|| daemon.is_empty(ENTRIES))?;
    let time = began.elapsed();
    let (calls, secrets) = (daemon.aws.count("CreateSecret"), daemon.aws.names().len());
    // One more secret: the first, before the time began.
    if calls != usize::try_from(ENTRIES)? || secrets != calls + 1 {
        return Err(format!("{ENTRIES} entries were {calls} calls and {secrets} secrets").into());
    }
    Ok(milliseconds(time) * 1000.0 / f64::from(ENTRIES))
}

/// Microseconds for each call of a loop in Python, by its own clock.
fn boto3_loop(python: &OsString) -> Result<f64> {
    let aws = Emulator::start()?;
    aws.set_recording(false);
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/push.py")).arg(BOTO3_CALLS.to_string());
    let output = connect(&mut command, &aws).stderr(Stdio::inherit()).output()?;
    if !output.status.success() || aws.names().len() != usize::try_from(BOTO3_CALLS)? + 1 {
        return Err(format!("boto3 stored {} secrets, and ended with {}", aws.names().len(), output.status).into());
    }
    let seconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(seconds * 1e6 / f64::from(BOTO3_CALLS))
}

/// How much of a rate is used, after those writes that the bucket held from the start.
fn used_rate() -> Result<bool> {
    let daemon = Daemon::start(&RATE.to_string())?;
    // The bucket is full again.
    thread::sleep(Duration::from_secs(1));
    daemon.aws.clear_requests();
    for file in daemon.prepare(RATED_ENTRIES.into())? {
        fs::rename(daemon.staging().join(&file), daemon.spool().join(&file))?;
    }
    daemon.until(|| daemon.is_empty(RATED_ENTRIES.into()))?;
    let times: Vec<i64> = daemon.aws.requests().iter().map(|request| request.at_ms).collect();
    if times.len() != usize::from(RATED_ENTRIES) {
        return Err(format!("{RATED_ENTRIES} entries were {} calls", times.len()).into());
    }
    let steady = times.get(usize::from(RATE)..).and_then(|steady| Some(steady.last()? - steady.first()?));
    let steady = f64::from(u32::try_from(steady.ok_or("nothing was steady")?)?) / 1000.0;
    // From the first to the last there is one interval fewer than there are writes.
    let per_second = f64::from(RATED_ENTRIES - RATE - 1) / steady;
    let used = per_second / f64::from(RATE);
    println!("\n`rate: {RATE}`, {RATED_ENTRIES} files, without the first {RATE}: {per_second:.2} writes a second\n");
    let reached = (LEAST_OF_RATE..=MOST_OF_RATE).contains(&used);
    Ok(verdict("used of the rate", used, reached, "at least 0.98, and no more than the rate"))
}

fn client(aws: &Emulator) -> Client {
    let User { access_key_id, secret_access_key, .. } = User::default();
    let credentials = Credentials::new(access_key_id, secret_access_key, None, None, "bench");
    let base = sdk("us-east-1".to_owned(), aws.url());
    Client::from_conf(config::Builder::from(&base).credentials_provider(credentials).build())
}

/// What keytide does for an entry, by the SDK alone: how long it takes.
fn call(runtime: &Runtime, client: &Client, n: u32) -> Result<Duration> {
    let began = Instant::now();
    runtime.block_on(client.create_secret().name(format!("bare/key-{n:05}")).secret_string(value(n)).send())?;
    Ok(began.elapsed())
}

fn connect<'a>(command: &'a mut Command, aws: &Emulator) -> &'a mut Command {
    let User { access_key_id, secret_access_key, .. } = User::default();
    command.env_clear().stdin(Stdio::null());
    command.env("AWS_ENDPOINT_URL", aws.url()).env("AWS_DEFAULT_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", access_key_id).env("AWS_SECRET_ACCESS_KEY", secret_access_key)
}

fn value(n: u32) -> String {
    format!("sk-{n:045}")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

// === impl Daemon ===

impl Daemon {
    /// Starts one that may write so often, and waits until it has stored something.
    fn start(rate: &str) -> Result<Self> {
        let aws = Emulator::start()?;
        let directory = TempDir::with_prefix_in("keytide-bench-", "/dev/shm")?;
        let mut daemon = Self { aws, directory, process: None };
        let socket = daemon.path("admin.sock");
        let config = format!(
            "keytide:\n  aws: {{region: us-east-1}}\n  virtual_keys: {{prefix: app/, rate: {rate}, max_new_secrets_per_hour: none}}\n  \
             spool: {{directory: {}}}\n  http: {{listen: \"127.0.0.1:0\"}}\n  admin: {{socket: {}}}\n",
            daemon.spool().display(),
            socket.display()
        );
        fs::create_dir(daemon.staging())?;
        fs::write(daemon.path("keytide.yaml"), config)?;
        fs::set_permissions(daemon.path("keytide.yaml"), fs::Permissions::from_mode(0o600))?;
        let log = File::create(daemon.path("log"))?;
        let mut command = Command::new(shared::keytide()?);
        command.args(["run", "--config"]).arg(daemon.path("keytide.yaml"));
        command.stdout(log.try_clone()?).stderr(log);
        daemon.process = Some(Process(connect(&mut command, &daemon.aws).spawn()?));
        let claims = daemon.spool().join(".claimed");
        daemon.until(|| Ok(claims.is_dir()))?;
        daemon.store(0)?;
        Ok(daemon)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spool(&self) -> PathBuf {
        self.path("spool")
    }

    fn staging(&self) -> PathBuf {
        self.path("staging")
    }

    /// Writes an entry outside of the spool: its name, and the file.
    fn write(&self, n: u32) -> Result<(String, File)> {
        let name = format!("{n:020}-bench-0.json");
        let mut file = File::create(self.staging().join(&name))?;
        write!(file, "{{\"op\":\"create\",\"name\":\"app/key-{n:05}\",\"value\":\"{}\"}}", value(n))?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        Ok((name, file))
    }

    /// The names of so many entries that were written.
    fn prepare(&self, count: u32) -> Result<Vec<String>> {
        (1..=count).map(|n| Ok(self.write(n)?.0)).collect()
    }

    /// Drops an entry: how long it takes until AWS has it.
    fn store(&self, n: u32) -> Result<Duration> {
        let (name, file) = self.write(n)?;
        let began = Instant::now();
        fs::rename(self.staging().join(&name), self.spool().join(&name))?;
        while file.metadata()?.nlink() > 0 {
            if began.elapsed() > PATIENCE {
                return Err(self.failure());
            }
            thread::sleep(GLANCE);
        }
        let time = began.elapsed();
        let stored = self.aws.value(&format!("app/key-{n:05}"));
        if stored == Some(value(n)) { Ok(time) } else { Err(self.failure()) }
    }

    /// True if nothing is left of so many entries.
    fn is_empty(&self, entries: u32) -> Result<bool> {
        // Cheaper to ask than the directories.
        if self.aws.count("CreateSecret") < usize::try_from(entries)? {
            return Ok(false);
        }
        let mut names = fs::read_dir(self.spool())?.chain(fs::read_dir(self.spool().join(".claimed"))?);
        Ok(names.all(|name| name.is_ok_and(|name| !name.file_name().as_encoded_bytes().ends_with(b".json"))))
    }

    fn until(&self, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !condition()? {
            if began.elapsed() > PATIENCE {
                return Err(self.failure());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn failure(&self) -> Box<dyn std::error::Error> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        format!("keytide did not store everything; its log:\n{log}").into()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Before its directory and its AWS go.
        drop(self.process.take());
    }
}

//! From the start of a process to its first env file with 100 separate secrets: keytide beside the bare AWS SDK, with static
//! keys and with a web identity (IRSA), and beside boto3. `cargo bench --bench start`; with `-- --assert` a missed goal is a failure.
//!
//! Times of one machine mean little, so only ratios have goals, and all contenders run in turn in the same run against the
//! same emulator. Each is a process of its own, and is done when its file appears. keytide is the real release binary, named
//! by `KEYTIDE_RELEASE_BINARY`; boto3 belongs to the Python that `KEYTIDE_PYTHON` names; the bare SDK is this program again.

#![expect(clippy::print_stdout, reason = "a table, for people")]
#![expect(clippy::disallowed_methods, reason = "a program of its own: it reads its environment, the clock, and sleeps")]

mod shared;

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use aws_sdk_secretsmanager::{
    Client,
    config::{self, Credentials},
};
use aws_types::SdkConfig;
use futures_util::future::try_join_all;
use keytide_emulator::{Emulator, Role, Statement, User};
use tempfile::TempDir;

use shared::{Process, Result, attempts, median, sdk, verdict};

const SECRETS: usize = 100;
/// The most ids of one `BatchGetSecretValue`.
const BATCH: usize = 20;
/// Odd, so that there is one in the middle.
const RUNS: usize = 61;
/// The longest that one run may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How this program is called when it plays the part of the bare SDK.
const AS_BARE_SDK: &str = "--as-bare-sdk";
const MOST_TIMES_THE_SDK: f64 = 2.0;
const MOST_TIMES_THE_SDK_WITH_IRSA: f64 = 1.2;
const LEAST_TIMES_FASTER_THAN_BOTO3: f64 = 10.0;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Keytide,
    SdkBatch,
    SdkSingle,
    KeytideIrsa,
    SdkIrsa,
    Boto3,
}

/// What was measured of one of them.
#[derive(Debug, Default)]
struct Runs {
    milliseconds: Vec<f64>,
    calls: Vec<Calls>,
}

/// How many calls one run made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Calls {
    sts: usize,
    batches: usize,
    singles: usize,
}

struct Bench {
    aws: Emulator,
    directory: TempDir,
    keytide: PathBuf,
    python: Option<OsString>,
    role: String,
    token: PathBuf,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|argument| argument == AS_BARE_SDK).is_some() {
        let arguments: Vec<OsString> = arguments.collect();
        return match bare_sdk(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("the bare SDK failed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    attempts(arguments.any(|argument| argument == "--assert"), measure)
}

/// Runs everything, prints the table, and says whether each goal was reached.
fn measure() -> Result<bool> {
    let bench = Bench::new()?;
    let mut contenders =
        vec![Contender::Keytide, Contender::SdkBatch, Contender::SdkSingle, Contender::KeytideIrsa, Contender::SdkIrsa];
    if bench.python.is_some() {
        contenders.push(Contender::Boto3);
    }
    let mut measured: Vec<(Contender, Runs)> = contenders.iter().map(|one| (*one, Runs::default())).collect();
    // Once for nothing: files come from the disk, and Python compiles its modules.
    for contender in &contenders {
        bench.run(*contender, "warm-up")?;
    }
    for run in 0..RUNS {
        // Nobody always follows the same one.
        contenders.rotate_left(1);
        for contender in &contenders {
            let (time, calls) = bench.run(*contender, &run.to_string())?;
            if let Some((_, runs)) = measured.iter_mut().find(|(one, _)| one == contender) {
                runs.milliseconds.push(time.as_secs_f64() * 1000.0);
                runs.calls.push(calls);
            }
        }
    }
    println!(
        "\nFrom the start to the first env file: {SECRETS} separate secrets on the emulator, {RUNS} runs in turn\n"
    );
    println!("  {:<44} {:>9} {:>9} {:>9}   calls", "", "median", "fastest", "slowest");
    let irsa = paired(&measured, Contender::KeytideIrsa, Contender::SdkIrsa);
    for (contender, runs) in &mut measured {
        runs.milliseconds.sort_by(f64::total_cmp);
        let (first, last) = (runs.milliseconds.first(), runs.milliseconds.last());
        let (fastest, slowest) = (first.copied().unwrap_or_default(), last.copied().unwrap_or_default());
        let (median, calls) = (runs.median(), runs.calls()?);
        println!("  {:<44} {median:>6.1} ms {fastest:>6.1} ms {slowest:>6.1} ms   {calls}", contender.name());
    }
    let of = |wanted| measured.iter().find(|(one, _)| *one == wanted).map(|(_, runs)| runs.median());
    let keytide = of(Contender::Keytide).unwrap_or(f64::NAN);
    println!();
    let mut reached = true;
    let batch = keytide / of(Contender::SdkBatch).unwrap_or(f64::NAN);
    reached &= verdict("keytide / bare SDK, the same calls", batch, batch < MOST_TIMES_THE_SDK, "under 2");
    let single = keytide / of(Contender::SdkSingle).unwrap_or(f64::NAN);
    println!("  {:<44} {single:>6.2}      no goal", "keytide / bare SDK, one call a secret");
    let goal = "at most 1.2";
    reached &=
        verdict("keytide / bare SDK, with IRSA, the same calls", irsa, irsa <= MOST_TIMES_THE_SDK_WITH_IRSA, goal);
    if let Some(boto3) = of(Contender::Boto3) {
        let ratio = boto3 / keytide;
        reached &= verdict("boto3 / keytide", ratio, ratio >= LEAST_TIMES_FASTER_THAN_BOTO3, "at least 10");
    } else {
        println!(
            "  boto3 was NOT measured: KEYTIDE_PYTHON must name a Python that has boto3 (`./tests/run bench` makes one)"
        );
        reached = false;
    }
    Ok(reached)
}

/// The median of the ratios of two contenders, run by run: what slows the machine down for a while slows down both.
fn paired(measured: &[(Contender, Runs)], one: Contender, other: Contender) -> f64 {
    let times =
        |wanted| measured.iter().filter(move |(who, _)| *who == wanted).flat_map(|(_, runs)| &runs.milliseconds);
    median(times(one).zip(times(other)).map(|(one, other)| one / other).collect())
}

// === impl Contender ===

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Keytide => "keytide",
            Self::SdkBatch => "bare SDK, the same calls in parallel",
            Self::SdkSingle => "bare SDK, one call a secret in parallel",
            Self::KeytideIrsa => "keytide, IRSA",
            Self::SdkIrsa => "bare SDK, IRSA, the same calls in parallel",
            Self::Boto3 => "boto3, one by one",
        }
    }
}

// === impl Runs ===

impl Runs {
    fn median(&self) -> f64 {
        self.milliseconds.get(self.milliseconds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The calls of each run, which must be the same.
    fn calls(&self) -> Result<String> {
        let first = self.calls.first().copied().unwrap_or_default();
        if self.calls.iter().any(|calls| *calls != first) {
            return Err(format!("runs made different numbers of calls: {:?}", self.calls).into());
        }
        let Calls { sts, batches, singles } = first;
        let named = [(sts, "AssumeRoleWithWebIdentity"), (batches, "BatchGetSecretValue"), (singles, "GetSecretValue")];
        let named = named.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}"));
        Ok(named.collect::<Vec<_>>().join(", "))
    }
}

// === impl Bench ===

impl Bench {
    fn new() -> Result<Self> {
        let keytide = shared::keytide()?;
        let python = std::env::var_os("KEYTIDE_PYTHON");
        let directory = TempDir::with_prefix_in("keytide-bench-", "/dev/shm")?;
        let aws = Emulator::start()?;
        for n in 0..SECRETS {
            aws.put(&name(n), &format!("sk-{n:045}"));
        }
        let role = aws.add_role(Role::new("keytide").trusts_web_identity().allow(Statement::everything()));
        let token = directory.path().join("token");
        // {"alg":"none"}, {"sub":"pod"}, and something for a signature.
        fs::write(&token, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJwb2QifQ.c2ln")?;
        Ok(Self { aws, directory, keytide: keytide.into(), python, role, token })
    }

    /// One run: how long it took until the file was there, and how many batch and single calls it made.
    fn run(&self, contender: Contender, label: &str) -> Result<(Duration, Calls)> {
        let directory = self.directory.path().join(format!("{contender:?}-{label}"));
        fs::create_dir(&directory)?;
        let target = directory.join("keys.env");
        let mut command = self.command(contender, &directory, &target)?;
        let log = fs::File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.aws.clear_requests();
        let began = Instant::now();
        let mut process = Process(command.spawn()?);
        while !target.exists() {
            let ended = process.0.try_wait()?.is_some_and(|status| !status.success());
            if ended || began.elapsed() > PATIENCE {
                let log = fs::read_to_string(directory.join("log"))?;
                return Err(format!("{} did not write its file:\n{log}", contender.name()).into());
            }
            thread::sleep(Duration::from_micros(100));
        }
        let time = began.elapsed();
        drop(process);
        let lines = fs::read_to_string(&target)?.lines().count();
        if lines != SECRETS {
            return Err(format!("{} wrote {lines} keys", contender.name()).into());
        }
        let [sts, batches, singles] =
            ["AssumeRoleWithWebIdentity", "BatchGetSecretValue", "GetSecretValue"].map(|action| self.aws.count(action));
        Ok((time, Calls { sts, batches, singles }))
    }

    fn command(&self, contender: Contender, directory: &Path, target: &Path) -> Result<Command> {
        let mut command = match contender {
            Contender::Keytide | Contender::KeytideIrsa => {
                let config = directory.join("keytide.yaml");
                fs::write(&config, configuration(directory, target)?)?;
                fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
                let mut command = Command::new(&self.keytide);
                command.args([OsStr::new("run"), OsStr::new("--config"), config.as_os_str()]);
                command
            }
            Contender::SdkBatch | Contender::SdkSingle | Contender::SdkIrsa => {
                let way = if contender == Contender::SdkSingle { "single" } else { "batch" };
                let mut command = Command::new(std::env::current_exe()?);
                command.args([OsStr::new(AS_BARE_SDK), OsStr::new(way), target.as_os_str()]);
                command
            }
            Contender::Boto3 => {
                let mut command = Command::new(self.python.as_deref().unwrap_or(OsStr::new("python3")));
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/start.py");
                command.args([script.as_os_str(), target.as_os_str()]).arg(SECRETS.to_string());
                command
            }
        };
        let User { access_key_id, secret_access_key, .. } = User::default();
        command.env_clear().env("AWS_ENDPOINT_URL", self.aws.url()).env("AWS_DEFAULT_REGION", "us-east-1");
        if matches!(contender, Contender::KeytideIrsa | Contender::SdkIrsa) {
            command.env("AWS_ROLE_ARN", &self.role).env("AWS_WEB_IDENTITY_TOKEN_FILE", &self.token);
        } else {
            command.env("AWS_ACCESS_KEY_ID", access_key_id).env("AWS_SECRET_ACCESS_KEY", secret_access_key);
        }
        Ok(command)
    }
}

fn name(n: usize) -> String {
    format!("app/key-{n:03}")
}

fn configuration(directory: &Path, target: &Path) -> Result<String> {
    let mut text = String::from("keytide:\n  aws: {region: us-east-1}\n  keys:\n");
    for n in 0..SECRETS {
        writeln!(text, "    - {{name: KEY_{n:03}, secret: {}}}", name(n))?;
    }
    let (target, socket) = (target.display(), directory.join("admin.sock"));
    writeln!(text, "  outputs:\n    - env_file: {{path: {target}, format: posix}}")?;
    writeln!(text, "  http: {{listen: \"127.0.0.1:0\"}}\n  admin: {{socket: {}}}", socket.display())?;
    Ok(text)
}

/// What a program does that does nothing else: the SDK as it comes, all calls at once, one file.
fn bare_sdk(arguments: &[OsString]) -> Result<()> {
    let [way, target] = arguments else { return Err("expected a way and a file".into()) };
    let target = Path::new(target);
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let base = sdk(variable("AWS_DEFAULT_REGION")?, variable("AWS_ENDPOINT_URL")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let names: Vec<String> = (0..SECRETS).map(name).collect();
    let values = runtime.block_on(async {
        let credentials = if let Ok(role) = variable("AWS_ROLE_ARN") {
            exchange(&base, role, &variable("AWS_WEB_IDENTITY_TOKEN_FILE")?).await?
        } else {
            let (key, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
            Credentials::new(key, secret, None, None, "bench")
        };
        let config = config::Builder::from(&base).credentials_provider(credentials).build();
        let client = Client::from_conf(config);
        if way == "batch" { in_batches(&client, &names).await } else { one_by_one(&client, &names).await }
    })?;
    let mut text = String::new();
    for (n, value) in values.iter().enumerate() {
        writeln!(text, "KEY_{n:03}='{value}'")?;
    }
    let new = target.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, target)?;
    Ok(())
}

/// The token of a pod for a session of its role.
async fn exchange(base: &SdkConfig, role: String, token: &str) -> Result<Credentials> {
    let call = aws_sdk_sts::Client::new(base).assume_role_with_web_identity();
    let call = call.role_arn(role).role_session_name("bench").web_identity_token(fs::read_to_string(token)?);
    let answer = call.send().await?.credentials.ok_or("STS answered no credentials")?;
    let (key, secret, token) = (answer.access_key_id, answer.secret_access_key, answer.session_token);
    Ok(Credentials::new(key, secret, Some(token), None, "bench"))
}

async fn in_batches(client: &Client, names: &[String]) -> Result<Vec<String>> {
    let calls =
        names.chunks(BATCH).map(|ids| client.batch_get_secret_value().set_secret_id_list(Some(ids.to_vec())).send());
    let answers = try_join_all(calls).await?;
    let entries = answers.into_iter().flat_map(|answer| answer.secret_values.unwrap_or_default());
    Ok(entries.filter_map(|entry| entry.secret_string).collect())
}

async fn one_by_one(client: &Client, names: &[String]) -> Result<Vec<String>> {
    let answers = try_join_all(names.iter().map(|name| client.get_secret_value().secret_id(name).send())).await?;
    Ok(answers.into_iter().filter_map(|answer| answer.secret_string).collect())
}

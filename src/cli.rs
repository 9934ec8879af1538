//! The command line: what people type, what they read, and the exit codes.

mod check;
mod exec;
mod install;
mod policy;
mod push;
mod role;
mod run;
mod spool;
mod status;

use std::{
    ffi::OsString,
    future::Future,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    config::{self, Sources},
    domain::{
        identity::{Account, RoleArn},
        mapping::Format,
        virtual_key::{Operation, Token},
    },
    health::IdentityStatus,
    telemetry::{self, Level},
};

/// How a command ended. Stable: scripts may rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done, or stopped on request.
    Done,
    /// 1: failed while running, or `check` found that `run` would.
    Failed,
    /// 64: bad arguments or configuration (`EX_USAGE` of `sysexits.h`).
    Usage,
    /// As the command of `exec` ended; 127 and 126 as shells say that it could not be started.
    Ended(u8),
}

/// keytide keeps the keys of AWS Secrets Manager fresh in a file that your application can trust.
#[derive(Debug, Parser)]
#[command(name = "keytide", version, max_term_width = 100)]
pub struct Cli {
    /// How much is logged, to standard error
    #[arg(long, global = true, value_enum, default_value_t)]
    log_level: Level,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the keys fresh until told to stop
    Run(RunArgs),
    /// Load and validate the configuration exactly as `run` does
    Check(CheckArgs),
    /// Print the smallest IAM policies, and trust policies, that the configuration needs
    Policy(PolicyArgs),
    /// Show each key's state, version and age, and each output; never a value
    Status(StatusArgs),
    /// Ask the running daemon for a refresh now, wait for it, and say what changed
    Refresh(RefreshArgs),
    /// Start a command with the variables of an env file, and stay beside it
    Exec(ExecArgs),
    /// Copy this program to a directory, where other containers can start it
    Install {
        /// The directory, in a volume that they mount; the copy is DIR/keytide
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Leave one entry in the spool; its value comes from standard input
    Push(PushArgs),
    /// Show, retry or discard the entries of the spool; never a value
    Spool(SpoolArgs),
    /// Print a JSON Schema
    Schema {
        /// Of the configuration, or of an entry of the spool
        #[arg(value_enum, default_value_t)]
        of: SchemaOf,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration file (YAML): keytide's block, `LiteLLM`'s settings, or both
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// LiteLLM's own config.yaml, where that is a separate file
    #[arg(long, value_name = "FILE")]
    litellm_config: Option<PathBuf>,
}

/// Where Kubernetes is.
#[derive(Debug, Args)]
struct ClusterArgs {
    /// A kubeconfig, whose programs may be run for credentials; default: KUBECONFIG, or the pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Refresh until complete and drain the spool, then end
    #[arg(long)]
    once: bool,
    /// The time limit of --once, such as 60s
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s", requires = "once")]
    timeout: Duration,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// LiteLLM reads the same file: say what of it LiteLLM would do itself
    #[arg(long)]
    shared_with_litellm: bool,
    /// How many pods will use this configuration, for the calls a day
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    replicas: u32,
    /// Ask AWS: who is this, and may it read each secret? Nothing is changed; outputs are not tried
    #[arg(long)]
    online: bool,
    /// Ask IAM as well about what cannot be tried: writes (iam:SimulatePrincipalPolicy)
    #[arg(long, requires = "online")]
    simulate: bool,
    /// How the result is shown
    #[arg(long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, Args)]
struct PolicyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Instead of IAM's documents, the Role that Kubernetes needs, for `kubectl apply`
    #[arg(long, conflicts_with_all = ["account", "identity", "base_role", "oidc_provider", "service_account", "kms_keys",
        "document", "of"])]
    kubernetes: bool,
    /// The account of the pod's own role, and of the secrets where no role of the configuration says it
    #[arg(long, value_name = "ID", value_parser = account)]
    account: Option<Account>,
    /// How the pod gets its credentials; by default as the environment says, else so that both ways of EKS work
    #[arg(long, value_enum)]
    identity: Option<policy::Way>,
    /// The role of the pod, where roles that the configuration names are assumed from it
    #[arg(long, value_name = "ARN", value_parser = role)]
    base_role: Option<RoleArn>,
    /// The OIDC provider of the cluster (aws eks describe-cluster), for IRSA
    #[arg(long, value_name = "URL", value_parser = oidc_provider)]
    oidc_provider: Option<String>,
    /// The service account of the pod, for IRSA
    #[arg(long, value_name = "NAMESPACE:NAME", value_parser = service_account)]
    service_account: Option<String>,
    /// The ARN of a KMS key that secrets are encrypted with, where that is not AWS's own; may be repeated
    #[arg(long = "kms-key", value_name = "ARN", value_parser = kms_key)]
    kms_keys: Vec<String>,
    /// Only this document, bare, for `aws iam --policy-document file://…`
    #[arg(long, value_enum)]
    document: Option<policy::Kind>,
    /// Only of this identity: the ARN of a role, or `base` for the one that a chain of roles begins with
    #[arg(long, value_name = "ARN")]
    of: Option<String>,
    /// How the documents are shown
    #[arg(long, value_enum, default_value_t)]
    output: Form,
}

/// Where the running daemon listens.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// The daemon's admin.socket
    #[arg(long, value_name = "PATH", default_value = config::ADMIN_SOCKET)]
    socket: PathBuf,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Show it again every two seconds
    #[arg(long, conflicts_with = "output")]
    watch: bool,
    /// How it is shown
    #[arg(long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, Args)]
struct RefreshArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Remove the keys whose members are gone, also if they are most of them
    #[arg(long)]
    accept_removals: bool,
    /// How the report is shown
    #[arg(long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, Args)]
struct ExecArgs {
    /// The env file that keytide writes; may be repeated: a variable of a later file counts
    #[arg(long = "env-file", value_name = "FILE", default_value = config::ENV_FILE)]
    env_files: Vec<PathBuf>,
    /// The format of the env files; auto tells them by their content, but for docker
    #[arg(long, value_enum, default_value_t)]
    format: EnvFormat,
    /// How long the first env file is waited for, such as 60s; 0s: not at all
    #[arg(long, value_name = "DURATION", value_parser = any_duration, default_value = "60s")]
    wait: Duration,
    /// What is done when a variable changes: ignore, restart, or a signal for the command, such as HUP
    #[arg(long, value_name = "ACTION", value_parser = on_change, default_value = "ignore")]
    on_change: exec::OnChange,
    /// How long a command that is started again has after SIGTERM, before SIGKILL
    #[arg(long, value_name = "DURATION", value_parser = any_duration, default_value = "30s")]
    stop_timeout: Duration,
    /// The process for which this one is to become the command
    #[arg(long, value_name = "PID", hide = true)]
    keeper: Option<i32>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct PushArgs {
    /// The name of the secret, with the prefix
    name: String,
    /// What is done with it
    #[arg(long, value_parser = operation, value_name = "OPERATION", default_value = "create")]
    op: Operation,
    /// NAME and --new-name are aliases: keytide puts the prefix before them
    #[arg(long)]
    alias: bool,
    /// The new name, for rotate and rename
    #[arg(long, value_name = "NAME")]
    new_name: Option<String>,
    /// The recovery window of delete, 7 to 30
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u8).range(7..=30))]
    recovery_window_in_days: Option<u8>,
    /// Wait until AWS confirmed the entry, or it failed; at most so long
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, default_missing_value = "60s")]
    wait: Option<Duration>,
    #[command(flatten)]
    spool: SpoolDirectory,
}

#[derive(Debug, Args)]
struct SpoolDirectory {
    /// The drop directory: keytide.spool.directory
    #[arg(long, value_name = "DIR", default_value = config::SPOOL_DIRECTORY)]
    spool: PathBuf,
}

#[derive(Debug, Args)]
struct SpoolArgs {
    #[command(subcommand)]
    action: SpoolAction,
}

#[derive(Debug, Subcommand)]
enum SpoolAction {
    /// Show the entries that wait or failed
    List {
        #[command(flatten)]
        spool: SpoolDirectory,
        /// How they are shown
        #[arg(long, value_enum, default_value_t)]
        output: Form,
    },
    /// Try failed entries again
    Retry {
        #[command(flatten)]
        which: WhichEntries,
        /// Also where that overwrites something newer
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        spool: SpoolDirectory,
    },
    /// Remove failed entries, with their values
    Discard {
        #[command(flatten)]
        which: WhichEntries,
        #[command(flatten)]
        spool: SpoolDirectory,
    },
}

#[derive(Debug, Args)]
#[group(required = true)]
struct WhichEntries {
    /// The entries, as `keytide spool list` names them
    #[arg(value_name = "ENTRY", value_parser = token)]
    entries: Vec<Token>,
    /// All failed entries
    #[arg(long, conflicts_with = "entries")]
    all: bool,
}

/// What a schema describes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// The configuration.
    #[default]
    Config,
    /// An entry of the spool.
    Entry,
}

/// The format of an env file on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum EnvFormat {
    /// As the content says: each but docker.
    #[default]
    Auto,
    Dotenv,
    Posix,
    Docker,
    Kubernetes,
    Json,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

const DURATION: &str = "expected a duration such as 60s or 5m";

/// Parses the arguments, runs the command, and says how it ended.
pub fn main(arguments: impl Iterator<Item = OsString>) -> Exit {
    let Cli { log_level, command } = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    telemetry::start(log_level);
    match command {
        Command::Run(args) => {
            let once = args.once.then_some(args.timeout);
            run::run(&args.config.sources(), args.cluster.kubeconfig.as_deref(), once)
        }
        Command::Check(CheckArgs { config, cluster, shared_with_litellm, replicas, online, simulate, output }) => {
            let asked = check::Asked { shared_with_litellm, replicas, online, simulate };
            check::check(&config.sources(), cluster.kubeconfig.as_deref(), asked, output)
        }
        Command::Policy(PolicyArgs { config, kubernetes: true, output, .. }) => role::role(&config.sources(), output),
        Command::Policy(PolicyArgs {
            config,
            kubernetes: _,
            account,
            identity,
            base_role,
            oidc_provider,
            service_account,
            kms_keys,
            document,
            of,
            output,
        }) => {
            let options = policy::Options {
                account,
                identity,
                base_role,
                oidc_provider,
                service_account,
                kms_keys,
                document,
                of,
            };
            policy::policy(&config.sources(), &options, output)
        }
        Command::Status(args) => status::status(&args.socket.socket, args.watch, args.output),
        Command::Refresh(args) => status::refresh(&args.socket.socket, args.accept_removals, args.output),
        Command::Exec(ExecArgs { env_files: files, format, wait, on_change, stop_timeout, keeper, command }) => {
            let format = format.format();
            exec::exec(&exec::Asked { files, format, wait, on_change, stop_timeout, command, keeper })
        }
        Command::Install { directory } => install::install(&directory),
        Command::Push(PushArgs { name, op, alias, new_name, recovery_window_in_days, wait, spool }) => {
            let renames = matches!(op, Operation::Rotate | Operation::Rename);
            let wrong = match (op, new_name.is_some(), recovery_window_in_days.is_some()) {
                (Operation::Rename, false, _) => Some("rename needs --new-name"),
                (_, true, _) if !renames => Some("--new-name is for rotate and rename"),
                (Operation::Create | Operation::Rotate | Operation::Rename, _, true) => {
                    Some("--recovery-window-in-days is for delete")
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                complain(wrong);
                return Exit::Usage;
            }
            let asked = push::Asked {
                operation: op,
                name: &name,
                alias,
                new_name: new_name.as_deref(),
                recovery_window_in_days,
                wait,
            };
            push::push(&spool.spool, &asked)
        }
        Command::Spool(SpoolArgs { action }) => match action {
            SpoolAction::List { spool, output } => spool::list(&spool.spool, output),
            SpoolAction::Retry { which, force, spool } => spool::retry(&spool.spool, &which.which(), force),
            SpoolAction::Discard { which, spool } => spool::discard(&spool.spool, &which.which()),
        },
        Command::Schema { of: SchemaOf::Config } => print(&format!("{:#}\n", config::schema())),
        Command::Schema { of: SchemaOf::Entry } => print(&format!("{:#}\n", crate::spool::entry::schema())),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keytide", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

// === impl Exit ===

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
            Exit::Usage => Self::from(64),
            Exit::Ended(code) => Self::from(code),
        }
    }
}

// === impl ConfigArgs ===

impl ConfigArgs {
    fn sources(&self) -> Sources {
        Sources { config: self.config.clone(), litellm_config: self.litellm_config.clone() }
    }
}

// === impl EnvFormat ===

impl EnvFormat {
    fn format(self) -> Option<Format> {
        match self {
            Self::Auto => None,
            Self::Dotenv => Some(Format::Dotenv),
            Self::Posix => Some(Format::Posix),
            Self::Docker => Some(Format::Docker),
            Self::Kubernetes => Some(Format::Kubernetes),
            Self::Json => Some(Format::Json),
        }
    }
}

// === impl WhichEntries ===

impl WhichEntries {
    fn which(self) -> spool::Which {
        if self.all { spool::Which::All } else { spool::Which::These(self.entries) }
    }
}

/// Writes to standard output. A reader that went away, as `head` does, is no failure.
fn print(text: &str) -> Exit {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Failed,
        _ => Exit::Done,
    }
}

fn lines_of(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

/// Who keytide is, the most important first.
fn identity_lines(identity: &IdentityStatus) -> Vec<String> {
    let IdentityStatus { kind, name, roles, caller, account, expected, region, expires, token_expires, overrides } =
        identity;
    let way = std::iter::once(format!("{kind} {name}")).chain(roles.iter().map(|role| format!("then {role}")));
    let way: Vec<String> = way.collect();
    let way = way.join(", ");
    let mut lines = Vec::new();
    let expires = expires.as_deref().map(|at| format!(", until {at}")).unwrap_or_default();
    match (caller, account) {
        (Some(caller), Some(account)) => {
            lines.push(format!("{caller} in {region}{expires}"));
            lines.push(format!("account {account}, by {way}"));
        }
        _ => lines.push(format!("{way} in {region}{expires}")),
    }
    if let Some(expected) = expected {
        lines.push(format!("nobody but {expected}"));
    }
    if let Some(at) = token_expires {
        lines.push(format!("its web identity token lasts until {at}"));
    }
    lines.extend(overrides.iter().cloned());
    lines
}

/// Says on standard error why a command failed.
fn complain(message: &str) {
    drop(writeln!(io::stderr(), "keytide: {message}"));
}

/// Runs a future on the one thread of this process.
fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(future);
    // A program of a kubeconfig that does not end keeps nobody.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ended)
}

fn account(text: &str) -> Result<Account, String> {
    Account::parse(text).ok_or_else(|| "expected twelve digits".to_owned())
}

fn role(text: &str) -> Result<RoleArn, String> {
    RoleArn::parse(text).ok_or_else(|| RoleArn::EXPECTED.to_owned())
}

/// As IAM names it: without `https://`.
fn oidc_provider(text: &str) -> Result<String, String> {
    let name = text.trim_start_matches("https://").trim_end_matches('/');
    let host = name.split('/').next().unwrap_or_default();
    let legal = name.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c));
    if legal && host.contains('.') {
        Ok(name.to_owned())
    } else {
        Err("expected the URL of an OIDC provider, such as https://oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE"
            .to_owned())
    }
}

fn kms_key(text: &str) -> Result<String, String> {
    if policy::is_key_arn(text) {
        Ok(text.to_owned())
    } else {
        Err("expected the ARN of a key, such as arn:aws:kms:us-east-1:123456789012:key/…; an alias is no resource of a policy".to_owned())
    }
}

/// Names of Kubernetes (RFC 1123): no wildcard, which a trust policy would take for one.
fn service_account(text: &str) -> Result<String, String> {
    let legal = |name: &str, more: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
    };
    match text.split_once(':') {
        Some((namespace, name)) if legal(namespace, "-") && legal(name, "-.") => Ok(text.to_owned()),
        _ => Err("expected a namespace and a service account, such as my-app:keytide".to_owned()),
    }
}

fn operation(text: &str) -> Result<Operation, String> {
    Operation::parse(text).ok_or_else(|| "expected create, rotate, rename or delete".to_owned())
}

fn token(text: &str) -> Result<Token, String> {
    Token::parse(text).ok_or_else(|| "expected the id of an entry, as `keytide spool list` shows it".to_owned())
}

fn on_change(text: &str) -> Result<exec::OnChange, String> {
    match text {
        "ignore" => Ok(exec::OnChange::Ignore),
        "restart" => Ok(exec::OnChange::Restart),
        signal => config::Signal::parse(signal).map(exec::OnChange::Signal).ok_or_else(|| {
            let signals = config::Signal::ALL.map(config::Signal::label).join(", ");
            format!("expected ignore, restart, or one of the signals {signals}")
        }),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    any_duration(text).ok().filter(|duration| !duration.is_zero()).ok_or_else(|| DURATION.to_owned())
}

/// Also none at all.
fn any_duration(text: &str) -> Result<Duration, String> {
    let parsed: Option<jiff::SignedDuration> = text.parse().ok();
    // A year is as good as ever, and can be added to any time.
    let year = Duration::from_hours(365 * 24);
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .map(|duration| duration.min(year))
        .ok_or_else(|| DURATION.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}

//! The main job in one command, without an account or a cluster: `cargo run --example quickstart`.
//!
//! It starts an AWS that runs in this process (the emulator), the real daemon in a process of its own, and a small
//! application; then it rotates a key, takes AWS away, and kills the daemon. `-- --serve` leaves all of it running.

#![expect(clippy::print_stdout, reason = "it is a story, told to people")]
#![expect(clippy::disallowed_methods, reason = "a program of its own, whose threads may sleep and look at the clock")]

use std::{
    error::Error,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use keytide_emulator::Emulator;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How this program is called when it plays the part of `keytide`.
const AS_KEYTIDE: &str = "--as-keytide";
const SECRET: &str = "litellm_secrets";
/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|argument| argument == AS_KEYTIDE).is_some() {
        return keytide::cli::main(std::iter::once("keytide".into()).chain(arguments)).into();
    }
    let serve = arguments.any(|argument| argument == "--serve");
    match story(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nthe quickstart failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn story(serve: bool) -> Result<()> {
    let stage = Stage::set()?;
    let aws = &stage.aws;
    say("1  AWS Secrets Manager holds one primary secret, and there is one configuration file");
    aws.put(SECRET, r#"{"OPENAI_API_KEY": "sk-first-$(not run)", "DB_PASSWORD": "it's \"quoted\""}"#);
    show(&stage.config_text);

    say("2  `keytide run` brings every member into a file that any shell can source");
    let begun = Instant::now();
    let mut daemon = stage.daemon()?;
    stage.until("the file to appear", || stage.keys.exists())?;
    println!("   there after {} ms, with {} call to AWS", begun.elapsed().as_millis(), aws.count("GetSecretValue"));
    show(&fs::read_to_string(&stage.keys)?);
    println!("   the application sources it: OPENAI_API_KEY={}", stage.application("OPENAI_API_KEY")?);

    say("3  somebody rotates the key in AWS");
    aws.put(SECRET, r#"{"OPENAI_API_KEY": "sk-second", "DB_PASSWORD": "it's \"quoted\""}"#);
    let begun = Instant::now();
    stage.until("the new value", || stage.application("OPENAI_API_KEY").is_ok_and(|value| value == "sk-second"))?;
    println!("   the application sees sk-second after {} ms (the interval here is 1 s)", begun.elapsed().as_millis());

    say("4  AWS goes away");
    aws.set_down(true);
    stage.until("the status to say so", || stage.keytide(&["status"]).is_ok_and(|text| text.contains("stale")))?;
    println!("   the values stay: OPENAI_API_KEY={}", stage.application("OPENAI_API_KEY")?);
    println!("   readiness stays: GET /readyz answers {}", stage.get("/readyz")?.0);
    println!("   and `keytide status` says what is wrong:\n");
    show(&stage.keytide(&["status"])?);

    say("5  while AWS is away, the daemon is killed (SIGKILL), the file is deleted, and a new daemon starts");
    daemon.kill()?;
    daemon.wait()?;
    drop(daemon);
    fs::remove_file(&stage.keys)?;
    let mut daemon = stage.daemon()?;
    stage.until("the file to be back", || stage.keys.exists())?;
    println!("   it is back from the last good snapshot: OPENAI_API_KEY={}", stage.application("OPENAI_API_KEY")?);

    say("6  AWS comes back");
    aws.set_down(false);
    stage.until("every key to be fresh", || {
        stage.keytide(&["status"]).is_ok_and(|text| text.contains("fresh") && !text.contains("stale"))
    })?;
    println!("   everything is fresh again, without a restart; from /metrics:\n");
    let metrics = stage.get("/metrics")?.1;
    let of_interest = [
        "keytide_keys{",
        "keytide_aws_requests_total{",
        "keytide_output_writes_total{",
        "keytide_output_repairs_total{",
    ];
    let lines: Vec<&str> =
        metrics.lines().filter(|line| of_interest.iter().any(|name| line.starts_with(name))).collect();
    show(&lines.join("\n"));

    say("7  the application makes a key of its own; AWS goes away again; the daemon is killed while the key waits");
    aws.set_down(true);
    stage.push("app/alice", "sk-alice-1")?;
    stage.until("the key to wait", || stage.keytide(&["status"]).is_ok_and(|text| text.contains("claimed 1")))?;
    println!("   `keytide status` says so:\n");
    let status = stage.keytide(&["status"])?;
    let spool = status.lines().skip_while(|line| !line.starts_with("SPOOL")).take(2);
    show(&spool.collect::<Vec<_>>().join("\n"));
    daemon.kill()?;
    daemon.wait()?;
    drop(daemon);
    aws.set_down(false);
    let mut daemon = stage.daemon()?;
    stage.until("the key to be stored", || aws.value("app/alice").as_deref() == Some("sk-alice-1"))?;
    let versions = aws.secret("app/alice").map_or(0, |secret| secret.versions.len());
    println!("   AWS is back, and so is the daemon: app/alice is stored, in {versions} version");

    if serve {
        say("everything stays up; try these, and end it with Ctrl-C");
        let (program, socket) = (stage.program.display(), stage.socket.display());
        show(&format!(
            "printf %s sk-mine | {program} {AS_KEYTIDE} push app/mine --wait --spool {}\ncurl http://{}/metrics\n{program} {AS_KEYTIDE} status --watch --socket {socket}\n\
             {program} {AS_KEYTIDE} refresh --socket {socket}\ncat {}\n\
             curl -X PUT {}/_emulator/secrets/{SECRET} -d '{{\"SecretString\": \"{{\\\"OPENAI_API_KEY\\\": \\\"sk-yours\\\"}}\"}}'",
            stage.spool.display(),
            stage.address()?,
            stage.keys.display(),
            aws.url()
        ));
        daemon.wait()?;
    } else {
        daemon.kill()?;
        daemon.wait()?;
        say("that was keytide. `-- --serve` leaves it running; README.md says how to point it at your AWS");
    }
    Ok(())
}

/// Everything that the story plays on.
struct Stage {
    aws: Emulator,
    directory: PathBuf,
    config: PathBuf,
    config_text: String,
    keys: PathBuf,
    socket: PathBuf,
    spool: PathBuf,
    log: PathBuf,
    program: PathBuf,
}

/// The daemon's process: ended with the story, also if that fails.
struct Daemon(Child);

impl Stage {
    fn set() -> Result<Self> {
        // In memory, as in a pod, where the machine offers it.
        let memory = Path::new("/dev/shm");
        let (parent, allow_disk) =
            if memory.is_dir() { (memory.to_owned(), "") } else { (std::env::temp_dir(), ", allow_disk: true") };
        let directory = parent.join(format!("keytide-quickstart-{}", std::process::id()));
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let (keys, socket, spool) = (directory.join("keys.env"), directory.join("admin.sock"), directory.join("spool"));
        let config_text = format!(
            "keytide:\n  aws: {{region: us-east-1}}\n  primary_secret: {{name: {SECRET}}}\n  refresh: {{interval: 1s}}\n  outputs:\n    \
             - env_file: {{path: {}, format: posix{allow_disk}}}\n  virtual_keys: {{prefix: app/}}\n  spool: {{directory: \
             {}{allow_disk}}}\n  http: {{listen: \"127.0.0.1:0\"}}\n  admin: {{socket: {}}}\n",
            keys.display(),
            spool.display(),
            socket.display()
        );
        let config = directory.join("keytide.yaml");
        fs::write(&config, &config_text)?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
        let log = directory.join("keytide.log");
        let program = std::env::current_exe()?;
        Ok(Self { aws: Emulator::start()?, directory, config, config_text, keys, socket, spool, log, program })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(AS_KEYTIDE)
            .args(arguments)
            .env("AWS_ENDPOINT_URL", self.aws.url())
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
            .env_remove("AWS_SESSION_TOKEN")
            .env_remove("AWS_PROFILE")
            .stdin(Stdio::null());
        command
    }

    fn daemon(&self) -> Result<Daemon> {
        let log = fs::File::create(&self.log)?;
        let config = self.config.display().to_string();
        Ok(Daemon(self.command(&["run", "--config", &config]).stderr(log).spawn()?))
    }

    fn keytide(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.socket.display().to_string();
        let output = self.command(arguments).args(["--socket", &socket]).output()?;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout)?)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
        }
    }

    /// Leaves a key in the spool, as an application would.
    fn push(&self, name: &str, value: &str) -> Result<()> {
        let spool = self.spool.display().to_string();
        let mut child =
            self.command(&["push", name, "--spool", &spool]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        child.stdin.take().ok_or("no standard input")?.write_all(value.as_bytes())?;
        if child.wait()?.success() { Ok(()) } else { Err("keytide push failed".into()) }
    }

    /// What an application has in its environment that sources the file.
    fn application(&self, name: &str) -> Result<String> {
        let script = format!("set -eu; . \"$1\"; printf %s \"${name}\"");
        let output = Command::new("sh").args(["-c", &script, "sh"]).arg(&self.keys).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    fn address(&self) -> Result<String> {
        let log = fs::read_to_string(&self.log)?;
        let address = log.split("on http://").nth(1).and_then(|rest| rest.split(['"', ' ']).next());
        Ok(address.ok_or("the daemon did not say where it listens")?.trim().to_owned())
    }

    fn get(&self, path: &str) -> Result<(String, String)> {
        let mut stream = TcpStream::connect(self.address()?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: keytide\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        Ok((head.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned(), body.to_owned()))
    }

    fn until(&self, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            if Instant::now() > deadline {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(format!("waited for {what}; the daemon's log:\n{log}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.directory));
    }
}

impl Daemon {
    fn kill(&mut self) -> std::io::Result<()> {
        self.0.kill()
    }

    fn wait(&mut self) -> std::io::Result<()> {
        self.0.wait().map(|_| ())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn say(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}

fn show(text: &str) {
    for line in text.lines() {
        println!("   | {line}");
    }
}

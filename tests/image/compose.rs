//! deploy/compose in containers: its services under runc, with the volumes, rights and variables that it gives them, in one
//! network, where a DNS server knows their names.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Image, container::Container, printed};

/// Longer than anything takes that must happen.
const PATIENCE: Duration = Duration::from_mins(1);
/// As a kubelet writes it: a name without five dots is first looked for in the cluster's domains, which Compose has none of.
const RESOLV: &str =
    "nameserver 127.0.0.1\nsearch app.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";

/// How AWS is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aws {
    /// As the project says.
    Http,
    /// With a certificate of an authority of its own.
    Https,
    /// The same, and the image's file holds that authority.
    Trusted,
}

/// The project, running; what ends first stands first.
struct Laptop {
    services: Vec<Service>,
    _volumes: Vec<Volume>,
    _names: Process,
    network: Process,
    directory: TempDir,
    project: Value,
}

struct Service {
    name: &'static str,
    container: Container,
    process: Process,
    log: PathBuf,
}

/// Ended with this value.
struct Process(Child);

/// A file system in memory, unmounted with this value.
struct Volume(PathBuf);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

// === impl Laptop ===

impl Laptop {
    fn start(aws: Aws) -> Self {
        let text = fs::read_to_string(place("compose.yaml")).unwrap();
        // What Compose does not take for a variable.
        let project: Value = serde_saphyr::from_str(&text.replace("$$", "$")).unwrap();
        let directory = TempDir::with_prefix("keytide-compose-").unwrap();
        // Its users go through it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut network = Command::new("unshare");
        network.args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]);
        let log = directory.path().join("network");
        let network = Process(network.stdout(fs::File::create(&log).unwrap()).spawn().unwrap());
        until("a network", || fs::read_to_string(&log).unwrap() == "up\n");
        let mut names = Command::new("nsenter");
        names.arg(format!("--net=/proc/{}/ns/net", network.0.id())).arg("dnsmasq");
        names.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-hosts", "--no-resolv"]);
        names.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--address=/emulator/127.0.0.1"]);
        let names = Process(names.spawn().unwrap());
        let volumes = project["volumes"].as_object().unwrap().iter().map(|(name, volume)| {
            let path = directory.path().join("volumes").join(name);
            fs::create_dir_all(&path).unwrap();
            let option = |name: &str| volume["driver_opts"][name].as_str().unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", option("type"), "-o", option("o"), option("device")]).arg(&path);
            assert!(mount.status().unwrap().success(), "{volume}");
            Volume(path)
        });
        let volumes = volumes.collect();
        let mut laptop = Self { services: Vec::new(), _volumes: volumes, _names: names, network, directory, project };
        for name in ["emulator", "keytide", "app"] {
            laptop.start_service(name, aws);
        }
        laptop
    }

    fn start_service(&mut self, name: &'static str, aws: Aws) {
        let service = &self.project["services"][name];
        let words: Vec<&str> =
            service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let variables = service["environment"].as_object().into_iter().flatten();
        let variables: Vec<String> =
            variables.map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
        let mut container = match name {
            "keytide" => {
                let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
                Image::read("built").container(&words, &variables)
            }
            "emulator" => {
                let mut container = debian();
                let emulator = env::var("KEYTIDE_EMULATOR_BINARY").expect("./tests/run image does all");
                fs::copy(emulator, container.root().join("keytide-emulator")).unwrap();
                container.words = ["/keytide-emulator"].iter().chain(&words).map(|word| (*word).to_owned()).collect();
                container.user = [65532, 65532];
                container
            }
            _ => {
                let mut container = debian();
                container.words = ["/bin/busybox"].iter().chain(&words).map(|word| (*word).to_owned()).collect();
                let user = service["user"].as_str().unwrap().parse().unwrap();
                container.user = [user, 0];
                container.environment = vec!["PATH=/bin".to_owned()];
                container
            }
        };
        let authority = self.directory.path().join("authority");
        match name {
            "emulator" if aws != Aws::Http => {
                fs::create_dir(&authority).unwrap();
                fs::set_permissions(&authority, fs::Permissions::from_mode(0o777)).unwrap();
                container.mount(&authority, "/authority", false);
                let words = "--tls-listen 0.0.0.0:4567 --tls-name emulator --tls-ca /authority/ca.pem";
                container.words.extend(words.split(' ').map(str::to_owned));
            }
            "keytide" if aws != Aws::Http => {
                let file = authority.join("ca.pem");
                let is_whole = || fs::read_to_string(&file).is_ok_and(|text| text.ends_with("END CERTIFICATE-----\n"));
                until("the authority's certificate", is_whole);
                if aws == Aws::Trusted {
                    container.mount(&file, "/etc/ssl/certs/ca-certificates.crt", true);
                }
                container.environment.retain(|variable| !variable.starts_with("AWS_ENDPOINT_URL="));
                container.environment.push("AWS_ENDPOINT_URL=https://emulator:4567".to_owned());
            }
            _ => {}
        }
        container.read_only = service["read_only"] == true;
        container.network_of = Some(self.network.0.id());
        container.file("/etc/resolv.conf", RESOLV);
        container.file("/etc/hosts", "127.0.0.1 localhost\n");
        for volume in service["volumes"].as_array().unwrap() {
            let [source, destination, rest @ ..] = &volume.as_str().unwrap().split(':').collect::<Vec<_>>()[..] else {
                panic!("{volume}")
            };
            let source = match source.strip_prefix("./") {
                Some(file) => place(file),
                None => self.directory.path().join("volumes").join(source),
            };
            container.mount(&source, destination, rest == ["ro"]);
        }
        let log = self.directory.path().join(name);
        let file = fs::File::create(&log).unwrap();
        let mut command = container.run();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let process = Process(command.spawn().unwrap());
        self.services.push(Service { name, container, process, log });
    }

    fn service(&mut self, name: &str) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == name).unwrap()
    }

    #[track_caller]
    fn until_log(&mut self, name: &str, text: &str) {
        let log = self.service(name).log.clone();
        let so = within(|| fs::read_to_string(&log).unwrap().contains(text));
        let logs = || self.services.iter().map(|service| (service.name, fs::read_to_string(&service.log).unwrap()));
        assert!(so, "waited for {text:?} of {name}: {:#?}", logs().collect::<Vec<_>>());
    }

    fn exec(&mut self, name: &str, words: &[&str]) -> Output {
        self.service(name).container.exec(words).output().unwrap()
    }
}

/// A file of the project.
fn place(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose").join(file)
}

/// A container of Debian's busybox, and what the emulator is linked with.
fn debian() -> Container {
    let container = Container::new();
    container
        .unpack(Path::new(&env::var("KEYTIDE_BASE").expect("KEYTIDE_BASE is not set: ./tests/run image does all")));
    for name in ["mv", "sh", "sleep", "wget"] {
        std::os::unix::fs::symlink("busybox", container.root().join("bin").join(name)).unwrap();
    }
    container
}

#[track_caller]
fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(condition), "waited for {what}");
}

fn within(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(100));
    }
    true
}

#[test]
fn the_laptops_containers_bring_keys_down_and_virtual_keys_up_and_find_aws_by_its_name() {
    let mut laptop = Laptop::start(Aws::Http);
    let seed: Value = serde_json::from_str(&fs::read_to_string(place("seed.json")).unwrap()).unwrap();
    let key = seed["secrets"]["app/keys"]["OPENAI_API_KEY"].as_str().unwrap();
    laptop.until_log("app", &format!("started with an OPENAI_API_KEY of {} characters\n", key.len()));
    let read = [". /run/keytide/env/keys.env", "printf %s \"$OPENAI_API_KEY\""].join("; ");
    assert_eq!(printed(&laptop.exec("app", &["sh", "-c", &read])), key);

    // What the file's head says to type.
    let text = fs::read_to_string(place("compose.yaml")).unwrap();
    let words = text.lines().find_map(|line| line.strip_prefix("#   docker compose exec keytide ")).unwrap();
    let table = printed(&laptop.exec("keytide", &words.split(' ').collect::<Vec<_>>()));
    assert!(table.lines().any(|line| line.starts_with("OPENAI_API_KEY ") && line.contains(" fresh ")), "{table}");

    printed(&laptop.exec("keytide", &["/keytide", "check", "--config", "/etc/keytide/keytide.yaml", "--online"]));

    let drop = "cd /run/keytide/spool/in && umask 022 && echo '{\"op\":\"create\",\"alias\":\"mine\",\"value\":\"sk-mine\"}' \
                >.new && mv .new 00000001700000000000-app-1.json";
    printed(&laptop.exec("app", &["sh", "-c", drop]));
    let ask = ["wget", "-q", "-O", "-", "http://127.0.0.1:4566/_emulator/secrets/app/virtual/mine"];
    until("the virtual key", || String::from_utf8_lossy(&laptop.exec("app", &ask).stdout).contains("sk-mine"));
    let refused = laptop.exec("app", &["sh", "-c", "echo x >/run/keytide/env/x"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only file system"), "{refused:?}");

    let keytide = laptop.service("keytide");
    keytide.container.kill("TERM");
    let ended = keytide.process.0.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", fs::read_to_string(&keytide.log).unwrap());
}

#[test]
fn keytide_trusts_whom_the_images_certificates_are_of() {
    let mut laptop = Laptop::start(Aws::Https);
    laptop.until_log("keytide", "the server's certificate is of an issuer that is not trusted");
    let mut laptop = Laptop::start(Aws::Trusted);
    laptop.until_log("app", "started with an OPENAI_API_KEY of ");
    laptop.until_log("keytide", "is called at https://emulator:4567");
}

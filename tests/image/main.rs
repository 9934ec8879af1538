//! The image that people get: what is in it, what it says of itself, and that it runs with nothing around it.
//!
//! `./tests/run image` builds it, and names in `KEYTIDE_IMAGES` the folder of OCI layouts: `built` by the Dockerfile from
//! the source, `first` and `second` assembled from the binary that this made. `KEYTIDE_BASE` is an archive of Debian's busybox
//! and C library, `KEYTIDE_EMULATOR_BINARY` an AWS, for the containers of deploy/compose.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they read their environment")]
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that panics has failed")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::container::Container;

mod compose;
mod container;

/// What a node downloads.
const LARGEST: u64 = 6 * 1024 * 1024;

/// An OCI layout with one image.
struct Image {
    layout: PathBuf,
    digest: String,
    manifest: Value,
}

// === impl Image ===

impl Image {
    fn read(name: &str) -> Self {
        let images = env::var_os("KEYTIDE_IMAGES").expect("KEYTIDE_IMAGES is not set: ./tests/run image does all");
        let layout = PathBuf::from(images).join(name);
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let manifest = serde_json::from_slice(&fs::read(blob(&layout, &digest)).unwrap()).unwrap();
        Self { layout, digest, manifest }
    }

    fn config(&self) -> Value {
        let digest = self.manifest["config"]["digest"].as_str().unwrap();
        serde_json::from_slice(&fs::read(blob(&self.layout, digest)).unwrap()).unwrap()
    }

    fn layers(&self) -> impl Iterator<Item = PathBuf> {
        let layers = self.manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| blob(&self.layout, layer["digest"].as_str().unwrap()))
    }

    /// All that a node downloads.
    fn size(&self) -> u64 {
        let parts = self.manifest["layers"].as_array().unwrap().iter().chain([&self.manifest["config"]]);
        parts.map(|part| part["size"].as_u64().unwrap()).sum()
    }

    /// A container of it, which runs this; nothing in it can be written.
    fn container(&self, arguments: &[&str], environment: &[&str]) -> Container {
        let mut container = Container::new();
        for layer in self.layers() {
            container.unpack(&layer);
        }
        let config = self.config();
        let (user, group) = config["config"]["User"].as_str().unwrap().split_once(':').unwrap();
        container.user = [user, group].map(|number| number.parse().unwrap());
        let strings = |list: &Value| -> Vec<String> {
            let words = list.as_array().into_iter().flatten();
            words.map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        container.words = strings(&config["config"]["Entrypoint"]);
        container.words.extend(arguments.iter().copied().map(str::to_owned));
        container.environment = strings(&config["config"]["Env"]);
        container.environment.extend(environment.iter().copied().map(str::to_owned));
        container.read_only = true;
        container
    }

    /// Runs it: no network but a loopback interface that is down, nothing writable, no capability.
    fn run(&self, arguments: &[&str], files: &[(&str, &str)]) -> Output {
        // Who it would be: `check` asks for that, and asks nobody.
        let environment = ["AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY=none"];
        let mut container = self.container(arguments, &environment);
        for (name, content) in files {
            container.file(name, content);
        }
        container.run().output().unwrap()
    }
}

fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn one_binary_assembled_again_gives_one_digest() {
    let digests = ["built", "first", "second"].map(|name| Image::read(name).digest);
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[1], digests[2]);
}

#[test]
#[expect(clippy::print_stderr, reason = "figures, for people")]
fn a_node_downloads_little() {
    let size = Image::read("built").size();
    eprintln!("    {size} bytes, compressed; limit {LARGEST}");
    assert!(size <= LARGEST, "{size} bytes, more than {LARGEST}");
}

#[test]
fn it_holds_the_binary_and_the_certificates_and_nothing_else() {
    let image = Image::read("built");
    let mut files = Vec::new();
    for layer in image.layers() {
        let output = Command::new("tar").args(["--zstd", "-tvf"]).arg(layer).output().unwrap();
        let list = printed(&output);
        files.extend(list.lines().filter(|line| !line.starts_with('d')).map(str::to_owned));
    }
    let mode_and_name = files.iter().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", words[0], words[1], words.last().unwrap())
    });
    let mut found: Vec<String> = mode_and_name.collect();
    found.sort();
    assert_eq!(found, ["-rw-r--r-- 0/0 etc/ssl/certs/ca-certificates.crt", "-rwxr-xr-x 0/0 keytide"]);
}

#[test]
fn it_says_whose_it_is_and_runs_as_nobody_in_particular() {
    let config = Image::read("built").config();
    assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("amd64")));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], json!(["/keytide"]));
    let labels = &config["config"]["Labels"];
    let label = |name: &str| labels[format!("org.opencontainers.image.{name}")].as_str().unwrap_or_default();
    assert_eq!(label("title"), "keytide");
    assert_eq!(label("description"), env!("CARGO_PKG_DESCRIPTION"));
    assert_eq!(label("source"), env!("CARGO_PKG_REPOSITORY"));
    assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("revision"), env::var("KEYTIDE_REVISION").unwrap());
}

#[test]
fn it_runs_without_network_writable_files_and_rights() {
    let image = Image::read("built");
    let version = printed(&image.run(&["--version"], &[]));
    assert_eq!(version, format!("keytide {}\n", env!("CARGO_PKG_VERSION")));
    let schema: Value = serde_json::from_str(&printed(&image.run(&["schema"], &[]))).unwrap();
    assert!(schema["properties"]["keytide"].is_object(), "{schema}");
    let config = "keytide: {aws: {region: us-east-1}, primary_secret: {name: app}, outputs: [{env_file: {path: \
                  /run/keytide/env/keys.env, format: posix}}]}";
    let check = |text: &str| {
        image.run(&["check", "--config", "/etc/keytide/keytide.yaml"], &[("/etc/keytide/keytide.yaml", text)])
    };
    printed(&check(config));
    let refused = check(&config.replace("region", "regoin"));
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("regoin"), "{refused:?}");
    // And starts others, where there is no shell and nothing else.
    let keys = [("/etc/keytide/keys.env", "VERSION='1'\n")];
    let words = ["exec", "--env-file", "/etc/keytide/keys.env", "--", "/keytide", "--version"];
    assert_eq!(printed(&image.run(&words, &keys)), version);
}

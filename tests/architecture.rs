//! The plan of the house (`docs/ARCHITECTURE.md`), enforced by reading the sources.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The layer of each module; a module uses lower layers only.
const LAYERS: [(&str, u8); 28] = [
    ("domain", 0),
    ("plan", 1),
    ("render", 1),
    ("config", 1),
    ("metrics", 1),
    ("health", 1),
    ("source", 2),
    ("output", 2),
    ("state", 2),
    ("watch", 2),
    ("spool", 2),
    ("store", 2),
    ("aws", 2),
    ("kubernetes", 2),
    ("reload", 2),
    ("small_file", 2),
    ("supervisor", 3),
    ("pull", 3),
    ("push", 3),
    ("publish", 3),
    ("http", 3),
    ("http_client", 2),
    ("daemon", 4),
    ("cli", 5),
    ("telemetry", 5),
    ("process", 5),
    ("main", 5),
    ("lib", 5),
];

/// The only uses inside a layer.
const ARROWS: [(&str, &str); 17] = [
    ("reload", "kubernetes"),
    ("source", "aws"),
    ("aws", "http_client"),
    ("aws", "small_file"),
    ("kubernetes", "small_file"),
    ("reload", "http_client"),
    ("reload", "output"),
    ("reload", "small_file"),
    ("state", "output"),
    ("spool", "output"),
    ("store", "aws"),
    ("health", "metrics"),
    ("http", "pull"),
    ("publish", "pull"),
    ("cli", "telemetry"),
    ("cli", "process"),
    ("main", "cli"),
];

/// Foreign crates, and the files that may name them: a directory ends in `/`.
const GATEKEEPERS: [(&str, &[&str]); 20] = [
    ("aws_sdk_secretsmanager", &["source/secrets_manager.rs", "store.rs", "aws/outcome.rs", "daemon.rs"]),
    ("aws_sdk_sts", &["aws/"]),
    ("aws_credential_types", &["aws/"]),
    ("aws_runtime", &["aws/"]),
    ("aws_sigv4", &["aws/iam.rs"]),
    ("aws_smithy_", &["aws/"]),
    ("aws_types", &["aws/"]),
    ("kube::", &["kubernetes/"]),
    ("k8s_openapi", &["kubernetes/"]),
    ("notify::", &["watch.rs"]),
    ("prometheus::", &["metrics.rs"]),
    ("axum::", &["http.rs"]),
    ("hyper", &["http_client.rs", "cli/status.rs", "kubernetes/client.rs", "kubernetes/kubeconfig.rs"]),
    ("rustls::", &["aws/", "http_client.rs", "kubernetes/outcome.rs"]),
    ("tokio_rustls", &["http_client.rs"]),
    ("rustls_native_certs", &["http_client.rs"]),
    ("rustix::", &["output/", "spool/", "reload/", "process.rs", "config.rs", "cli/exec/", "cli/install.rs"]),
    ("tracing_subscriber", &["telemetry.rs"]),
    ("serde_saphyr", &["config/"]),
    (
        "std::fs",
        &[
            "output/",
            "spool/",
            "state.rs",
            "reload/",
            "small_file.rs",
            "aws/auth/",
            "aws/client.rs",
            "config.rs",
            "process.rs",
            "http.rs",
            "daemon.rs",
            "daemon/",
            "cli/",
        ],
    ),
];

/// The files that may see a value.
const EXPOSING: [&str; 8] = [
    "render/",
    "state.rs",
    "store.rs",
    "output/files.rs",
    "domain/value.rs",
    "aws/",
    "kubernetes/client.rs",
    "cli/exec/program.rs",
];

/// Each source file below `src`, by its path there, without comments and without its tests.
fn sources() -> BTreeMap<String, String> {
    fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut sources = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
        if !name.ends_with("/tests.rs") {
            sources.insert(name, code);
        }
    }
    assert!(sources.len() > 30);
    sources
}

fn module_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or_default()
}

/// The modules of this crate that a source names: `crate::x`, `crate::{x, y::…}`, `keytide::x`.
fn uses(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for rest in code.split("crate::").skip(1).chain(code.split("keytide::").skip(1)) {
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect());
            continue;
        };
        // The first word of each item of the outermost braces.
        let (mut depth, mut item) = (0_u32, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
            if c == ',' && depth == 0 {
                used.insert(std::mem::take(&mut item));
            } else {
                item.push(c);
            }
        }
        used.insert(item);
    }
    let word =
        |item: &String| item.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    used.iter().map(word).filter(|word| !word.is_empty()).collect()
}

fn allowed(file: &str, places: &[&str]) -> bool {
    places.iter().any(|place| {
        if place.ends_with('/') {
            file.starts_with(place) || file == format!("{}.rs", place.trim_end_matches('/'))
        } else {
            file == *place
        }
    })
}

#[test]
fn a_module_uses_lower_layers_only() {
    let layers: BTreeMap<&str, u8> = LAYERS.into_iter().collect();
    for (file, code) in sources() {
        let module = module_of(&file);
        let layer = layers.get(module).unwrap_or_else(|| panic!("{file}: give its module a layer"));
        for used in uses(&code) {
            let Some(below) = layers.get(used.as_str()) else { continue };
            let fine = used == module || below < layer || ARROWS.contains(&(module, used.as_str()));
            assert!(fine, "{file} (layer {layer}) uses {used} (layer {below})");
        }
    }
}

#[test]
fn each_foreign_crate_has_its_gatekeepers() {
    for (file, code) in sources() {
        for (krate, places) in GATEKEEPERS {
            let named = code.match_indices(krate).any(|(at, _)| {
                let before = code.get(..at).and_then(|before| before.chars().next_back());
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            });
            assert!(!named || allowed(&file, places), "{file} names {krate}, which belongs to {places:?}");
        }
    }
}

#[test]
fn values_are_seen_in_few_files() {
    for (file, code) in sources() {
        let exposes = code.contains(".expose()") || code.contains("expose_secret");
        assert!(!exposes || allowed(&file, &EXPOSING), "{file} sees a value");
    }
}

#[test]
fn modules_are_named_after_what_they_know() {
    for file in sources().keys() {
        let name = file.rsplit('/').next().unwrap().trim_end_matches(".rs");
        assert!(
            !["mod", "utils", "util", "common", "helpers", "types", "error", "errors", "constants"].contains(&name),
            "{file}"
        );
    }
}

#[test]
fn foreign_errors_are_not_printed() {
    for (file, code) in sources() {
        assert!(!code.contains("DisplayErrorContext"), "{file}: an SDK's error repeats what it was sent");
    }
}

/// The table of `docs/METRICS.md`: name, type, labels, help.
#[test]
fn every_metric_is_documented_in_its_own_words() {
    let output = keytide::domain::names::OutputName::parse("output").unwrap();
    let metrics = keytide::metrics::Metrics::new(std::iter::once(&output));
    metrics.reload_begins(&keytide::domain::names::ActionName::parse("signal").unwrap());
    metrics.aws_request("service", "operation", keytide::metrics::CallOutcome::Ok, 0.1);
    metrics.kubernetes_output(&output);
    metrics.kubernetes_request("verb", "resource", "outcome", 0.1);
    let text = metrics.render();
    let mut registered = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            registered.insert(name.to_owned(), help.to_owned());
        }
    }
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md")).unwrap();
    let mut documented = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `keytide_")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("four cells: {line}") };
        let name = name.trim_matches('`');
        documented.insert(name.to_owned(), help.to_owned());
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is not a {kind}");
        for label in labels.split(", ").filter(|label| !label.is_empty() && *label != "–") {
            let label = label.trim_matches('`');
            let sample = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            assert!(sample.contains(&format!("{label}=\"")), "{name} has no label {label}: {sample}");
        }
    }
    assert_eq!(documented, registered);
}

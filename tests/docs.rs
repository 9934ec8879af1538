//! The documents say what the code says.

use clap::Parser as _;
use serde_json::Value;

/// Every setting of the schema is in `docs/CONFIGURATION.md`, in the words of the schema.
#[test]
fn every_setting_is_documented() {
    let schema = keytide::config::schema();
    let page = include_str!("../docs/CONFIGURATION.md");
    let mut settings = 0;
    let definitions = schema["$defs"].as_object().unwrap();
    for definition in definitions.values() {
        for (name, property) in definition["properties"].as_object().into_iter().flatten() {
            let Some(description) = property["description"].as_str() else { continue };
            let description = description.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
            let documented = page.lines().any(|line| {
                let cell = line.trim_start_matches("| `").split('`').next().unwrap_or_default();
                cell.rsplit('.').next() == Some(name) && line.ends_with(&format!("| {description} |"))
            });
            assert!(documented, "docs/CONFIGURATION.md lacks a row for {name}: {description}");
            settings += 1;
        }
    }
    assert!(settings > 40, "the schema has changed its shape: {settings}");
}

/// Every test that `docs/SEMANTICS.md` and `docs/COMPARISON.md` name exists.
#[test]
fn every_promise_names_a_test_that_exists() {
    let page = concat!(include_str!("../docs/SEMANTICS.md"), include_str!("../docs/COMPARISON.md"));
    let mut sources = String::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let directories = [
        "src",
        "src/plan",
        "src/domain",
        "src/config",
        "src/render",
        "src/render/env_file",
        "src/spool",
        "tests",
        "tests/integration",
        "tests/formats",
        "tests/kubernetes",
        "tests/model",
    ];
    for directory in directories {
        for entry in std::fs::read_dir(format!("{root}{directory}")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |")).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for test in tests.split(", ") {
            let name = test.trim_matches('`');
            assert!(sources.contains(&format!("fn {name}(")), "no test {name}: {row}");
        }
    }
}

/// The pages that people copy from.
const PAGES: [&str; 8] = [
    include_str!("../README.md"),
    include_str!("../docs/CONFIGURATION.md"),
    include_str!("../docs/EXEC.md"),
    include_str!("../docs/IDENTITY.md"),
    include_str!("../docs/LITELLM.md"),
    include_str!("../docs/OPERATIONS.md"),
    include_str!("../docs/SPOOL.md"),
    include_str!("../deploy/litellm/README.md"),
];

/// Every `keytide` command of a block is one that keytide understands.
#[test]
fn the_commands_of_the_documents_can_be_typed() {
    let mut commands = 0;
    for page in PAGES {
        let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        let text = blocks.collect::<String>().replace("\\\n", " ");
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('"')).collect();
            // At the start of a line, or behind what runs it somewhere else.
            let is_keytide = |at: usize| words[at] == "keytide" || words[at].ends_with("/keytide");
            let Some(at) = (0..words.len()).find(|at| is_keytide(*at) && (*at == 0 || words[at - 1] == "--")) else {
                continue;
            };
            let arguments: Vec<&str> =
                words[at..].iter().copied().take_while(|word| !matches!(*word, "&" | ">" | "|" | "#")).collect();
            let arguments = arguments.iter().map(|word| match *word {
                "$ACCOUNT" => "123456789012",
                "$NAMESPACE:$SERVICE_ACCOUNT" => "my-app:my-app",
                "$OIDC" => "https://oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE",
                word => word,
            });
            if let Err(error) = keytide::cli::Cli::try_parse_from(arguments) {
                panic!("{line}\n{error}");
            }
            commands += 1;
        }
    }
    assert!(commands >= 7, "{commands}");
}

/// The example configurations are valid; a manifest of Kubernetes is none.
#[test]
fn the_examples_of_the_documents_are_valid() {
    for page in PAGES {
        let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        for block in blocks.filter(|block| !block.starts_with("spec:")) {
            let directory = tempfile::tempdir().unwrap();
            let config = directory.path().join("keytide.yaml");
            std::fs::write(&config, block).unwrap();
            let sources = keytide::config::Sources { config, litellm_config: None };
            let environment =
                keytide::config::Environment::from_pairs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")]);
            if let Err(errors) = keytide::config::load(&sources, &environment) {
                panic!("{errors}\n{block}");
            }
        }
    }
}

/// The schema is one.
#[test]
fn the_schema_describes_both_blocks() {
    let schema = keytide::config::schema();
    assert!(matches!(schema["properties"]["keytide"], Value::Object(_)));
    assert!(matches!(schema["properties"]["general_settings"], Value::Object(_)));
}

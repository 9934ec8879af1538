//! Every dialect of an env file, read by the programs that will read it: shells here, the others as
//! `tests/formats/setup` installs them. What `check` accepts must come back byte for byte; what it refuses must be
//! something that a reader really loses, so that no value is refused without need.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod readers;
mod shells;
mod values;

use std::collections::BTreeMap;

use keytide::{
    domain::{mapping::Format, names::EnvName, value::SecretValue},
    render::env_file,
};
use readers::{Files, Reader};

const DOTENV: [Reader; 4] =
    [Reader("python-dotenv"), Reader("node-dotenv"), Reader("node-dotenv-fast"), Reader("compose")];
const DOCKER: [Reader; 1] = [Reader("docker")];
const KUBERNETES: [Reader; 1] = [Reader("kubelet")];
const JSON: [Reader; 1] = [Reader("python-json")];

/// Names with their values, as an application finds them.
type Variables = BTreeMap<String, Vec<u8>>;

#[test]
fn shells_read_back_every_posix_file_and_execute_nothing() {
    for batch in values::batches(40) {
        let (content, expected) = file_of(Format::Posix, &batch);
        let names: Vec<_> = expected.keys().map(String::as_str).collect();
        for shell in shells::ALL {
            let seen = shell.read(&content, &names);
            assert!(!seen.executed, "{shell:?} executed a value");
            assert_same(&seen.variables, &expected, &format!("{shell:?}"));
        }
    }
}

#[test]
fn a_file_that_is_not_quoted_is_executed_so_the_canary_sings() {
    for shell in shells::ALL {
        assert!(shell.read(b"A=\"$(>canary)\"\n", &[]).executed, "{shell:?}");
    }
}

#[test]
fn names_are_refused_to_shells_if_and_only_if_a_value_would_be_lost_or_executed() {
    let value = SecretValue::new("HOME[$(>canary)]".to_owned());
    // Those that change nothing in a script of bash or dash, and something elsewhere: in a prompt, another shell or a
    // shell that is started later.
    let elsewhere = ["BASH_ENV", "COLUMNS", "ENV", "LINES", "MAILCHECK", "PS0", "PS1", "PS2", "SHLVL"];
    for name in shells::variables_of_bash().iter().map(String::as_str).chain(["OPENAI_API_KEY", "username", "path"]) {
        let content = format!("{name}='{}'\n", value.expose());
        let lost = shells::ALL.iter().any(|shell| {
            let seen = shell.read(content.as_bytes(), &[name]);
            seen.executed || seen.variables.get(name).map(Vec::as_slice) != Some(value.expose().as_bytes())
        });
        let refused = env_file::check(Format::Posix, &name_of(name), &value).is_err();
        assert_eq!(refused, lost || elsewhere.contains(&name), "{name}");
    }
}

#[test]
fn an_interactive_shell_executes_later_what_posix_refuses() {
    for name in ["BASH_ENV", "ENV", "PROMPT_COMMAND", "PS0", "PS1", "PS2"] {
        assert!(shells::an_interactive_shell_executes(name), "{name}");
        assert!(env_file::check(Format::Posix, &name_of(name), &SecretValue::new(String::new())).is_err(), "{name}");
    }
    assert!(!shells::an_interactive_shell_executes("OPENAI_API_KEY"));
}

#[test]
#[ignore = "needs the readers: ./tests/run formats"]
fn every_reader_reads_back_what_its_format_accepts() {
    for (format, readers) in [
        (Format::Dotenv, &DOTENV[..]),
        (Format::Docker, &DOCKER),
        (Format::Kubernetes, &KUBERNETES),
        (Format::Json, &JSON),
    ] {
        let (contents, expected): (Vec<_>, Vec<_>) =
            values::batches(60).iter().map(|batch| file_of(format, batch)).unzip();
        let files = Files::of(&contents);
        for reader in readers {
            for (seen, expected) in reader.read(&files).iter().zip(&expected) {
                let seen = seen.as_ref().unwrap_or_else(|| panic!("{reader:?} refuses a file"));
                assert_same(seen, expected, &format!("{reader:?}"));
            }
        }
    }
}

#[test]
#[ignore = "needs the readers: ./tests/run formats"]
fn no_spelling_of_a_value_that_dotenv_refuses_is_read_alike() {
    assert_refusals_are_needed(
        Format::Dotenv,
        &DOTENV,
        &values::of_special_characters(),
        &[
            &|text| format!("'{text}'"),
            &|text| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'")),
            &|text| format!("'{}'", text.replace('\'', r"\'")),
            &|text| format!("\"{text}\""),
            &|text| format!("\"{}\"", text.replace('\r', r"\r")),
            &|text| format!("\"{}\"", text.replace('\r', r"\r").replace('\n', r"\n")),
            &|text| format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('\r', r"\r")),
            &|text| format!("\"{}\"", text.replace('\r', r"\r").replace('$', r"\$")),
            &|text| format!("\"{}\"", text.replace('\r', r"\r").replace('$', "$$")),
            &|text| format!("`{text}`"),
            // node's dotenv takes a backtick at the start for a quote, and looks for its end in the lines that follow.
            // Some values hold what stops it; none is worth a rule for that.
            &|text| if text.starts_with('`') { String::new() } else { text.to_owned() },
        ],
    );
}

#[test]
#[ignore = "needs the readers: ./tests/run formats"]
fn no_spelling_of_a_value_that_docker_refuses_is_read() {
    let mut texts = values::of_special_characters();
    texts.extend([values::LONGEST_LINE - 2, values::LONGEST_LINE - 1].map(|length| "x".repeat(length)));
    assert_refusals_are_needed(
        Format::Docker,
        &DOCKER,
        &texts,
        &[&str::to_owned, &|text| format!("'{text}'"), &|text| {
            format!("\"{}\"", text.replace('\n', r"\n").replace('\r', r"\r"))
        }],
    );
}

#[test]
#[ignore = "needs the readers: ./tests/run formats"]
fn no_spelling_of_a_value_that_kubernetes_refuses_is_read() {
    let mut texts = values::of_special_characters();
    texts.extend([values::LONGEST_LINE - 4, values::LONGEST_LINE - 3].map(|length| "x".repeat(length)));
    texts.extend([values::LONGEST_LINE - 3, values::LONGEST_LINE - 2].map(|length| "x".repeat(length) + "\n"));
    texts.extend([values::LONGEST_LINE, values::LONGEST_LINE + 1].map(|length| format!("\n{}\n", "x".repeat(length))));
    texts.extend([values::LONGEST_LINE - 1, values::LONGEST_LINE].map(|length| format!("\n{}", "x".repeat(length))));
    assert_refusals_are_needed(
        Format::Kubernetes,
        &KUBERNETES,
        &texts,
        &[
            &|text| format!("'{text}'"),
            &|text| format!("'{}'", text.replace('\'', r"'\''")),
            &|text| format!("'{}'", text.replace('\'', r"\'")),
            &|text| format!("'{}'", text.replace('\'', "''")),
            &|text| format!("\"{text}\""),
            &str::to_owned,
        ],
    );
}

#[test]
#[ignore = "needs the readers: ./tests/run formats"]
fn node_loses_the_one_name_that_dotenv_refuses() {
    assert!(env_file::check(Format::Dotenv, &name_of("__proto__"), &SecretValue::new("x".to_owned())).is_err());
    let seen = Reader("node-dotenv").read(&Files::of(&[b"__proto__='x'\n".to_vec()]));
    assert_eq!(seen, [Some(Variables::new())]);
}

/// A file of all the texts that the format accepts, and what is to be read from it.
fn file_of(format: Format, texts: &[String]) -> (Vec<u8>, Variables) {
    let entries: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| (name_of(&format!("K{i}")), SecretValue::new(text.clone())))
        .filter(|(name, value)| env_file::check(format, name, value).is_ok())
        .collect();
    let content = env_file::render(format, &entries.iter().map(|(name, value)| (name, value)).collect::<Vec<_>>());
    assert_eq!(content.capacity(), content.len());
    let expected = entries.iter().map(|(name, value)| (name.to_string(), value.expose().as_bytes().to_vec())).collect();
    (content.to_vec(), expected)
}

/// Lets the readers read each refused text in each spelling, followed by an entry that a quote without its end would
/// swallow, and demands that one of them loses something; and that they lose nothing of what is accepted.
fn assert_refusals_are_needed(
    format: Format,
    readers: &[Reader],
    texts: &[String],
    spellings: &[&dyn Fn(&str) -> String],
) {
    let next = SecretValue::new("x`\ny".to_owned());
    let next = if format == Format::Docker { SecretValue::new("x".to_owned()) } else { next };
    let next_line = env_file::render(format, &[(&name_of("NEXT"), &next)]);
    let (accepted, refused): (Vec<_>, Vec<_>) = texts
        .iter()
        .partition(|text| env_file::check(format, &name_of("K"), &SecretValue::new((*text).clone())).is_ok());
    assert!(!accepted.is_empty() && !refused.is_empty());
    let with_next = |line: &[u8]| [line, next_line.as_slice()].concat();
    let mut contents = Vec::new();
    let mut meant = Vec::new();
    for text in accepted {
        let line = env_file::render(format, &[(&name_of("K"), &SecretValue::new(text.clone()))]);
        contents.push(with_next(&line));
        meant.push((text, true));
    }
    for text in refused {
        for spelling in spellings {
            contents.push(with_next(format!("K={}\n", spelling(text)).as_bytes()));
            meant.push((text, false));
        }
    }
    let files = Files::of(&contents);
    let mut carried = vec![true; contents.len()];
    for reader in readers {
        for ((seen, (text, _)), carried) in reader.read(&files).iter().zip(&meant).zip(&mut carried) {
            let right = |seen: &Variables| {
                seen.get("K").map(Vec::as_slice) == Some(text.as_bytes())
                    && seen.get("NEXT").map(Vec::as_slice) == Some(next.expose().as_bytes())
            };
            *carried &= seen.as_ref().is_some_and(right);
        }
    }
    let wrong: Vec<_> = meant
        .iter()
        .zip(carried)
        .filter(|((_, accepted), carried)| accepted != carried)
        .map(|((text, accepted), _)| (*accepted, values::short(text.as_bytes())))
        .collect();
    assert!(wrong.is_empty(), "{} values, (accepted, text): {:?}", wrong.len(), wrong.get(..20).unwrap_or(&wrong));
}

fn assert_same(seen: &Variables, expected: &Variables, reader: &str) {
    for (name, value) in expected {
        let seen = seen.get(name).unwrap_or_else(|| panic!("{reader} does not find {}", values::short(value)));
        assert!(seen == value, "{reader} reads {} as {}", values::short(value), values::short(seen));
    }
    let invented: Vec<_> = seen.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(invented.is_empty(), "{reader} invents {invented:?}");
}

fn name_of(text: &str) -> EnvName {
    EnvName::parse(text).unwrap()
}

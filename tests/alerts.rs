//! Alerts, dashboard and runbooks name what exists. `./tests/run alerts` asks promtool whether the alerts fire.

#![expect(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test that panics has failed, and everything here is ASCII where it is cut"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// What Prometheus knows of a target, and of a bucket.
const OF_TARGETS: [&str; 7] = ["namespace", "pod", "container", "job", "instance", "le", "alertname"];
const RUNBOOKS: &str = "https://github.com/keytide/keytide/blob/main/docs/runbooks/";

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let mut pages: BTreeSet<String> = names_in("docs/runbooks", "md").into_iter().collect();
    assert!(pages.remove("README"));
    let index = text("docs/runbooks/README.md");
    for Alert { name, rule } in alerts() {
        assert!(pages.remove(&name), "docs/runbooks/{name}.md is missing, or {name} is there twice");
        let page = text(&format!("docs/runbooks/{name}.md"));
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(page.starts_with(&format!("# {name}\n\nSeverity: {severity}.")), "{name}");
        assert!(
            index.contains(&format!("| [{name}]({name}.md) | {severity} |")),
            "docs/runbooks/README.md lacks {name}"
        );
        let headings: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, ["Meaning", "Impact", "Diagnosis", "Mitigation", "When to ignore it"], "{name}");
        let annotations = &rule["annotations"];
        assert_eq!(annotations["runbook_url"].as_str(), Some(format!("{RUNBOOKS}{name}.md").as_str()));
        let said =
            format!("{}{}", annotations["summary"].as_str().unwrap(), annotations["description"].as_str().unwrap());
        // A label that the expression sums up is empty in the annotations.
        let expression = rule["expr"].as_str().unwrap();
        for label in said.split("$labels.").skip(1).map(word) {
            assert!(expression.contains(label) || expression.contains(":keytide_"), "{name} has no label {label}");
        }
        assert!(said.contains("$labels.namespace"), "{name} does not say where");
    }
    assert!(pages.is_empty(), "no alert has the runbooks {pages:?}");
}

#[test]
fn everything_that_alerts_dashboard_and_runbooks_ask_for_is_exported() {
    let exported = exported();
    let mut queries: Vec<(String, String)> = Vec::new();
    for group in rules()["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            queries.push((rule.to_string(), rule["expr"].as_str().unwrap().to_owned()));
        }
    }
    let mut shown = BTreeSet::new();
    for (title, query) in queries_of_dashboard() {
        shown.extend(selectors(&query).into_iter().map(|selector| selector.metric));
        queries.push((title, query));
    }
    for name in names_in("docs/runbooks", "md") {
        let page = text(&format!("docs/runbooks/{name}.md"));
        queries.extend(blocks(&page, "promql").map(|query| (name.clone(), query.to_owned())));
    }
    assert!(queries.len() > 100, "{}", queries.len());
    let labels: BTreeSet<&str> = exported.values().flatten().map(String::as_str).chain(OF_TARGETS).collect();
    let series = registered();
    for (place, query) in &queries {
        for Selector { metric, matchers } in selectors(query) {
            let known = exported.get(&metric).unwrap_or_else(|| panic!("{place}: no metric {metric}"));
            for (label, value) in matchers {
                let of_metric = known.contains(&label);
                assert!(of_metric || OF_TARGETS.contains(&label.as_str()), "{place}: {metric} has no label {label}");
                // These labels have a value for everything there is, from the start.
                if of_metric && ["state", "reason", "result"].contains(&label.as_str()) {
                    let pair = format!("{label}=\"{value}\"");
                    let found = series.lines().any(|line| line.starts_with(&metric) && line.contains(&pair));
                    assert!(found, "{place}: {metric} never has {pair}");
                }
            }
        }
        for list in ["by (", "on (", "ignoring ("].iter().flat_map(|word| query.split(word).skip(1)) {
            for label in list.split(')').next().unwrap().split(", ") {
                assert!(labels.contains(label), "{place}: no label {label}");
            }
        }
    }
    let unseen: Vec<&String> = exported.keys().filter(|name| !shown.contains(*name)).collect();
    assert!(unseen.is_empty(), "the dashboard does not show {unseen:?}");
}

#[test]
fn every_alert_is_tested_to_fire_and_to_resolve_on_series_as_keytide_exports_them() {
    let exported = exported();
    let mut tested = BTreeSet::new();
    for file in names_in("tests/alerts", "yaml") {
        let tests = yaml(&format!("tests/alerts/{file}.yaml"));
        for test in tests["tests"].as_array().unwrap() {
            for series in test["input_series"].as_array().unwrap() {
                let series = series["series"].as_str().unwrap();
                let Some(Selector { metric, matchers }) = selectors(series).pop() else { continue };
                let has: BTreeSet<&str> = matchers.iter().map(|(label, _)| label.as_str()).collect();
                let shall = exported.get(&metric).unwrap_or_else(|| panic!("{file}: no metric {metric}"));
                let shall: BTreeSet<&str> = shall.iter().map(String::as_str).collect();
                let of_metric: BTreeSet<&str> = has.iter().copied().filter(|has| !OF_TARGETS.contains(has)).collect();
                assert_eq!(of_metric, shall, "{file}: {series}");
                assert!(["namespace", "pod", "container"].iter().all(|label| has.contains(label)), "{file}: {series}");
            }
            // What fires, as time goes by.
            let moments = test["promql_expr_test"].as_array().unwrap();
            let firing: Vec<String> = moments.iter().map(|moment| moment["exp_samples"].to_string()).collect();
            for Alert { name, .. } in alerts() {
                let fires: Vec<bool> =
                    firing.iter().map(|samples| samples.contains(&format!("\"{name}\\\""))).collect();
                if let Some(first) = fires.iter().position(|fires| *fires)
                    && first > 0
                    && fires[first..].iter().any(|fires| !fires)
                {
                    tested.insert(name);
                }
            }
        }
    }
    for Alert { name, .. } in alerts() {
        assert!(tested.contains(&name), "no test in tests/alerts has {name} silent, then firing, then silent");
    }
}

#[test]
fn the_copies_for_those_without_helm_are_the_same() {
    for (source, copy) in [("alerts.yaml", "alerts/keytide-rules.yaml"), ("dashboard.json", "grafana/keytide.json")] {
        let (source, copy) = (format!("helm/keytide/files/{source}"), format!("deploy/{copy}"));
        assert!(text(&source) == text(&copy), "copy {source} to {copy}");
    }
}

#[test]
fn the_dashboard_can_be_read() {
    let dashboard: Value = serde_json::from_str(&text("helm/keytide/files/dashboard.json")).unwrap();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{title} is too wide");
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(
                panel["description"].as_str().is_some_and(|text| text.ends_with('.')),
                "{title} has no description"
            );
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "namespace", "pod"]);
    for (title, query) in queries_of_dashboard() {
        assert!(query.contains("namespace=~\"$namespace\""), "{title} does not follow the variables");
    }
}

#[test]
fn the_log_lines_of_the_runbooks_are_keytides() {
    let mut sources = String::new();
    collect(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    // A text that goes on in the next line.
    let sources: String = sources.split("\\\n").map(str::trim_start).collect::<Vec<_>>().concat();
    let mut lines = 0;
    for name in names_in("docs/runbooks", "md") {
        let page = text(&format!("docs/runbooks/{name}.md"));
        let tables = page.split("| log").skip(1).map(|table| table.split("\n\n").next().unwrap());
        for cell in tables.flat_map(|table| table.lines().skip(2)).filter_map(|row| row.strip_prefix("| ")) {
            for said in cell.split(" | ").next().unwrap().split('`').skip(1).step_by(2) {
                lines += 1;
                for fragment in said.split('…').map(str::trim).filter(|fragment| fragment.len() > 3) {
                    assert!(sources.contains(fragment), "{name}: keytide never says {fragment:?}");
                }
            }
        }
    }
    assert!(lines > 30, "{lines}");
}

#[test]
fn the_links_of_the_runbooks_lead_somewhere() {
    let mut pages: Vec<String> =
        names_in("docs/runbooks", "md").iter().map(|name| format!("docs/runbooks/{name}.md")).collect();
    pages.extend(["docs/METRICS.md", "docs/OPERATIONS.md"].map(str::to_owned));
    for page in pages {
        for link in text(&page).split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned()) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            if file.starts_with("https:") {
                continue;
            }
            let target = if file.is_empty() { root(&page) } else { root(&page).parent().unwrap().join(file) };
            let found = fs::read_to_string(&target).unwrap_or_else(|_| panic!("{page}: {link} leads nowhere"));
            let anchors = found.lines().filter(|line| line.starts_with('#'));
            let mut anchors = anchors.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"));
            assert!(
                anchor.is_empty() || anchors.any(|heading| heading == anchor),
                "{page}: {link} has no such heading"
            );
        }
    }
}

#[test]
fn the_commands_of_the_runbooks_can_be_typed() {
    use clap::Parser as _;
    let mut commands = 0;
    for name in names_in("docs/runbooks", "md") {
        let page = text(&format!("docs/runbooks/{name}.md"));
        for line in blocks(&page, "sh").flat_map(str::lines) {
            let Some((kubectl, keytide)) = line.split_once(" -- /") else { continue };
            assert_eq!(kubectl, "kubectl exec --namespace $NAMESPACE $POD --container keytide", "{name}");
            if let Err(error) = keytide::cli::Cli::try_parse_from(keytide.split(' ')) {
                panic!("{name}: {line}\n{error}");
            }
            commands += 1;
        }
    }
    assert!(commands > 20, "{commands}");
}

struct Alert {
    name: String,
    rule: Value,
}

struct Selector {
    metric: String,
    matchers: Vec<(String, String)>,
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> Value {
    yaml("helm/keytide/files/alerts.yaml")
}

fn alerts() -> Vec<Alert> {
    let rules = rules();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let alerts = rules.filter_map(|rule| Some(Alert { name: rule["alert"].as_str()?.to_owned(), rule: rule.clone() }));
    alerts.collect()
}

/// The files of a directory, without their extension.
fn names_in(directory: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(root(directory)).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|found| found == extension));
    let mut names: Vec<String> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert!(!names.is_empty(), "{directory} has no .{extension}");
    names
}

fn blocks<'a>(page: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    let blocks: Vec<&str> = page.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    blocks.into_iter()
}

/// The label or the metric at the beginning.
fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap()
}

fn queries_of_dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text("helm/keytide/files/dashboard.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((panel["title"].as_str().unwrap().to_owned(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    queries
}

/// Each metric with the labels of its row in `docs/METRICS.md`, which another test compares with the registry.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let page = text("docs/METRICS.md");
    let rows = page.lines().filter(|line| line.starts_with("| `keytide_"));
    let exported: BTreeMap<String, BTreeSet<String>> = rows
        .map(|row| {
            let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
            let name = cells.next().unwrap().trim_matches('`').to_owned();
            let labels = cells.nth(1).unwrap().split(", ").filter(|label| *label != "–");
            (name, labels.map(|label| label.trim_matches('`').to_owned()).collect())
        })
        .collect();
    assert!(exported.len() > 40, "{}", exported.len());
    exported
}

/// What a daemon shows before anything happened.
fn registered() -> String {
    let output = keytide::domain::names::OutputName::parse("output").unwrap();
    let metrics = keytide::metrics::Metrics::new(std::iter::once(&output));
    metrics.reload_begins(&keytide::domain::names::ActionName::parse("signal").unwrap());
    metrics.render()
}

/// Each of keytide's metrics in a query, with what is asked of its labels.
fn selectors(query: &str) -> Vec<Selector> {
    let mut selectors = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find("keytide_") {
        let recorded = rest[..at].ends_with(':');
        rest = &rest[at..];
        let name = word(rest);
        rest = &rest[name.len()..];
        let matchers = rest.strip_prefix('{').map_or("", |rest| rest.split('}').next().unwrap());
        if recorded {
            continue;
        }
        let metric = name.strip_suffix("_bucket").unwrap_or(name).to_owned();
        let matchers = matchers.split("\",").filter(|matcher| !matcher.is_empty()).map(|matcher| {
            let (label, value) = matcher.split_once(['=', '!']).unwrap();
            (label.to_owned(), value.trim_matches(['=', '~', '"', '\'']).to_owned())
        });
        selectors.push(Selector { metric, matchers: matchers.collect() });
    }
    selectors
}

fn collect(directory: PathBuf, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(path, sources);
        } else {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

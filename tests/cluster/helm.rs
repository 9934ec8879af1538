//! The chart, packaged as it is published, and Helm, as people type it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::{Value, json};

use crate::{
    aws::Aws,
    cluster::{Cluster, run, success},
    namespace::Namespace,
};

/// `helm package`, for one test, whose files are in a folder of this name. Without a version it is the chart's own; with
/// one, a chart of before it.
#[track_caller]
pub(crate) fn package(test: &str, version: Option<&str>) -> String {
    let directory = folder(test);
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/keytide");
    let chart = version.map_or_else(|| chart.to_owned(), |_| older(chart, &directory));
    let mut arguments = vec!["package", &chart, "--destination", directory.to_str().unwrap()];
    arguments.extend(version.map(|version| ["--version", version]).iter().flatten());
    let said = helm(&arguments);
    let file = said.trim().rsplit(": ").next().unwrap();
    assert!(Path::new(file).is_file(), "{said}");
    file.to_owned()
}

/// An object of the chart of before, which no later one has.
pub(crate) const DROPPED: &str = "configmap/keytide-of-before";
/// What its sidecar asks for of a processor.
pub(crate) const CPU_BEFORE: &str = "15m";

/// A chart as one of before could be: none was published yet.
fn older(chart: &str, directory: &Path) -> String {
    let older = directory.join("before");
    success(&["cp"], run(Command::new("cp").arg("-r").arg(chart).arg(&older), ""));
    let metadata = r#"{{- include "keytide.metadata" (dict "context" . "name" "keytide-of-before") | nindent 2 }}"#;
    let object = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  {metadata}\ndata: {{version: before}}\n");
    fs::write(older.join("templates/before.yaml"), object).unwrap();
    let values = fs::read_to_string(older.join("values.yaml")).unwrap();
    let (now, before) = ("cpu: 10m\n", format!("cpu: {CPU_BEFORE}\n"));
    assert_eq!(values.matches(now).count(), 1);
    fs::write(older.join("values.yaml"), values.replace(now, &before)).unwrap();
    older.to_str().unwrap().to_owned()
}

/// What the packaged chart makes of these values by these templates, without a cluster, as `helm template` prints it. In
/// the namespace where it is applied.
#[track_caller]
pub(crate) fn template(release: &str, values: &Value, templates: &[&str]) -> Vec<Value> {
    static CHART: OnceLock<String> = OnceLock::new();
    let chart = CHART.get_or_init(|| package("template", None));
    let mut arguments = vec!["template", release, chart, "--kube-version", "1.36.0", "--values", "-"];
    arguments.extend(templates.iter().flat_map(|template| ["--show-only", template]));
    let text = success(&arguments, run(command().args(&arguments), &values.to_string()));
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    for object in &mut objects {
        object["metadata"].as_object_mut().unwrap().remove("namespace");
    }
    objects
}

/// Helm in the cluster. Panics if it fails.
#[track_caller]
pub(crate) fn helm(arguments: &[&str]) -> String {
    success(arguments, run(command().args(arguments), ""))
}

/// Helm, which finds the cluster, and leaves what it keeps with the cluster.
pub(crate) fn command() -> Command {
    among_its_own(&program())
}

/// The command that begins so in what Helm or a page says.
#[track_caller]
pub(crate) fn command_in<'a>(text: &'a str, begin: &str) -> &'a str {
    let found = text.lines().map(str::trim).find(|line| line.starts_with(begin));
    found.unwrap_or_else(|| panic!("no command {begin} in: {text}"))
}

/// What a page or Helm says to type, in a shell. Panics if it fails.
#[track_caller]
pub(crate) fn typed(line: &str) -> String {
    let helm = program();
    let line = format!("PATH={}:$PATH; {line}", Path::new(&helm).parent().unwrap().display());
    let arguments = ["-euc", &line];
    success(&arguments, run(among_its_own("sh").args(arguments), ""))
}

fn program() -> String {
    env::var("KEYTIDE_HELM").expect("KEYTIDE_HELM is not set: ./tests/run cluster does all")
}

fn among_its_own(program: &str) -> Command {
    let mut command = Cluster::shared().command(program);
    for (name, place) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")] {
        command.env(name, folder("helm").join(place));
    }
    command
}

/// A file with values for a chart.
pub(crate) fn values(test: &str, values: &Value) -> String {
    let file = folder(test).join("values.json");
    fs::write(&file, values.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Values of the image under test and of this AWS: what a company's own endpoints take, with its own authority.
pub(crate) fn reaching(aws: &Aws) -> Value {
    json!({
        "image": {"tag": "test"},
        "aws": {"region": "us-east-1", "secretsManagerEndpoint": aws.https(), "stsEndpoint": aws.https()},
        "extraEnv": [{"name": "AWS_CA_BUNDLE", "value": "/etc/aws/ca.pem"}],
        "extraVolumes": [{"name": "aws", "configMap": {"name": "aws"}}],
        "extraVolumeMounts": [{"name": "aws", "mountPath": "/etc/aws", "readOnly": true}],
    })
}

/// The same for injection, of these namespaces only: other tests have releases of their own.
pub(crate) fn injecting(aws: &Aws, namespaces: &[&Namespace]) -> Value {
    let mut values = reaching(aws);
    let names: Vec<&str> = namespaces.iter().map(|namespace| namespace.name()).collect();
    values["injection"]["namespaceSelector"] =
        json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": names}]});
    values
}

/// An AWS that trusts the tokens of this cluster's issuer, by the keys that its API server publishes, and nobody else.
pub(crate) fn aws(namespace: &Namespace, secrets: &Value, roles: &[Value]) -> Aws {
    let provider =
        json!({"issuer": issuer(), "audiences": ["sts.amazonaws.com"], "keys": published("/openid/v1/jwks")});
    let seed = json!({"secrets": secrets, "oidc_providers": [provider], "roles": roles, "users": []});
    Aws::start(namespace, &seed)
}

/// A role for a service account, `NAMESPACE:NAME`, which may read one secret.
pub(crate) fn reader(name: &str, account: &str, secret: &str) -> Value {
    let arn = format!("arn:aws:secretsmanager:us-east-1:123456789012:secret:{secret}-??????");
    json!({"name": name, "web_identity": {"provider": issuer(), "subject": format!("system:serviceaccount:{account}")},
        "statements": [{"actions": ["secretsmanager:GetSecretValue"], "resources": [arn]}]})
}

fn issuer() -> Value {
    published("/.well-known/openid-configuration")["issuer"].clone()
}

/// What the API server publishes.
pub(crate) fn published(path: &str) -> Value {
    serde_json::from_str(&Cluster::shared().kubectl(&["get", "--raw", path])).unwrap()
}

/// The ConfigMap of that authority, where there will be a keytide.
pub(crate) fn trust(aws: &Aws, namespaces: &[&Namespace]) {
    let data = json!({"ca.pem": aws.certificate()});
    for namespace in namespaces {
        namespace.apply(&[json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "aws"}, "data": data})]);
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = Cluster::shared().directory().join("charts").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

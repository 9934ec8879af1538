//! Reload actions: what is done when the content of outputs changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Output, OutputKind,
    endpoints::host_and_port,
    fields::{
        AbsolutePath, Debounce, HeaderName, HttpMethod, HttpUrl, MinInterval, ProcessName, ReloadTimeout, SignalName,
        Splay, StatusCode,
    },
    file::check_pairs,
    findings::{Findings, Given, Place, Reader},
    virtual_keys::list,
    yaml::{Located, Pairs, Unchecked},
};
use crate::domain::{
    kubernetes::{ObjectName, WorkloadKind},
    names::{ActionName, OutputName},
    reload::Pace,
};

/// What is done when the content of outputs changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// Its name in logs, metrics and status: given, or made of its kind and, from the second of a kind on, a number.
    pub name: ActionName,
    /// The outputs whose changes it follows.
    pub outputs: BTreeSet<OutputName>,
    /// What is done.
    pub kind: ReloadKind,
}

/// The kinds of reload actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadKind {
    /// A process gets a signal.
    Signal {
        /// The name of the process.
        process: String,
        /// The signal.
        signal: Signal,
        /// When.
        pace: Pace,
    },
    /// A server is called.
    Http {
        /// The request, and what it must come to.
        call: HttpCall,
        /// When.
        pace: Pace,
    },
    /// The pods of a workload are replaced.
    Rollout {
        /// Its kind.
        workload: WorkloadKind,
        /// Its name.
        name: ObjectName,
        /// The Secret of each output that it follows.
        secrets: BTreeMap<OutputName, ObjectName>,
        /// When.
        pace: Pace,
    },
    /// A file holds a number that grows by one.
    Generation {
        /// Its path.
        path: PathBuf,
        /// True: it may lie on a disk.
        allow_disk: bool,
    },
}

/// A signal that a program may take for "read your files again", or end by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `SIGHUP`
    Hup,
    /// `SIGINT`
    Int,
    /// `SIGQUIT`
    Quit,
    /// `SIGTERM`
    Term,
    /// `SIGUSR1`
    Usr1,
    /// `SIGUSR2`
    Usr2,
    /// `SIGALRM`
    Alrm,
    /// `SIGCONT`
    Cont,
    /// `SIGTTIN`
    Ttin,
    /// `SIGTTOU`
    Ttou,
    /// `SIGWINCH`
    Winch,
}

/// A request without a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCall {
    /// Where to.
    pub url: Url,
    /// The method. Default `POST`.
    pub method: String,
    /// Headers, in lower case, and the files that hold their values.
    pub headers: BTreeMap<String, PathBuf>,
    /// The statuses that are success; none is each of 2xx.
    pub expect_status: Option<BTreeSet<u16>>,
    /// Certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// An http or https URL without a user and a fragment. `Display` leaves the query out, in which a token may stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    /// True for https.
    pub tls: bool,
    /// The host, without the brackets of an IPv6 address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Host and port as given.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

const DEBOUNCE: Duration = Duration::from_secs(1);
const SPLAY: Duration = Duration::from_secs(30);
const MIN_INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of a rollout: pods are replaced.
const ROLLOUT_INTERVAL: Duration = Duration::from_mins(5);

/// What is done when the content of outputs changed.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[schemars(rename = "Reload")]
pub(super) enum ReloadBlock {
    /// A process in the pod gets a signal. The pod needs `shareProcessNamespace: true`, and the process keytide's user.
    Signal(SignalBlock),
    /// A server is called.
    Http(HttpCallBlock),
    /// A file holds a number that grows by one at each change, at once, for those who watch files.
    Generation(GenerationBlock),
    /// The pods of a workload in keytide's namespace are replaced, one restart for one change. For a hub: a configuration
    /// that writes nothing but Kubernetes Secrets. Has exactly one of `deployment`, `statefulset` and `daemonset`.
    Rollout(RolloutBlock),
}

/// A signal.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ReloadSignal")]
pub(super) struct SignalBlock {
    /// Its name in logs, metrics and status. Default: `signal`, then `signal-2` and so on.
    name: Option<Unchecked<ActionName>>,
    /// The name of the process: that of its program, or what it calls itself. Of several, those get the signal whose parent
    /// has another name. Required.
    process: Option<Unchecked<ProcessName>>,
    /// The signal, such as `HUP`; never `KILL` or `STOP`. Required.
    signal: Option<Unchecked<SignalName>>,
    /// The outputs whose changes it follows. Default: all.
    outputs: Option<Vec<Unchecked<OutputName>>>,
    /// Quiet time after the last of several changes: a duration, 0s to 10m; changes that never end put it off for ten times
    /// that. Default: `1s`.
    debounce: Option<Unchecked<Debounce>>,
    /// It is put off by a random time of at most this, so that pods do not reload all at once: a duration, 0s to 1h.
    /// Default: `30s`.
    splay: Option<Unchecked<Splay>>,
    /// Time from one attempt to the next, at least: a duration, 0s to 24h. Default: `10s`.
    min_interval: Option<Unchecked<MinInterval>>,
    /// Time limit of one attempt: a duration, 100ms to 1m. Default: `10s`.
    timeout: Option<Unchecked<ReloadTimeout>>,
}

/// A request without a body. Redirects are not followed, and no proxy is used.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ReloadHttp")]
pub(super) struct HttpCallBlock {
    /// Its name in logs, metrics and status. Default: `http`, then `http-2` and so on.
    name: Option<Unchecked<ActionName>>,
    /// An https URL; http only to this machine. Required.
    url: Option<Unchecked<HttpUrl>>,
    /// `GET`, `HEAD`, `POST`, `PUT`, `PATCH` or `DELETE`. Default: `POST`.
    method: Option<Unchecked<HttpMethod>>,
    /// Headers: name to the absolute path of the file that holds the value, which is read again for each call. Default: none.
    headers: Option<Pairs<HeaderName, AbsolutePath>>,
    /// The statuses that are success. Default: each from 200 to 299.
    expect_status: Option<Vec<Unchecked<StatusCode>>>,
    /// A file of certificates (PEM) that are trusted beside the system's; read again for each call. Default: none.
    ca_file: Option<Unchecked<AbsolutePath>>,
    /// True: the URL may be plain http also where it is not of this machine. Default: false.
    allow_plain_http: Option<Unchecked<bool>>,
    /// The outputs whose changes it follows. Default: all.
    outputs: Option<Vec<Unchecked<OutputName>>>,
    /// As of a signal. Default: `1s`.
    debounce: Option<Unchecked<Debounce>>,
    /// As of a signal. Default: `30s`.
    splay: Option<Unchecked<Splay>>,
    /// As of a signal. Default: `10s`.
    min_interval: Option<Unchecked<MinInterval>>,
    /// As of a signal. Default: `10s`.
    timeout: Option<Unchecked<ReloadTimeout>>,
}

/// A workload whose pods are replaced.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ReloadRollout")]
pub(super) struct RolloutBlock {
    /// Its name in logs, metrics and status. Default: `rollout`, then `rollout-2` and so on.
    name: Option<Unchecked<ActionName>>,
    /// The name of a Deployment.
    deployment: Option<Unchecked<ObjectName>>,
    /// The name of a `StatefulSet`.
    statefulset: Option<Unchecked<ObjectName>>,
    /// The name of a `DaemonSet`.
    daemonset: Option<Unchecked<ObjectName>>,
    /// The outputs whose changes it follows. Default: all.
    outputs: Option<Vec<Unchecked<OutputName>>>,
    /// As of a signal. Default: `1s`.
    debounce: Option<Unchecked<Debounce>>,
    /// As of a signal. Default: `30s`.
    splay: Option<Unchecked<Splay>>,
    /// As of a signal. Default: `5m`.
    min_interval: Option<Unchecked<MinInterval>>,
    /// As of a signal. Default: `10s`.
    timeout: Option<Unchecked<ReloadTimeout>>,
}

/// A file that holds a number.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ReloadGeneration")]
pub(super) struct GenerationBlock {
    /// Its name in logs, metrics and status. Default: `generation`, then `generation-2` and so on.
    name: Option<Unchecked<ActionName>>,
    /// Its path, absolute. Required.
    path: Option<Unchecked<AbsolutePath>>,
    /// The outputs whose changes it follows. Default: all.
    outputs: Option<Vec<Unchecked<OutputName>>>,
    /// True: it may lie on a disk. Default: false, only tmpfs.
    allow_disk: Option<Unchecked<bool>>,
}

/// A reload action, each field checked. The outputs are not yet known; none is all of them.
#[derive(Debug)]
pub(super) struct OurReload {
    name: ActionName,
    outputs: Option<Vec<Given<OutputName>>>,
    kind: ReloadKind,
}

pub(super) fn check_reload(blocks: Vec<Located<ReloadBlock>>, reader: &mut Reader<'_, '_>) -> Vec<Given<OurReload>> {
    let mut actions: Vec<Given<OurReload>> = Vec::new();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let kind = block.value.kind();
        let number = kinds.entry(kind).and_modify(|number| *number += 1).or_insert(1);
        let name = if *number == 1 { kind.to_owned() } else { format!("{kind}-{number}") };
        let name = ActionName::parse(name).expect("a kind and a number are a name");
        let place = reader.place(block.at, format!("keytide.reload[{i}].{kind}"));
        let Some(action) = block.value.check(name, &place, reader) else { continue };
        if let Some(twin) = actions.iter().find(|other| other.value.name == action.name) {
            let message = format!("two reload actions have this name; the other is at {}", twin.place.line());
            reader.findings.error(&place, message);
        }
        actions.push(Given { value: action, place });
    }
    actions
}

/// With the outputs that there are.
pub(super) fn finish(
    actions: Vec<Given<OurReload>>,
    outputs: &[Given<Output>],
    reads: bool,
    findings: &mut Findings<'_>,
) -> Vec<Given<Reload>> {
    let secrets: BTreeMap<OutputName, ObjectName> = outputs
        .iter()
        .filter_map(|output| match &output.value.kind {
            OutputKind::KubernetesSecret(secret) => Some((output.value.name.clone(), secret.name.clone())),
            OutputKind::EnvFile { .. } | OutputKind::Files { .. } => None,
        })
        .collect();
    let outputs: BTreeSet<OutputName> = outputs.iter().map(|output| output.value.name.clone()).collect();
    let finish = |Given { value: OurReload { name, outputs: listed, mut kind }, place }| {
        let followed = match listed {
            Some(listed) => {
                for Given { value, place } in &listed {
                    if !outputs.contains(value) {
                        findings.error(place, format!("there is no output of the name {value}"));
                    }
                }
                listed.into_iter().map(|given| given.value).collect()
            }
            None => outputs.clone(),
        };
        if let ReloadKind::Rollout { secrets: followed_secrets, .. } = &mut kind {
            if secrets.is_empty() || secrets.len() < outputs.len() {
                let message = "a rollout is for a hub, which writes nothing but Kubernetes Secrets: its pods read them when \
                               they start (outputs: kubernetes_secret)";
                findings.error(&place, message);
            }
            let follows = |(output, _): &(&OutputName, &ObjectName)| followed.contains(output);
            *followed_secrets =
                secrets.iter().filter(follows).map(|(output, secret)| (output.clone(), secret.clone())).collect();
        }
        if !reads {
            findings.notice(&place, "never done: nothing is read, so no output ever changes");
        }
        Given { value: Reload { name, outputs: followed, kind }, place }
    };
    actions.into_iter().map(finish).collect()
}

// === impl Reload ===

impl Reload {
    /// The kind in the words of the configuration.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.kind {
            ReloadKind::Signal { .. } => "signal",
            ReloadKind::Http { .. } => "http",
            ReloadKind::Generation { .. } => "generation",
            ReloadKind::Rollout { .. } => "rollout",
        }
    }

    /// The file that it writes, if it is one that writes.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        if let ReloadKind::Generation { path, .. } = &self.kind { Some(path) } else { None }
    }

    /// What it does, in a few words.
    #[must_use]
    pub fn what(&self) -> String {
        match &self.kind {
            ReloadKind::Signal { process, signal, .. } => format!("SIG{} to process {process}", signal.label()),
            ReloadKind::Http { call, .. } => format!("{} {}", call.method, call.url),
            ReloadKind::Generation { path, .. } => path.display().to_string(),
            ReloadKind::Rollout { workload, name, .. } => format!("{workload} {name}"),
        }
    }
}

// === impl Signal ===

impl Signal {
    /// Each of them.
    pub const ALL: [Self; 11] = [
        Self::Hup,
        Self::Int,
        Self::Quit,
        Self::Term,
        Self::Usr1,
        Self::Usr2,
        Self::Alrm,
        Self::Cont,
        Self::Ttin,
        Self::Ttou,
        Self::Winch,
    ];

    /// Its name, without `SIG`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Term => "TERM",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
            Self::Alrm => "ALRM",
            Self::Cont => "CONT",
            Self::Ttin => "TTIN",
            Self::Ttou => "TTOU",
            Self::Winch => "WINCH",
        }
    }

    /// Parses its name, with or without `SIG`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        Self::ALL.into_iter().find(|signal| signal.label() == name)
    }
}

// === impl Url ===

impl Url {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let legal = |c: char| c.is_ascii_graphic() && !"\"#<>\\^`{|}".contains(c);
        let (scheme, rest) = text.split_once("://").filter(|_| text.chars().all(legal) && text.len() < 2048)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = host_and_port(authority)?;
        let of_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let six = authority.starts_with('[');
        let named = if six { host.parse::<std::net::Ipv6Addr>().is_ok() } else { host.chars().all(of_name) };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0)?,
            None if port.is_empty() && tls => 443,
            None if port.is_empty() => 80,
            None => return None,
        };
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let (host, authority) = (host.to_owned(), authority.to_owned());
        (named && !host.is_empty()).then_some(Self { tls, host, port, authority, target })
    }

    fn is_of_this_machine(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, host: _, port: _, authority, target } = self;
        let path = target.split('?').next().unwrap_or_default();
        write!(f, "{}://{authority}{path}", if *tls { "https" } else { "http" })
    }
}

// === impl ReloadBlock ===

impl ReloadBlock {
    fn kind(&self) -> &'static str {
        match self {
            Self::Signal(_) => "signal",
            Self::Http(_) => "http",
            Self::Generation(_) => "generation",
            Self::Rollout(_) => "rollout",
        }
    }

    fn check(self, default_name: ActionName, place: &Place, reader: &mut Reader<'_, '_>) -> Option<OurReload> {
        let path = |field: &str| format!("{}.{field}", place.path);
        let (name, outputs, kind) =
            match self {
                Self::Signal(block) => {
                    let SignalBlock { name, process, signal, outputs, debounce, splay, min_interval, timeout } = block;
                    let process = reader.required(place, "process", process);
                    let signal = reader.required(place, "signal", signal);
                    let when = check_pace(place, debounce, splay, min_interval, timeout, reader);
                    let kind = process.zip(signal).map(|(ProcessName(process), SignalName(signal))| {
                        ReloadKind::Signal { process, signal, pace: when }
                    });
                    (name, outputs, kind)
                }
                Self::Http(block) => {
                    let HttpCallBlock {
                        name,
                        url,
                        method,
                        headers,
                        expect_status,
                        ca_file,
                        allow_plain_http,
                        outputs,
                        debounce,
                        splay,
                        min_interval,
                        timeout,
                    } = block;
                    let url = reader.required(place, "url", url).map(|HttpUrl(url)| url);
                    let plain = reader.value(&path("allow_plain_http"), allow_plain_http).unwrap_or(false);
                    if url.as_ref().is_some_and(|url| !url.tls && !plain && !url.is_of_this_machine()) {
                        let message = "plain http only to this machine: expected https, or allow_plain_http: true";
                        reader.findings.error(&Place { path: path("url"), ..place.clone() }, message);
                    }
                    let method = reader.value(&path("method"), method);
                    let headers = check_pairs(&path("headers"), headers, reader);
                    let statuses = list(&path("expect_status"), expect_status, reader);
                    if let Some(none) = statuses.as_ref().filter(|given| given.value.is_empty()) {
                        reader.findings.error(&none.place, "expected at least one status");
                    }
                    let call = url.map(|url| HttpCall {
                        url,
                        method: method.map_or_else(|| "POST".to_owned(), |HttpMethod(method)| method),
                        headers: headers.into_iter().map(|(name, file)| (name.0, file.value.0)).collect(),
                        expect_status: statuses
                            .map(|given| given.value.into_iter().map(|StatusCode(status)| status).collect()),
                        ca_file: reader.value(&path("ca_file"), ca_file).map(|AbsolutePath(path)| path),
                    });
                    let when = check_pace(place, debounce, splay, min_interval, timeout, reader);
                    (name, outputs, call.map(|call| ReloadKind::Http { call, pace: when }))
                }
                Self::Generation(block) => {
                    let GenerationBlock { name, path: file, outputs, allow_disk } = block;
                    let file = reader.required(place, "path", file);
                    let allow_disk = reader.value(&path("allow_disk"), allow_disk).unwrap_or(false);
                    (name, outputs, file.map(|AbsolutePath(path)| ReloadKind::Generation { path, allow_disk }))
                }
                Self::Rollout(block) => {
                    let (name, outputs, kind) = block.check(place, reader);
                    (name, outputs, kind)
                }
            };
        let name = reader.value(&path("name"), name).unwrap_or(default_name);
        let outputs = outputs.map(|outputs| {
            let read = |(i, output)| reader.certain(&path(&format!("outputs[{i}]")), Some(output));
            outputs.into_iter().enumerate().filter_map(read).collect()
        });
        Some(OurReload { name, outputs, kind: kind? })
    }
}

type Outputs = Option<Vec<Unchecked<OutputName>>>;

impl RolloutBlock {
    fn check(
        self,
        place: &Place,
        reader: &mut Reader<'_, '_>,
    ) -> (Option<Unchecked<ActionName>>, Outputs, Option<ReloadKind>) {
        let Self { name, deployment, statefulset, daemonset, outputs, debounce, splay, min_interval, timeout } = self;
        let given = [
            (WorkloadKind::Deployment, "deployment", deployment),
            (WorkloadKind::StatefulSet, "statefulset", statefulset),
            (WorkloadKind::DaemonSet, "daemonset", daemonset),
        ];
        let mut given: Vec<_> = given.into_iter().filter(|(_, _, workload)| workload.is_some()).collect();
        if given.len() != 1 {
            reader.findings.error(place, "expected exactly one of deployment, statefulset and daemonset");
        }
        let workload = given.pop().and_then(|(kind, field, workload)| {
            let name: Given<ObjectName> = reader.certain(&format!("{}.{field}", place.path), workload)?;
            Some((kind, name.value))
        });
        let interval = min_interval.is_some();
        let mut when = check_pace(place, debounce, splay, min_interval, timeout, reader);
        if !interval {
            when.min_interval = ROLLOUT_INTERVAL;
        }
        let secrets = BTreeMap::new();
        let kind = workload.map(|(workload, name)| ReloadKind::Rollout { workload, name, secrets, pace: when });
        (name, outputs, kind)
    }
}

fn check_pace(
    place: &Place,
    debounce: Option<Unchecked<Debounce>>,
    splay: Option<Unchecked<Splay>>,
    min_interval: Option<Unchecked<MinInterval>>,
    timeout: Option<Unchecked<ReloadTimeout>>,
    reader: &mut Reader<'_, '_>,
) -> Pace {
    let path = |field: &str| format!("{}.{field}", place.path);
    Pace {
        debounce: reader.value(&path("debounce"), debounce).map_or(DEBOUNCE, |given| given.0),
        splay: reader.value(&path("splay"), splay).map_or(SPLAY, |given| given.0),
        min_interval: reader.value(&path("min_interval"), min_interval).map_or(MIN_INTERVAL, |given| given.0),
        timeout: reader.value(&path("timeout"), timeout).map_or(TIMEOUT, |given| given.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_whole_and_show_neither_users_nor_queries() {
        let parts = |text: &str| {
            Url::parse(text).map(|url| {
                let shown = url.to_string();
                (url.tls, url.host.clone(), url.port, url.target.clone(), url.is_of_this_machine(), shown)
            })
        };
        for (text, tls, host, port, target, near, shown) in [
            (
                "http://127.0.0.1:8080/-/reload",
                false,
                "127.0.0.1",
                8080,
                "/-/reload",
                true,
                "http://127.0.0.1:8080/-/reload",
            ),
            ("https://app.example.com", true, "app.example.com", 443, "/", false, "https://app.example.com/"),
            ("http://localhost?token=x", false, "localhost", 80, "/?token=x", true, "http://localhost/"),
            ("https://[::1]:9/a?b=c/d", true, "::1", 9, "/a?b=c/d", true, "https://[::1]:9/a"),
        ] {
            let expected = (tls, host.to_owned(), port, target.to_owned(), near, shown.to_owned());
            assert_eq!(parts(text), Some(expected), "{text}");
        }
        for text in [
            "ftp://a",
            "http:/a",
            "a",
            "http://",
            "http://:80",
            "http://user@a",
            "http://user:pass@a/",
            "http://a:0",
            "http://a:99999",
            "http://[::1",
            "http://[a]",
            "http://a/#b",
            "http://a b",
            "http://a\\b",
            "http://\u{e4}/",
        ] {
            assert_eq!(parts(text), None, "{text}");
        }
    }
}

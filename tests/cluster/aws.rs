//! An AWS of one's own: the emulator in a pod, behind a Service.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{namespace::Namespace, wait::until};

/// The emulator's user that may do everything.
pub(crate) const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// Where its pod has the authority of its certificate.
const CERTIFICATE: &str = "/tmp/ca.pem";

/// The emulator, which goes with its namespace.
pub(crate) struct Aws {
    address: String,
    certificate: String,
}

/// The answer of an HTTP server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

// === impl Aws ===

impl Aws {
    /// Begins with this, which is an emulator's seed.
    pub(crate) fn start(namespace: &Namespace, seed: &Value) -> Self {
        let ports = json!([{"name": "http", "port": 80, "targetPort": 4566}, {"name": "https", "port": 443, "targetPort": 4567}]);
        namespace.apply(&[json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "emulator"},
            "spec": {"selector": {"app": "emulator"}, "ports": ports}})]);
        let service = namespace.get("service/emulator").unwrap();
        let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        let security = json!({"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}});
        let container = json!({
            "name": "emulator", "image": "localhost/emulator:1",
            "args": ["--listen", "0.0.0.0:4566", "--seed", "/etc/emulator/seed.json",
                "--tls-listen", "0.0.0.0:4567", "--tls-name", address, "--tls-ca", CERTIFICATE],
            "readinessProbe": {"tcpSocket": {"port": 4566}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "seed", "mountPath": "/etc/emulator"}],
        });
        namespace.apply(&[
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "emulator"},
                "data": {"seed.json": seed.to_string()}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "emulator", "labels": {"app": "emulator"}},
                "spec": {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
                    "securityContext": security, "containers": [container],
                    "volumes": [{"name": "seed", "configMap": {"name": "emulator"}}]}}),
        ]);
        namespace.until_ready("emulator");
        let mut aws = Self { address, certificate: String::new() };
        until("the emulator's certificate", || {
            aws.certificate = namespace.run_in("emulator", "emulator", &["cat", CERTIFICATE]).stdout;
            aws.certificate.ends_with("END CERTIFICATE-----\n")
        });
        until("the emulator behind its service", || aws.try_ask("GET", "secrets", "").is_some());
        aws
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same by HTTPS, with a certificate of its [own authority](Self::certificate).
    pub(crate) fn https(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Gives a secret a new current version.
    pub(crate) fn put(&self, name: &str, value: &Value) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.ask("PUT", &format!("secrets/{name}"), &json!({"SecretString": text}).to_string());
    }

    /// The current value of a secret.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let answer = self.answer("GET", &format!("secrets/{name}"), "");
        let found: Value = serde_json::from_str(&answer.body).unwrap();
        found["SecretString"].as_str().map(str::to_owned)
    }

    /// Does this to every call, until [`Self::well`].
    pub(crate) fn ill(&self, kind: &Value) {
        self.ask("POST", "faults", &json!({"kind": kind}).to_string());
    }

    /// Nothing is wrong with it any more.
    pub(crate) fn well(&self) {
        self.ask("DELETE", "faults", "");
    }

    /// Lets nobody reach it for a time.
    pub(crate) fn down(&self, seconds: u64) {
        self.ask("POST", &format!("down?seconds={seconds}"), "");
    }

    pub(crate) fn is_down(&self) -> bool {
        self.try_ask("GET", "secrets", "").is_none()
    }

    /// What it was asked, of one action.
    pub(crate) fn requests(&self, action: &str) -> Vec<Value> {
        let all: Vec<Value> = serde_json::from_str(&self.ask("GET", "requests", "").body).unwrap();
        all.into_iter().filter(|request| request["action"] == action).collect()
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let answer = self.answer(method, path, body);
        assert!(answer.status < 300, "{method} {path}: {answer:?}");
        answer
    }

    /// What it says, whatever that is; all that is asked can be asked twice.
    #[track_caller]
    fn answer(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut answer = None;
        until("an answer of the emulator", || {
            answer = self.try_ask(method, path, body);
            answer.is_some()
        });
        answer.unwrap()
    }

    fn try_ask(&self, method: &str, path: &str, body: &str) -> Option<Answer> {
        ask(&format!("{}:80", self.address), method, &format!("/_emulator/{path}"), body)
    }
}

/// Asks an HTTP server; None if it does not answer.
pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> Option<Answer> {
    ask_with(address, method, path, "", body)
}

/// The same with more of a head, whose lines end with CR and LF.
pub(crate) fn ask_with(address: &str, method: &str, path: &str, headers: &str, body: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = body.len();
    // Of version 1.0, whose answers come in one piece.
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n{headers}");
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

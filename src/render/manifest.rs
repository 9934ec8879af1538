//! A Kubernetes Secret as the API server takes it, and the rules that it would refuse it by.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::domain::{
    kubernetes::{Manifest, ObjectName, SecretType},
    value::SecretValue,
};

/// The most bytes that the values of a Secret have together (Kubernetes, `MaxSecretSize`).
pub const LARGEST: usize = 1024 * 1024;
/// The most bytes that an object's annotations have together (Kubernetes, `TotalAnnotationSizeLimitB`).
const LARGEST_ANNOTATIONS: usize = 256 * 1024;

/// The Secret as it is sent. Its `Debug` shows no value.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    #[serde(rename = "type")]
    of_type: &'a str,
    data: BTreeMap<&'a str, Encoded<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
}

struct Encoded<'a>(&'a SecretValue);

/// The Secret for server-side apply.
#[must_use]
pub fn applied<'a>(name: &'a ObjectName, manifest: &'a Manifest, resource_version: Option<&'a str>) -> Applied<'a> {
    let Manifest { kind, data, labels, annotations } = manifest;
    Applied {
        api_version: "v1",
        kind: "Secret",
        metadata: Metadata { name: name.as_str(), resource_version, labels, annotations },
        of_type: kind.as_str(),
        data: data.iter().map(|(name, value)| (name.as_str(), Encoded(value))).collect(),
    }
}

/// The rules of Kubernetes that can be checked before the call: sizes, and what each type must have.
///
/// # Errors
/// What is wrong, without a value.
pub fn check(manifest: &Manifest) -> Result<(), String> {
    let Manifest { kind, data, annotations, labels: _ } = manifest;
    let size: usize = data.values().map(SecretValue::len).sum();
    if size > LARGEST {
        return Err(format!(
            "its values have {size} bytes together, and Kubernetes takes {LARGEST}: give it fewer keys"
        ));
    }
    let size: usize = annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > LARGEST_ANNOTATIONS {
        return Err(format!(
            "its annotations, which name each secret that it is made of, have {size} bytes, and Kubernetes takes \
             {LARGEST_ANNOTATIONS}: give it keys of fewer secrets, or use a primary secret"
        ));
    }
    let needs = |names: &[&str]| match names.iter().find(|name| !data.contains_key(**name)) {
        Some(missing) => Err(format!("type {kind} needs the key {missing}; rename gives a key another name")),
        None => Ok(()),
    };
    let json = |name: &str| {
        needs(&[name])?;
        let object = |value: &SecretValue| serde_json::from_str::<BTreeMap<String, &RawValue>>(value.expose()).is_ok();
        let fine = data.get(name).is_some_and(object);
        if fine { Ok(()) } else { Err(format!("type {kind} needs a JSON object in the key {name}")) }
    };
    match kind.as_str() {
        SecretType::TLS => needs(&["tls.crt", "tls.key"]),
        SecretType::DOCKER_CONFIG => json(".dockerconfigjson"),
        SecretType::DOCKER_CFG => json(".dockercfg"),
        SecretType::SSH_AUTH => needs(&["ssh-privatekey"]),
        SecretType::BASIC_AUTH if !data.contains_key("username") && !data.contains_key("password") => {
            Err(format!("type {kind} needs the key username or the key password; rename gives a key another name"))
        }
        _ => Ok(()),
    }
}

// === impl Encoded ===

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.0.expose())))
    }
}

impl fmt::Debug for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(kind: &str, data: &[(&str, &str)]) -> Manifest {
        let value = |text: &&str| SecretValue::new((*text).to_owned());
        Manifest {
            kind: SecretType::parse(kind).unwrap(),
            data: data.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn each_type_has_its_keys() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);
        let cases: [Case<'_>; 13] = [
            ("Opaque", &[], true),
            ("example.com/own", &[("A", "1")], true),
            ("kubernetes.io/tls", &[("tls.crt", "c"), ("tls.key", "k")], true),
            ("kubernetes.io/tls", &[("tls.crt", "c")], false),
            ("kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", "{\"auths\": {}}")], true),
            ("kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", "no")], false),
            ("kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", "[]")], false),
            ("kubernetes.io/dockerconfigjson", &[("A", "{}")], false),
            ("kubernetes.io/basic-auth", &[("username", "u")], true),
            ("kubernetes.io/basic-auth", &[("password", "p")], true),
            ("kubernetes.io/basic-auth", &[("A", "p")], false),
            ("kubernetes.io/ssh-auth", &[("ssh-privatekey", "k")], true),
            ("kubernetes.io/ssh-auth", &[("A", "k")], false),
        ];
        for (kind, data, fine) in cases {
            assert_eq!(check(&manifest(kind, data)).is_ok(), fine, "{kind} {data:?}");
        }
    }

    #[test]
    fn a_mebibyte_is_taken_and_a_byte_more_is_not() {
        let whole = "x".repeat(LARGEST);
        assert!(check(&manifest("Opaque", &[("A", &whole)])).is_ok());
        assert!(check(&manifest("Opaque", &[("A", &whole), ("B", "x")])).unwrap_err().contains("1048577"));
    }

    #[test]
    fn it_is_sent_as_kubernetes_reads_it_and_shown_without_values() {
        let name = ObjectName::parse("app-keys").unwrap();
        let manifest = manifest("Opaque", &[("A", "canary")]);
        let applied = applied(&name, &manifest, Some("7"));
        assert_eq!(
            serde_json::to_string(&applied).unwrap(),
            r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"app-keys","resourceVersion":"7","labels":{},"annotations":{}},"type":"Opaque","data":{"A":"Y2FuYXJ5"}}"#
        );
        let shown = format!("{applied:?}{manifest:?}");
        assert!(!shown.contains("canary") && !shown.contains("Y2FuYXJ5"), "{shown}");
    }
}

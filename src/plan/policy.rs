//! What a configuration may do in AWS, and the smallest policies that allow it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::domain::{
    identity::{Account, Role, partition_of},
    mapping::Request,
    names::SecretId,
};

/// What stands in a document where nobody said what belongs there.
pub const ACCOUNT: &str = "ACCOUNT";

/// Where the resources are.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// The region.
    pub region: &'a str,
    /// The account of the secrets that are called by name; [`ACCOUNT`] stands for it where it is not known.
    pub account: Option<Account>,
}

/// One action on one resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Such as `secretsmanager:GetSecretValue`.
    pub action: &'static str,
    /// An ARN, perhaps with wildcards.
    pub resource: String,
}

/// A document of IAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    #[serde(rename = "Version")]
    version: &'static str,
    #[serde(rename = "Statement")]
    statements: Vec<Statement>,
}

/// A statement, which allows something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Value>,
    action: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resource: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<Value>,
}

/// Who may become a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trusted<'a> {
    /// A service account of a cluster, by its OIDC provider (IRSA).
    ServiceAccount {
        /// The provider, without `https://`.
        provider: &'a str,
        /// `NAMESPACE:NAME`.
        service_account: &'a str,
    },
    /// A service account that a Pod Identity association names.
    PodIdentity,
    /// Another role, or a user, by its ARN.
    Principal {
        /// Its ARN.
        arn: &'a str,
        /// What it has to name.
        external_id: Option<&'a str>,
        /// True if sessions bring tags.
        tags: bool,
    },
}

/// What virtual keys need, each on every secret below the prefix.
const WRITES: [&str; 9] = [
    "secretsmanager:CreateSecret",
    "secretsmanager:PutSecretValue",
    "secretsmanager:UpdateSecret",
    "secretsmanager:DescribeSecret",
    "secretsmanager:GetSecretValue",
    "secretsmanager:DeleteSecret",
    "secretsmanager:RestoreSecret",
    "secretsmanager:TagResource",
    "secretsmanager:UntagResource",
];
/// And with replicas.
const REPLICATES: [&str; 2] =
    ["secretsmanager:ReplicateSecretToRegions", "secretsmanager:RemoveRegionsFromReplication"];

/// What reading needs: each secret by itself, and the batch call where it is made.
#[must_use]
pub fn reads(requests: &BTreeSet<Request>, batches: bool, place: &Place<'_>) -> Vec<Need> {
    let secrets: BTreeSet<String> = requests.iter().map(|request| place.secret(&request.secret)).collect();
    let get = secrets.into_iter().map(|resource| Need { action: "secretsmanager:GetSecretValue", resource });
    // AWS gives this action no resource (Service Authorization Reference).
    let batch = batches.then(|| Need { action: "secretsmanager:BatchGetSecretValue", resource: "*".to_owned() });
    get.chain(batch).collect()
}

/// What storing virtual keys needs.
#[must_use]
pub fn writes(prefix: &str, replicated: bool, place: &Place<'_>) -> Vec<Need> {
    let resource = place.arn(&format!("{prefix}*"));
    let more: &[&str] = if replicated { &REPLICATES } else { &[] };
    let actions = WRITES.iter().chain(more);
    actions.map(|action| Need { action, resource: resource.clone() }).collect()
}

/// What assuming a role needs.
#[must_use]
pub fn assumes(role: &Role, tags: bool) -> Vec<Need> {
    let resource = role.arn.to_string();
    let tag = tags.then(|| Need { action: "sts:TagSession", resource: resource.clone() });
    [Need { action: "sts:AssumeRole", resource: resource.clone() }].into_iter().chain(tag).collect()
}

// === impl Place ===

impl Place<'_> {
    /// The ARN of a secret. AWS puts a hyphen and six characters behind the name, which only it knows.
    #[must_use]
    pub fn secret(&self, secret: &SecretId) -> String {
        let name = secret.as_str();
        if !name.starts_with("arn:") {
            return self.arn(&format!("{name}-??????"));
        }
        let suffix = name.rsplit_once('-').map_or("", |(_, suffix)| suffix);
        let whole = suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if whole { name.to_owned() } else { format!("{name}-??????") }
    }

    fn arn(&self, name: &str) -> String {
        let account = self.account.as_ref().map_or(ACCOUNT, Account::as_str);
        format!("arn:{}:secretsmanager:{}:{account}:secret:{name}", partition_of(self.region), self.region)
    }
}

// === impl Policy ===

impl Policy {
    /// Allows exactly this: one statement for the actions that share their resources.
    #[must_use]
    pub fn allowing(needs: &[Need]) -> Self {
        let mut resources: BTreeMap<&'static str, BTreeSet<&str>> = BTreeMap::new();
        for Need { action, resource } in needs {
            resources.entry(action).or_default().insert(resource);
        }
        let mut shared: BTreeMap<BTreeSet<&str>, Vec<&'static str>> = BTreeMap::new();
        for (action, resources) in resources {
            shared.entry(resources).or_default().push(action);
        }
        let statements = shared.into_iter().map(|(resources, action)| Statement {
            effect: "Allow",
            principal: None,
            action,
            resource: resources.into_iter().map(str::to_owned).collect(),
            condition: None,
        });
        Self { version: "2012-10-17", statements: statements.collect() }
    }

    /// Also lets Secrets Manager, and nobody else, use these keys of KMS for the caller.
    #[must_use]
    pub fn with_keys(mut self, keys: &[String], also_encrypt: bool, region: &str) -> Self {
        if !keys.is_empty() {
            let encrypt: &[&str] = if also_encrypt { &["kms:GenerateDataKey"] } else { &[] };
            self.statements.push(Statement {
                effect: "Allow",
                principal: None,
                action: ["kms:Decrypt"].iter().chain(encrypt).copied().collect(),
                resource: keys.to_vec(),
                condition: Some(json!({"StringEquals": {
                    "kms:ViaService": format!("secretsmanager.{region}.{}", domain_of(region))
                }})),
            });
        }
        self
    }

    /// Lets somebody become the role that it belongs to.
    #[must_use]
    pub fn trusting(trusted: &Trusted<'_>, partition: &str, account: Option<&Account>) -> Self {
        let account = account.map_or(ACCOUNT, Account::as_str);
        let (principal, action, condition) = match trusted {
            Trusted::ServiceAccount { provider, service_account } => {
                let mut equals = Map::new();
                equals.insert(format!("{provider}:aud"), json!("sts.amazonaws.com"));
                equals.insert(format!("{provider}:sub"), json!(format!("system:serviceaccount:{service_account}")));
                let arn = format!("arn:{partition}:iam::{account}:oidc-provider/{provider}");
                let condition = json!({"StringEquals": equals});
                (json!({"Federated": arn}), vec!["sts:AssumeRoleWithWebIdentity"], Some(condition))
            }
            Trusted::PodIdentity => {
                (json!({"Service": "pods.eks.amazonaws.com"}), vec!["sts:AssumeRole", "sts:TagSession"], None)
            }
            Trusted::Principal { arn, external_id, tags } => {
                let condition = external_id.map(|id| json!({"StringEquals": {"sts:ExternalId": id}}));
                let tag: &[&str] = if *tags { &["sts:TagSession"] } else { &[] };
                let action = ["sts:AssumeRole"].iter().chain(tag).copied().collect();
                (json!({"AWS": arn}), action, condition)
            }
        };
        let statement =
            Statement { effect: "Allow", principal: Some(principal), action, resource: Vec::new(), condition };
        Self { version: "2012-10-17", statements: vec![statement] }
    }

    /// True if it allows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

fn domain_of(region: &str) -> &'static str {
    match partition_of(region) {
        "aws-cn" => "amazonaws.com.cn",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        "aws-iso-e" => "cloud.adc-e.uk",
        "aws-iso-f" => "csp.hci.ic.gov",
        "aws-eusc" => "amazonaws.eu",
        _ => "amazonaws.com",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(account: Option<&str>) -> Place<'static> {
        Place { region: "eu-west-1", account: account.and_then(Account::parse) }
    }

    fn request(secret: &str) -> Request {
        Request { secret: SecretId::parse(secret).unwrap(), stage: None }
    }

    #[test]
    fn a_secret_is_named_as_narrowly_as_its_name_allows() {
        for (secret, arn) in [
            ("prod/db", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-??????"),
            (
                "arn:aws:secretsmanager:eu-west-1:999999999999:secret:x/y",
                "arn:aws:secretsmanager:eu-west-1:999999999999:secret:x/y-??????",
            ),
            (
                "arn:aws:secretsmanager:eu-west-1:999999999999:secret:x/y-AbC123",
                "arn:aws:secretsmanager:eu-west-1:999999999999:secret:x/y-AbC123",
            ),
        ] {
            assert_eq!(place(Some("123456789012")).secret(&SecretId::parse(secret).unwrap()), arn);
        }
        assert!(place(None).secret(&SecretId::parse("a").unwrap()).contains(":ACCOUNT:secret:a-??????"));
    }

    #[test]
    fn a_policy_has_one_statement_for_the_actions_that_share_their_resources() {
        let here = place(Some("123456789012"));
        let mut needs = reads(&[request("a"), request("b")].into(), true, &here);
        needs.extend(writes("litellm/", false, &here));
        let policy = serde_json::to_value(Policy::allowing(&needs)).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        assert_eq!(policy["Version"], "2012-10-17");
        let batch = json!({"Effect": "Allow", "Action": ["secretsmanager:BatchGetSecretValue"], "Resource": ["*"]});
        assert!(statements.contains(&batch), "{policy}");
        let get = statements.iter().find(|one| one["Action"] == json!(["secretsmanager:GetSecretValue"])).unwrap();
        assert_eq!(get["Resource"].as_array().unwrap().len(), 3, "{policy}");
        assert_eq!(statements.len(), 3, "{policy}");
    }
}

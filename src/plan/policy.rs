//! What a configuration may do in AWS, and the smallest policies that allow it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::domain::{
    identity::{Account, Role, partition_of},
    mapping::Request,
    names::SecretId,
    virtual_key::{Operation, Rules},
};

/// What stands in a document where nobody said what belongs there. No ARN and no name has such brackets, and IAM takes no
/// document that has them.
pub const ACCOUNT: &str = "<ACCOUNT>";

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

/// What reading needs: each secret by itself, and the batch call where it is made.
#[must_use]
pub fn reads(requests: &BTreeSet<Request>, batches: bool, place: &Place<'_>) -> Vec<Need> {
    let secrets: BTreeSet<String> = requests.iter().flat_map(|request| place.secret(&request.secret)).collect();
    let get = secrets.into_iter().map(|resource| Need { action: "secretsmanager:GetSecretValue", resource });
    // AWS gives this action no resource (Service Authorization Reference).
    let batch = batches.then(|| Need { action: "secretsmanager:BatchGetSecretValue", resource: "*".to_owned() });
    get.chain(batch).collect()
}

/// What storing virtual keys needs, on every secret below the prefix and on the others that entries may name.
#[must_use]
pub fn writes(rules: &Rules, place: &Place<'_>) -> Vec<Need> {
    let Rules { prefix, settings, operations, allow, allow_names, hosted: _, teams: _ } = rules;
    let has = |operation| operations.contains(&operation);
    let stores = has(Operation::Create) || has(Operation::Rotate);
    let moves = has(Operation::Rename) || has(Operation::Rotate);
    let deletes = moves || has(Operation::Delete);
    let replicates = !settings.replica_regions.is_empty() || !allow.replica_regions.is_empty();
    let actions = [
        ("secretsmanager:DescribeSecret", true),
        ("secretsmanager:CreateSecret", stores || moves),
        ("secretsmanager:PutSecretValue", stores || moves),
        // Only a rename reads a value, which it moves.
        ("secretsmanager:GetSecretValue", has(Operation::Rename)),
        ("secretsmanager:RestoreSecret", stores || moves),
        ("secretsmanager:UpdateSecret", stores || moves),
        ("secretsmanager:TagResource", stores || moves),
        ("secretsmanager:UntagResource", stores || moves),
        ("secretsmanager:DeleteSecret", deletes),
        ("secretsmanager:ReplicateSecretToRegions", replicates && (stores || moves)),
        ("secretsmanager:RemoveRegionsFromReplication", replicates && deletes),
    ];
    // A name that nobody has matches no resource with six characters behind it, and AWS then says that access is denied.
    let others = allow_names.iter().flat_map(|name| [format!("{name}-??????"), name.to_string()]);
    let others = others.map(|name| place.arn(&name));
    let resources: Vec<String> = std::iter::once(place.arn(&format!("{prefix}*"))).chain(others).collect();
    let needed = actions.into_iter().filter(|(_, needed)| *needed);
    needed
        .flat_map(|(action, _)| resources.iter().map(move |resource| Need { action, resource: resource.clone() }))
        .collect()
}

/// What assuming a role needs.
#[must_use]
pub fn assumes(role: &Role, tags: bool) -> Vec<Need> {
    let resource = role.arn.to_string();
    let tag = tags.then(|| Need { action: "sts:TagSession", resource: resource.clone() });
    [Need { action: "sts:AssumeRole", resource: resource.clone() }].into_iter().chain(tag).collect()
}

/// For each role of a chain, whether its sessions carry tags: its own, those that an earlier role passes on, or those of EKS
/// Pod Identity, which go on into every later session. Then `sts:TagSession` is needed (IAM, session tags).
#[must_use]
pub fn tagged(roles: &[Role], from_pod_identity: bool) -> Vec<bool> {
    let mut inherited = from_pod_identity;
    let carries = roles.iter().map(|role| {
        let carries = inherited || !role.session_tags.is_empty();
        inherited |= !role.transitive_tag_keys.is_empty();
        carries
    });
    carries.collect()
}

// === impl Place ===

impl Place<'_> {
    /// The ARN of a secret. AWS puts a hyphen and six characters behind the name, which only it knows. An ARN that ends in
    /// six small letters may be without them, such as `…:secret:app/my-secret`: then both are named.
    #[must_use]
    pub fn secret(&self, secret: &SecretId) -> Vec<String> {
        let name = secret.as_str();
        if !name.starts_with("arn:") {
            return vec![self.arn(&format!("{name}-??????"))];
        }
        let suffix = name.rsplit_once('-').map_or("", |(_, suffix)| suffix);
        let six = suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let word = suffix.bytes().all(|byte| byte.is_ascii_lowercase());
        let whole = six.then(|| name.to_owned());
        let partial = (!six || word).then(|| format!("{name}-??????"));
        whole.into_iter().chain(partial).collect()
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

    /// Also lets Secrets Manager, and nobody else, use this key of KMS for the caller: to read, and where it is to write.
    #[must_use]
    pub fn with_key(mut self, key: &str, writes: bool, region: &str) -> Self {
        // UpdateSecret encrypts what is there anew only with kms:Encrypt (AWS, `UpdateSecret`, `KmsKeyId`).
        let encrypt: &[&str] = if writes { &["kms:Encrypt", "kms:GenerateDataKey"] } else { &[] };
        let service = format!("secretsmanager.{region}.{}", domain_of(region));
        self.statements.push(Statement {
            effect: "Allow",
            principal: None,
            action: ["kms:Decrypt"].iter().chain(encrypt).copied().collect(),
            resource: vec![key.to_owned()],
            condition: Some(json!({"StringEquals": {"kms:ViaService": service}})),
        });
        self
    }

    /// Lets somebody become the role that it belongs to.
    #[must_use]
    pub fn trusting(trusted: &Trusted<'_>, partition: &str, account: Option<&Account>) -> Self {
        let account = account.map_or(ACCOUNT, Account::as_str);
        let statement = |principal: Value, action: &[&'static str], condition: Option<Value>| Statement {
            effect: "Allow",
            principal: Some(principal),
            action: action.to_vec(),
            resource: Vec::new(),
            condition,
        };
        let statements = match trusted {
            Trusted::ServiceAccount { provider, service_account } => {
                let mut equals = Map::new();
                equals.insert(format!("{provider}:aud"), json!("sts.amazonaws.com"));
                equals.insert(format!("{provider}:sub"), json!(format!("system:serviceaccount:{service_account}")));
                let arn = format!("arn:{partition}:iam::{account}:oidc-provider/{provider}");
                let condition = json!({"StringEquals": equals});
                vec![statement(json!({"Federated": arn}), &["sts:AssumeRoleWithWebIdentity"], Some(condition))]
            }
            Trusted::PodIdentity => {
                let service = json!({"Service": "pods.eks.amazonaws.com"});
                vec![statement(service, &["sts:AssumeRole", "sts:TagSession"], None)]
            }
            // A condition on the external id belongs to AssumeRole alone.
            Trusted::Principal { arn, external_id: Some(id), tags } => {
                let condition = json!({"StringEquals": {"sts:ExternalId": id}});
                let assume = statement(json!({"AWS": arn}), &["sts:AssumeRole"], Some(condition));
                let tag = tags.then(|| statement(json!({"AWS": arn}), &["sts:TagSession"], None));
                [assume].into_iter().chain(tag).collect()
            }
            Trusted::Principal { arn, external_id: None, tags } => {
                let actions = ["sts:AssumeRole", "sts:TagSession"];
                let actions = if *tags { &actions[..] } else { &actions[..1] };
                vec![statement(json!({"AWS": arn}), actions, None)]
            }
        };
        Self { version: "2012-10-17", statements }
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
        let there = "arn:aws:secretsmanager:eu-west-1:999999999999:secret:";
        for (secret, arns) in [
            ("prod/db", &["arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-??????"][..]),
            (&format!("{there}x/y"), &[&format!("{there}x/y-??????")]),
            (&format!("{there}x/y-AbC123"), &[&format!("{there}x/y-AbC123")]),
            (&format!("{there}my-secret"), &[&format!("{there}my-secret"), &format!("{there}my-secret-??????")]),
        ] {
            assert_eq!(place(Some("123456789012")).secret(&SecretId::parse(secret).unwrap()), arns);
        }
        let unknown = place(None).secret(&SecretId::parse("a").unwrap());
        assert!(unknown[0].contains(":<ACCOUNT>:secret:a-??????"), "{unknown:?}");
    }

    #[test]
    fn a_policy_has_one_statement_for_the_actions_that_share_their_resources() {
        let here = place(Some("123456789012"));
        let mut needs = reads(&[request("a"), request("b")].into(), true, &here);
        let operations = Operation::ALL.into_iter().collect();
        needs.extend(writes(&Rules { prefix: "litellm/".to_owned(), operations, ..Rules::default() }, &here));
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

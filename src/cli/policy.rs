//! `keytide policy`: the smallest policies for a configuration, ready for `aws iam`.

use serde::Serialize;

use super::{Exit, Form, complain, print};
use crate::{
    config::{self, Aws, Config, Credentials, Environment, Identity, Sources, VirtualKeys},
    domain::identity::{Account, Role, RoleArn, partition_of},
    plan::{
        fan_out::Mapping,
        policy::{ACCOUNT, Need, Place, Policy, Trusted, assumes, reads, writes},
    },
    source,
};

/// What the configuration does not say.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) account: Option<Account>,
    pub(super) oidc_provider: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) kms_keys: Vec<String>,
    pub(super) document: Option<Kind>,
    pub(super) of: Option<String>,
}

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// What the identity may do.
    Permissions,
    /// Who may become the role: a service account, by the cluster's OIDC provider (IRSA).
    IrsaTrust,
    /// Who may become the role: a service account, by a Pod Identity association.
    PodIdentityTrust,
    /// Who may become the role: the identity before it.
    RoleTrust,
}

/// Somebody of a chain, and what he needs.
#[derive(Debug, Default)]
struct Holder {
    /// The ARN of a role, or in words who it is.
    name: String,
    needs: Vec<Need>,
    reads: bool,
    writes: bool,
    trust: Vec<(Kind, Policy)>,
}

#[derive(Debug, Serialize)]
struct Document {
    of: String,
    kind: Kind,
    #[serde(rename = "document")]
    policy: Policy,
}

/// How the first identity of a chain is called for `--of`.
const BASE: &str = "base";
const OIDC_PROVIDER: &str = "OIDC_PROVIDER";
const SERVICE_ACCOUNT: &str = "NAMESPACE:SERVICE_ACCOUNT";
const PRINCIPAL: &str = "ARN_OF_THE_ROLE_OR_USER_BEFORE";

/// Prints the documents.
pub(super) fn policy(sources: &Sources, options: &Options, form: Form) -> Exit {
    let config = match config::load(sources, &Environment::of_process().without_personal_credentials()) {
        Ok(config) => config,
        Err(errors) => {
            complain(&format!("the configuration is not valid:\n{errors}"));
            return Exit::Usage;
        }
    };
    let region = config.aws.region.clone();
    let kms_key_id = config.virtual_keys.as_ref().and_then(|keys| keys.kms_key_id.clone());
    let holders = holders(&config, options);
    let first = holders.first().map(|holder| holder.name.clone());
    let mut documents = Vec::new();
    for Holder { name, needs, reads, writes, trust } in holders {
        let mut keys = options.kms_keys.clone();
        keys.extend(kms_key_id.iter().filter(|id| writes && id.starts_with("arn:")).cloned());
        let keys = if reads || writes { keys.as_slice() } else { &[] };
        let permissions = Policy::allowing(&needs).with_keys(keys, writes, &region);
        if !permissions.is_empty() {
            documents.push(Document { of: name.clone(), kind: Kind::Permissions, policy: permissions });
        }
        documents.extend(trust.into_iter().map(|(kind, policy)| Document { of: name.clone(), kind, policy }));
    }
    documents.retain(|document| {
        options.document.is_none_or(|kind| kind == document.kind)
            && options
                .of
                .as_ref()
                .is_none_or(|of| *of == document.of || (of == BASE && first.as_ref() == Some(&document.of)))
    });
    let bare = options.document.is_some();
    let text = match (form, &documents[..]) {
        (_, []) => {
            complain("there is no such document for this configuration; without --document and --of, all are shown");
            return Exit::Usage;
        }
        (Form::Json, documents) => pretty(&documents),
        (Form::Text, [document]) if bare => pretty(&document.policy),
        (Form::Text, several) if bare => {
            let names: Vec<&str> = several.iter().map(|document| document.of.as_str()).collect();
            complain(&format!(
                "several identities have such a document; choose with --of: {BASE}, or one of {}",
                names.join(", ")
            ));
            return Exit::Usage;
        }
        (Form::Text, documents) => {
            let shown = documents
                .iter()
                .map(|Document { of, kind, policy }| format!("# {of}: {}\n{}", kind.title(), pretty(policy)));
            shown.collect::<Vec<_>>().join("\n")
        }
    };
    for (placeholder, option) in [
        (ACCOUNT, "--account"),
        (OIDC_PROVIDER, "--oidc-provider"),
        (SERVICE_ACCOUNT, "--service-account"),
        (PRINCIPAL, "the ARN by hand: the configuration does not say whose keys they are"),
    ] {
        if text.contains(placeholder) {
            complain(&format!("{placeholder} stands for what the configuration does not say: give {option}"));
        }
    }
    if let Some(id) = kms_key_id.filter(|id| !id.starts_with("arn:")) {
        complain(&format!("give the ARN of the KMS key {id} as --kms-key: a policy cannot name it otherwise"));
    }
    print(&text)
}

/// Everybody of both chains, in the order in which they are assumed, with what each needs.
fn holders(config: &Config, options: &Options) -> Vec<Holder> {
    let Config { aws: Aws { region, reader, writer, .. }, keys, wholesale, virtual_keys, .. } = config;
    let requests = Mapping::new(keys.clone(), wholesale.clone()).requests();
    let calls = source::secrets_manager::call_count(&requests);
    let writes_of = |place: &Place<'_>| match virtual_keys {
        Some(VirtualKeys { prefix, replica_regions, kms_key_id: _ }) => {
            writes(prefix, !replica_regions.is_empty(), place)
        }
        None => Vec::new(),
    };
    let mut holders = Vec::new();
    let place = place(region, reader, options);
    let mut needs = reads(&requests, calls.batch > 0, &place);
    let writes_too = writer.is_none() && virtual_keys.is_some();
    if writes_too {
        needs.extend(writes_of(&place));
    }
    add_chain(&mut holders, reader, region, needs, (!requests.is_empty(), writes_too), options);
    if let Some(writer) = writer {
        let needs = writes_of(&self::place(region, writer, options));
        add_chain(&mut holders, writer, region, needs, (false, virtual_keys.is_some()), options);
    }
    holders
}

/// Where the secrets of an identity are: in its own account.
fn place<'a>(region: &'a str, identity: &Identity, options: &Options) -> Place<'a> {
    let role = identity.all_roles().last().map(|role| role.arn.account());
    let expected = || identity.expected.role.as_ref().map(RoleArn::account).or(identity.expected.account.clone());
    Place { region, account: role.or_else(expected).or_else(|| options.account.clone()) }
}

fn add_chain(
    holders: &mut Vec<Holder>,
    identity: &Identity,
    region: &str,
    needs: Vec<Need>,
    (reads, writes): (bool, bool),
    options: &Options,
) {
    let Identity { base, roles, expected } = identity;
    let account = roles.first().map(|role| role.arn.account()).or_else(|| options.account.clone());
    let provider = options.oidc_provider.as_deref().unwrap_or(OIDC_PROVIDER);
    let provider = provider.trim_start_matches("https://").trim_end_matches('/');
    let service_account = options.service_account.as_deref().unwrap_or(SERVICE_ACCOUNT);
    let irsa = |account: Option<&Account>| {
        let trusted = Trusted::ServiceAccount { provider, service_account };
        (Kind::IrsaTrust, Policy::trusting(&trusted, partition_of(region), account))
    };
    let pod_identity = || (Kind::PodIdentityTrust, Policy::trusting(&Trusted::PodIdentity, partition_of(region), None));
    // Of a pod whose role the configuration does not name, the role that is expected is the one.
    let named = expected.role.clone().filter(|_| roles.is_empty());
    let of_pod = |words: &str| named.as_ref().map_or(words.to_owned(), ToString::to_string);
    let (name, arn, trust) = match base {
        Credentials::Static(keys) => (format!("the user of access key {}", keys.access_key_id), None, Vec::new()),
        Credentials::Profile(profile) => (format!("the identity of profile {}", profile.name), None, Vec::new()),
        Credentials::WebIdentity { role, .. } => {
            (role.arn.to_string(), Some(role.arn.clone()), vec![irsa(Some(&role.arn.account()))])
        }
        Credentials::Container(_) => {
            (of_pod("the role of the Pod Identity association"), named.clone(), vec![pod_identity()])
        }
        Credentials::Instance(_) => (of_pod("the node's role"), named.clone(), Vec::new()),
        Credentials::Missing => {
            let account = named.as_ref().map(RoleArn::account).or(account);
            (of_pod("the role of the pod"), named.clone(), vec![irsa(account.as_ref()), pod_identity()])
        }
    };
    // The tags of a Pod Identity session, and those that are said to, go on into every later session.
    let mut inherited = matches!(base, Credentials::Container(_) | Credentials::Missing);
    let mut before = arn.clone();
    let mut last = add(holders, Holder { name, trust, ..Holder::default() });
    for role in roles {
        let Role { arn, external_id, session_tags, transitive_tag_keys, .. } = role;
        let tags = inherited || !session_tags.is_empty();
        inherited |= !transitive_tag_keys.is_empty();
        if let Some(holder) = holders.get_mut(last) {
            holder.needs.extend(assumes(role, tags));
        }
        let principal = before.as_ref().map_or(PRINCIPAL, RoleArn::as_str);
        let trusted = Trusted::Principal { arn: principal, external_id: external_id.as_deref(), tags };
        let trust = vec![(Kind::RoleTrust, Policy::trusting(&trusted, arn.partition(), None))];
        let name = arn.to_string();
        last = add(holders, Holder { name, trust, ..Holder::default() });
        before = Some(arn.clone());
    }
    if let Some(holder) = holders.get_mut(last) {
        holder.needs.extend(needs);
        holder.reads |= reads;
        holder.writes |= writes;
    }
}

/// Adds somebody who is not there yet; says where he is.
fn add(holders: &mut Vec<Holder>, holder: Holder) -> usize {
    if let Some(at) = holders.iter().position(|there| there.name == holder.name) {
        return at;
    }
    holders.push(holder);
    holders.len().saturating_sub(1)
}

fn pretty(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document).map(|text| text + "\n").unwrap_or_default()
}

// === impl Kind ===

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Permissions => "permissions",
            Self::IrsaTrust => "trust policy, with IRSA",
            Self::PodIdentityTrust => "trust policy, with EKS Pod Identity",
            Self::RoleTrust => "trust policy",
        }
    }
}

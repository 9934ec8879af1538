//! `keytide policy`: the smallest policies for a configuration, ready for `aws iam`.

use serde::Serialize;

use super::{Exit, Form, complain, print};
use crate::{
    config::{self, Aws, Config, Credentials, Environment, Identity, Sources},
    domain::identity::{Account, Role, RoleArn, partition_of},
    plan::{
        fan_out::Mapping,
        policy::{ACCOUNT, Need, Place, Policy, Trusted, assumes, reads, tagged, writes},
    },
    source,
};

/// What the configuration does not say.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) account: Option<Account>,
    pub(super) identity: Option<Way>,
    pub(super) base_role: Option<RoleArn>,
    pub(super) oidc_provider: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) kms_keys: Vec<String>,
    pub(super) document: Option<Kind>,
    pub(super) of: Option<String>,
}

/// How the pod gets its credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Way {
    /// By the service account's token and the cluster's OIDC provider.
    Irsa,
    /// By an association of the service account.
    PodIdentity,
    /// Otherwise, such as static keys.
    Other,
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
const OIDC_PROVIDER: &str = "<OIDC_PROVIDER>";
const SERVICE_ACCOUNT: &str = "<NAMESPACE:NAME>";
const PRINCIPAL: &str = "<BASE_ROLE>";
/// What stands in a document where nobody said it, and what says it.
const PLACEHOLDERS: [(&str, &str); 4] = [
    (ACCOUNT, "give --account"),
    (OIDC_PROVIDER, "give --oidc-provider"),
    (SERVICE_ACCOUNT, "give --service-account"),
    (PRINCIPAL, "give --base-role"),
];

/// Prints the documents. A bare one in which something is left to fill in ends with 1, so that nobody pipes it into AWS.
pub(super) fn policy(sources: &Sources, options: &Options, form: Form) -> Exit {
    let config = match config::load(sources, &Environment::of_process().without_personal_credentials()) {
        Ok(config) => config,
        Err(errors) => {
            complain(&format!("the configuration is not valid:\n{errors}"));
            return Exit::Usage;
        }
    };
    let holders = holders(&config, options);
    let first = holders.first().map(|holder| holder.name.clone()).unwrap_or_default();
    let all = documents(holders, &config, options);
    let of_kind = |document: &&Document| options.document.is_none_or(|kind| kind == document.kind);
    let of = options.of.as_deref().map(|of| if of == BASE { first.as_str() } else { of });
    let chosen: Vec<&Document> =
        all.iter().filter(of_kind).filter(|document| of.is_none_or(|of| of == document.of)).collect();
    let text = match (form, &chosen[..]) {
        (_, []) => return none_or_several("there is no such document", all.iter().filter(of_kind), &first),
        (Form::Json, chosen) => pretty(&chosen),
        (Form::Text, [document]) if options.document.is_some() => pretty(&document.policy),
        (Form::Text, _) if options.document.is_some() => {
            return none_or_several("several have such a document", chosen.into_iter(), &first);
        }
        (Form::Text, chosen) => {
            let shown = chosen
                .iter()
                .map(|Document { of, kind, policy }| format!("# {of}: {}\n{}", kind.title(), pretty(policy)));
            shown.collect::<Vec<_>>().join("\n")
        }
    };
    let mut whole = true;
    for (placeholder, advice) in PLACEHOLDERS.iter().filter(|(placeholder, _)| text.contains(placeholder)) {
        complain(&format!("{placeholder} stands for what the configuration does not say: {advice}"));
        whole = false;
    }
    if let Some(id) = alias(&config).filter(|_| options.kms_keys.is_empty()) {
        complain(&format!("give the ARN of the KMS key {id} as --kms-key: a policy cannot name it otherwise"));
    }
    if let Credentials::Profile(profile) = &config.aws.reader.base {
        complain(&format!("the roles of profile {} are in AWS's files: they are not looked at here", profile.name));
    }
    let shown = print(&text);
    if whole || options.document.is_none() { shown } else { Exit::Failed }
}

/// Says between whom to choose.
fn none_or_several<'a>(what: &str, documents: impl Iterator<Item = &'a Document>, first: &str) -> Exit {
    let line = |document: &Document| {
        let base = if document.of == first { format!(" ({BASE})") } else { String::new() };
        format!("\n  {}{base}: {}", document.of, document.kind.title())
    };
    let lines: String = documents.map(line).collect();
    complain(&format!("{what}; choose with --of and --document between{lines}"));
    Exit::Usage
}

fn documents(holders: Vec<Holder>, config: &Config, options: &Options) -> Vec<Document> {
    let region = &config.aws.region;
    let own_key = config.virtual_keys.as_ref().and_then(|keys| keys.rules.settings.kms_key_id.as_deref());
    let mut documents = Vec::new();
    for Holder { name, needs, reads, writes, trust } in holders {
        let mut permissions = Policy::allowing(&needs);
        if reads || writes {
            // An alias is no resource of a policy: its key is then among the others.
            let encrypts = writes && own_key.is_some_and(|id| !is_key_arn(id));
            for key in &options.kms_keys {
                permissions = permissions.with_key(key, encrypts, region);
            }
            if let Some(key) = own_key.filter(|id| writes && is_key_arn(id)) {
                permissions = permissions.with_key(key, true, region);
            }
        }
        if !permissions.is_empty() {
            documents.push(Document { of: name.clone(), kind: Kind::Permissions, policy: permissions });
        }
        documents.extend(trust.into_iter().map(|(kind, policy)| Document { of: name.clone(), kind, policy }));
    }
    documents
}

/// The KMS key of virtual keys, where it is not named so that a policy could name it.
fn alias(config: &Config) -> Option<&str> {
    config.virtual_keys.as_ref()?.rules.settings.kms_key_id.as_deref().filter(|id| !is_key_arn(id))
}

pub(super) fn is_key_arn(text: &str) -> bool {
    text.starts_with("arn:") && text.contains(":kms:") && text.contains(":key/")
}

/// Everybody of both chains, in the order in which they are assumed, with what each needs.
fn holders(config: &Config, options: &Options) -> Vec<Holder> {
    let Config { aws: Aws { region, reader, writer, .. }, keys, wholesale, virtual_keys, .. } = config;
    let requests = Mapping::new(keys.clone(), wholesale.clone()).requests();
    let calls = source::secrets_manager::call_count(&requests);
    let writes_of = |place: &Place<'_>| virtual_keys.as_ref().map_or_else(Vec::new, |keys| writes(&keys.rules, place));
    let mut holders = Vec::new();
    let place = place(region, reader, options);
    let mut needs = reads(&requests, calls.batch > 0, &place);
    let writes_too = writer.is_none() && virtual_keys.is_some();
    if writes_too {
        needs.extend(writes_of(&place));
    }
    let mut last = add_chain(&mut holders, reader, region, needs, (!requests.is_empty(), writes_too), options);
    if let Some(writer) = writer {
        let needs = writes_of(&self::place(region, writer, options));
        last = add_chain(&mut holders, writer, region, needs, (false, virtual_keys.is_some()), options);
    }
    // The role of a team is assumed from whoever writes.
    for (role, (arn, region)) in virtual_keys.iter().flat_map(|keys| keys.teams.iter().zip(&keys.rules.teams)) {
        let (at, writer_arn, tags) = &last;
        if let Some(holder) = holders.get_mut(*at) {
            holder.needs.extend(assumes(role, *tags));
        }
        let place = Place { region, account: Some(arn.account()) };
        let team = add(&mut holders, Holder { name: arn.to_string(), ..Holder::default() });
        let principal = writer_arn.as_ref().map_or(PRINCIPAL, RoleArn::as_str);
        let trusted = Trusted::Principal { arn: principal, external_id: None, tags: *tags };
        if let Some(holder) = holders.get_mut(team) {
            holder.needs.extend(writes_of(&place));
            holder.writes = true;
            holder.trust = vec![(Kind::RoleTrust, Policy::trusting(&trusted, arn.partition(), None))];
        }
    }
    holders
}

/// Where the secrets of an identity are: in its own account.
fn place<'a>(region: &'a str, identity: &Identity, options: &Options) -> Place<'a> {
    let role = identity.all_roles().last().map(|role| role.arn.account());
    let expected = || identity.expected.role.as_ref().map(RoleArn::account).or(identity.expected.account.clone());
    Place { region, account: role.or_else(expected).or_else(|| options.account.clone()) }
}

/// Adds the identities of a chain; where the last of them is, its ARN, and whether its sessions carry tags.
fn add_chain(
    holders: &mut Vec<Holder>,
    identity: &Identity,
    region: &str,
    needs: Vec<Need>,
    (reads, writes): (bool, bool),
    options: &Options,
) -> (usize, Option<RoleArn>, bool) {
    let Identity { base, roles, expected } = identity;
    let provider = options.oidc_provider.as_deref().unwrap_or(OIDC_PROVIDER);
    let service_account = options.service_account.as_deref().unwrap_or(SERVICE_ACCOUNT);
    let irsa = |account: Option<&Account>| {
        let trusted = Trusted::ServiceAccount { provider, service_account };
        (Kind::IrsaTrust, Policy::trusting(&trusted, partition_of(region), account))
    };
    let pod_identity = || (Kind::PodIdentityTrust, Policy::trusting(&Trusted::PodIdentity, partition_of(region), None));
    // Of a pod whose role the configuration does not name, the role that is expected is the one.
    let named = options.base_role.clone().or_else(|| expected.role.clone().filter(|_| roles.is_empty()));
    let of_pod = |words: &str| named.as_ref().map_or(words.to_owned(), ToString::to_string);
    let (name, arn, trust) = match base {
        Credentials::Static(keys) => (format!("the user of access key {}", keys.access_key_id), None, Vec::new()),
        Credentials::Profile(profile) => (format!("the identity of profile {}", profile.name), None, Vec::new()),
        Credentials::WebIdentity { role, .. } => {
            (role.arn.to_string(), Some(role.arn.clone()), vec![irsa(Some(&role.arn.account()))])
        }
        Credentials::Container(_) | Credentials::Instance(_) | Credentials::Missing => {
            // A role further on is perhaps of another account.
            let account = named.as_ref().map(RoleArn::account).or_else(|| options.account.clone());
            let trust = match options.identity {
                None => vec![irsa(account.as_ref()), pod_identity()],
                Some(Way::Irsa) => vec![irsa(account.as_ref())],
                Some(Way::PodIdentity) => vec![pod_identity()],
                Some(Way::Other) => Vec::new(),
            };
            (of_pod("the role of the pod"), named.clone(), trust)
        }
    };
    // Where it is not known how the pod gets its credentials, both ways are to work.
    let unnamed = matches!(base, Credentials::Container(_) | Credentials::Instance(_) | Credentials::Missing);
    let perhaps_tagged = unnamed && matches!(options.identity, None | Some(Way::PodIdentity));
    let mut before = arn.clone();
    let mut last = add(holders, Holder { name, trust, ..Holder::default() });
    for (role, tags) in roles.iter().zip(tagged(roles, perhaps_tagged)) {
        let Role { arn, external_id, .. } = role;
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
    let tags = perhaps_tagged || roles.iter().any(|role| !role.transitive_tag_keys.is_empty());
    (last, before, tags)
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

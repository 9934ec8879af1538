//! Who somebody is in AWS: roles, callers, and whom keytide expects to be.

use std::{fmt, time::Duration};

/// The ARN of a role, such as `arn:aws:iam::123456789012:role/path/keytide`.
///
/// Shape: at most 2048 visible characters; the role's path may be part of it (AWS, IAM identifiers).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleArn(String);

/// An account: twelve digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account(String);

/// A role to assume, and what STS is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its ARN.
    pub arn: RoleArn,
    /// The name of the session.
    pub session_name: String,
    /// What its trust policy asks for.
    pub external_id: Option<String>,
    /// Tags of the session.
    pub session_tags: Vec<(String, String)>,
    /// Keys of tags that later sessions keep.
    pub transitive_tag_keys: Vec<String>,
    /// How long a session lasts; by default as STS decides, which is one hour.
    pub duration: Option<Duration>,
}

/// What `GetCallerIdentity` answered: the ARN of a user, or of a session of a role.
///
/// The ARN of a session, `arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION`, leaves out the role's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(String);

/// Whom keytide may be; everybody if neither is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// This role: partition, account and name are compared, since STS does not give the path.
    pub role: Option<RoleArn>,
    /// Somebody of this account.
    pub account: Option<Account>,
}

/// The partition that a region belongs to (AWS General Reference, ARNs).
#[must_use]
pub fn partition_of(region: &str) -> &'static str {
    const OTHERS: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("us-iso-", "aws-iso"),
        ("eu-isoe-", "aws-iso-e"),
        ("eusc-", "aws-eusc"),
    ];
    OTHERS.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}

/// The parts of an ARN that tell what it is of.
struct Parts<'a> {
    service: &'a str,
    region: &'a str,
    account: &'a str,
    resource: &'a str,
}

/// AWS: "arn:…" of IAM, at most 2048 characters.
const LONGEST: usize = 2048;

// === impl RoleArn ===

impl RoleArn {
    /// What [`RoleArn::parse`] wants.
    pub const EXPECTED: &'static str = "expected the ARN of a role, such as arn:aws:iam::123456789012:role/keytide";

    /// Parses the ARN; none if it is not one of a role.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts = Parts::of(text)?;
        let name = parts.resource.strip_prefix("role/")?.rsplit('/').next()?;
        let characters = parts.resource.chars().all(|c| c.is_ascii_alphanumeric() || "/_+=,.@-".contains(c));
        let legal = parts.service == "iam" && parts.region.is_empty() && !name.is_empty() && characters;
        (legal && Account::parse(parts.account).is_some()).then(|| Self(text.to_owned()))
    }

    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition, such as `aws` or `aws-cn`.
    #[must_use]
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// The account.
    #[must_use]
    pub fn account(&self) -> Account {
        Account(self.0.split(':').nth(4).unwrap_or_default().to_owned())
    }

    /// The name, without the path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Role ===

impl Role {
    /// The most tags of a session (STS, `AssumeRole`, `Tags`).
    pub const MOST_TAGS: usize = 50;

    /// True for the name of a session (STS, `RoleSessionName`): 2 to 64 of `A-Z a-z 0-9 _ + = , . @ -`.
    #[must_use]
    pub fn is_session_name(text: &str) -> bool {
        let legal = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        (2..=64).contains(&text.len()) && text.chars().all(legal)
    }

    /// A role with nothing but a name for its sessions.
    #[must_use]
    pub fn plain(arn: RoleArn, session_name: String) -> Self {
        Self {
            arn,
            session_name,
            external_id: None,
            session_tags: Vec::new(),
            transitive_tag_keys: Vec::new(),
            duration: None,
        }
    }
}

// === impl Account ===

impl Account {
    /// Parses the account; none if it is not twelve digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())).then(|| Self(text.to_owned()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Caller ===

impl Caller {
    /// Parses what STS answered; none if it is not the ARN of somebody.
    #[must_use]
    pub fn parse(arn: &str) -> Option<Self> {
        let parts = Parts::of(arn)?;
        let legal = matches!(parts.service, "iam" | "sts") && !parts.resource.is_empty();
        (legal && Account::parse(parts.account).is_some()).then(|| Self(arn.to_owned()))
    }

    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The account.
    #[must_use]
    pub fn account(&self) -> Account {
        Account(self.0.split(':').nth(4).unwrap_or_default().to_owned())
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// The role's name, where this is a session of one.
    #[must_use]
    pub fn role_name(&self) -> Option<&str> {
        let resource = self.0.splitn(6, ':').nth(5)?;
        let (name, session) = resource.strip_prefix("assumed-role/")?.split_once('/')?;
        (!name.is_empty() && !session.is_empty()).then_some(name)
    }

    /// True for a session of this role, as far as STS says.
    #[must_use]
    pub fn is_role(&self, role: &RoleArn) -> bool {
        self.partition() == role.partition()
            && self.account() == role.account()
            && self.role_name() == Some(role.name())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Expected ===

impl Expected {
    /// True if somebody in particular is expected.
    #[must_use]
    pub fn is_set(&self) -> bool {
        let Self { role, account } = self;
        role.is_some() || account.is_some()
    }

    /// True if a session of this role could be whom keytide may be.
    #[must_use]
    pub fn may_be(&self, other: &RoleArn) -> bool {
        let Self { role, account } = self;
        let known = |role: &RoleArn| {
            (role.partition(), role.account(), role.name()) == (other.partition(), other.account(), other.name())
        };
        role.as_ref().is_none_or(known) && account.as_ref().is_none_or(|account| other.account() == *account)
    }

    /// True if this caller is whom keytide may be.
    #[must_use]
    pub fn accepts(&self, caller: &Caller) -> bool {
        let Self { role, account } = self;
        role.as_ref().is_none_or(|role| caller.is_role(role))
            && account.as_ref().is_none_or(|account| caller.account() == *account)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.role, &self.account) {
            (Some(role), _) => write!(f, "{role}"),
            (None, Some(account)) => write!(f, "somebody of account {account}"),
            (None, None) => f.write_str("anybody"),
        }
    }
}

// === impl Parts ===

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let (arn, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
        let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
        let legal = arn == "arn"
            && partition.starts_with("aws")
            && text.len() <= LONGEST
            && text.chars().all(|c| c.is_ascii_graphic());
        legal.then_some(Self { service, region, account, resource })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_known_by_partition_account_and_name() {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/team/a/keytide").unwrap();
        assert_eq!((role.partition(), role.account().as_str(), role.name()), ("aws", "123456789012", "keytide"));
        let caller = |arn: &str| Caller::parse(arn).unwrap();
        assert!(caller("arn:aws:sts::123456789012:assumed-role/keytide/pod").is_role(&role));
        for other in [
            "arn:aws:sts::123456789012:assumed-role/keytide-2/pod",
            "arn:aws:sts::210987654321:assumed-role/keytide/pod",
            "arn:aws-cn:sts::123456789012:assumed-role/keytide/pod",
            "arn:aws:iam::123456789012:user/keytide",
            "arn:aws:iam::123456789012:root",
            "arn:aws:sts::123456789012:federated-user/keytide",
        ] {
            assert!(!caller(other).is_role(&role), "{other}");
        }
    }

    #[test]
    fn what_is_not_the_arn_of_a_role_is_none() {
        for text in [
            "",
            "keytide",
            "arn:aws:iam::123456789012:user/keytide",
            "arn:aws:iam::12345678901:role/keytide",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam:us-east-1:123456789012:role/keytide",
            "arn:aws:sts::123456789012:assumed-role/keytide/pod",
            "arn:gcp:iam::123456789012:role/keytide",
            "arn:aws:iam::123456789012:role/key tide",
            "arn:aws:iam::123456789012:role/*",
        ] {
            assert_eq!(RoleArn::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_account_accepts_everybody_in_it() {
        let account = Expected { role: None, account: Account::parse("123456789012") };
        let user = Caller::parse("arn:aws:iam::123456789012:user/path/someone").unwrap();
        assert!(account.accepts(&user));
        assert!(!account.accepts(&Caller::parse("arn:aws:iam::210987654321:root").unwrap()));
        assert!(Expected::default().accepts(&user));
    }
}

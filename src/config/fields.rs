//! The rules of single fields: what each may hold, and how the message says what was expected.

use std::{borrow::Cow, net::SocketAddr, path::PathBuf, time::Duration};

use schemars::{Schema, json_schema};

use super::{
    OnMissing, Signal, Url,
    yaml::{Node, Shape},
};
use crate::domain::{
    identity::{Account, Expected, Role, RoleArn},
    kubernetes::{ObjectName, SecretType},
    mapping::{Format, Template},
    names::{ActionName, KeyName, Member, OutputName, SecretId, SecretName, VersionStage},
    virtual_key::Operation,
};

/// A value that one field of the configuration holds.
pub(super) trait Field: Sized {
    /// Reads the field.
    ///
    /// # Errors
    /// What was expected; never what was found.
    fn read(node: &Node) -> Result<Self, Cow<'static, str>>;

    /// Its JSON Schema.
    fn schema() -> Schema {
        json_schema!({"type": "string"})
    }
}

/// A field that is text: `$read` makes its value of the text.
macro_rules! text_field {
    ($($(#[$doc:meta])* $name:ident($value:ty): $expected:expr, $read:expr;)*) => {$(
        $(#[$doc])*
        #[derive(PartialEq, Eq, PartialOrd, Ord)]
        pub(super) struct $name(pub(super) $value);

        impl Field for $name {
            fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
                let read: fn(&str) -> Option<$value> = $read;
                read(text(node, $expected)?).map(Self).ok_or(Cow::Borrowed($expected))
            }
        }
    )*};
}

text_field! {
    /// A region of AWS.
    Region(String): "expected a region such as us-east-1: a-z, 0-9 and -", |text| {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (!text.is_empty() && text.len() <= 64 && text.chars().all(legal)).then(|| text.to_owned())
    };
    /// The name of a profile in AWS's shared files.
    Profile(String): "expected the name of a profile: 1 to 128 visible characters, without brackets", |text| {
        let legal = |c: char| !c.is_control() && !matches!(c, '[' | ']');
        ((1..=128).contains(&text.len()) && text.chars().all(legal)).then(|| text.to_owned())
    };
    /// The name of a role's session (STS, `RoleSessionName`).
    SessionName(String): "expected the name of a session: 2 to 64 of A-Z a-z 0-9 _ + = , . @ -",
        |text| Role::is_session_name(text).then(|| text.to_owned());
    /// What a role's trust policy may ask for (STS, `ExternalId`).
    ExternalId(String): "expected an external id: 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -", |text| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
        ((2..=1224).contains(&text.len()) && text.chars().all(legal)).then(|| text.to_owned())
    };
    /// The key of a session's tag (STS, `Tag`).
    TagKey(String): "expected the key of a tag: 1 to 128 letters, digits, spaces and _ . : / = + - @",
        |text| ((1..=128).contains(&text.chars().count()) && text.chars().all(of_tag)).then(|| text.to_owned());
    /// The value of a session's tag (STS, `Tag`).
    TagValue(String): "expected the value of a tag: at most 256 letters, digits, spaces and _ . : / = + - @",
        |text| (text.chars().count() <= 256 && text.chars().all(of_tag)).then(|| text.to_owned());
    /// What the names of secrets begin with.
    Prefix(String): "expected a prefix for names of secrets: longer than a slash, of A-Z a-z 0-9 / _ + = . @ -",
        super::virtual_keys::prefix_of;
    /// The description of a secret (AWS, `CreateSecret`).
    Description(String): "expected a description of 1 to 2,048 characters",
        |text| (1..=2048).contains(&text.chars().count()).then(|| text.to_owned());
    /// The key of a secret's tag (AWS, `Tag`).
    SecretTagKey(String): "expected the key of a tag: 1 to 128 letters, digits, spaces and _ . : / = + - @, not beginning with aws:",
        |text| {
            let own = text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:"));
            ((1..=128).contains(&text.chars().count()) && text.chars().all(of_tag) && !own).then(|| text.to_owned())
        };
    /// The value of a secret's tag (AWS, `Tag`).
    SecretTagValue(String): "expected the value of a tag: at most 256 letters, digits, spaces and _ . : / = + - @",
        |text| (text.chars().count() <= 256 && text.chars().all(of_tag)).then(|| text.to_owned());
    /// A KMS key (AWS, `KmsKeyId`).
    KmsKey(String): "expected the ARN, the id or the alias of a KMS key: 1 to 2,048 visible characters",
        |text| (text.len() <= 2048 && crate::domain::value::is_visible(text)).then(|| text.to_owned());
    /// How long a session of a role lasts (STS, `DurationSeconds`).
    SessionDuration(Duration): "expected a duration such as 1h, at least 15m and at most 12h",
        |text| duration(text, MINUTE * 15, Duration::from_hours(12));
    /// Time limit of a connection.
    ConnectTimeout(Duration): "expected a duration such as 3s or 500ms, at least 100ms and at most 1m",
        |text| duration(text, Duration::from_millis(100), MINUTE);
    /// The key of a label or an annotation (Kubernetes, "Labels and Selectors", "Syntax and character set").
    LabelName(String): "expected a key such as app or example.com/app: an optional DNS prefix with /, then 1 to 63 of A-Z a-z 0-9 - _ .",
        |text| label_name(text).then(|| text.to_owned());
    /// The value of a label.
    LabelValue(String): "expected at most 63 of A-Z a-z 0-9 - _ ., beginning and ending with a letter or digit",
        |text| (text.is_empty() || label_part(text)).then(|| text.to_owned());
    /// An absolute path.
    AbsolutePath(PathBuf): "expected an absolute path without . and .. in it", absolute;
    /// A file's mode; none is `auto`.
    FileMode(Option<u32>): "expected auto, or the mode in octal in quotation marks, such as \"0440\", readable for its owner",
        |text| {
            if text == "auto" {
                return Some(None);
            }
            let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            let mode = u32::from_str_radix(text, 8).ok()?;
            (digits && mode <= 0o777 && mode & 0o400 != 0).then_some(Some(mode))
        };
    /// Time between refreshes.
    Interval(Duration): "expected a duration such as 5m or 30s, at least 1s and at most 30d (720h)",
        |text| duration(text, SECOND, DAY * 30);
    /// Time limit of one call.
    CallTimeout(Duration): "expected a duration such as 10s or 500ms, at least 100ms and at most 5m",
        |text| duration(text, Duration::from_millis(100), MINUTE * 5);
    /// Time limit of the first refresh.
    StartupTimeout(Duration): "expected a duration such as 5m, at least 1s and at most 24h",
        |text| duration(text, SECOND, DAY);
    /// Age at which values are too old.
    MaxStale(Duration): "expected a duration such as 1h, at least 1s and at most 30d (720h)",
        |text| duration(text, SECOND, DAY * 30);
    /// Quiet time after a change.
    Debounce(Duration): "expected a duration such as 1s or 500ms, at most 10m",
        |text| duration(text, Duration::ZERO, MINUTE * 10);
    /// The longest random time that something is put off by.
    Splay(Duration): "expected a duration such as 30s, at most 1h", |text| duration(text, Duration::ZERO, MINUTE * 60);
    /// Time between two attempts.
    MinInterval(Duration): "expected a duration such as 10s, at most 24h", |text| duration(text, Duration::ZERO, DAY);
    /// Time limit of one attempt.
    ReloadTimeout(Duration): "expected a duration such as 10s or 500ms, at least 100ms and at most 1m",
        |text| duration(text, Duration::from_millis(100), MINUTE);
    /// The name of a process.
    ProcessName(String): "expected the name of a process: 1 to 255 visible characters, without a slash", |text| {
        let legal = |c: char| !c.is_control() && c != '/';
        ((1..=255).contains(&text.len()) && text.chars().all(legal)).then(|| text.to_owned())
    };
    /// A signal.
    SignalName(Signal): "expected HUP, INT, QUIT, TERM, USR1, USR2, ALRM, CONT, TTIN, TTOU or WINCH, with or without SIG",
        Signal::parse;
    /// Where a server is called.
    HttpUrl(Url): "expected an http or https URL without a user, a password and a fragment", Url::parse;
    /// The method of a request.
    HttpMethod(String): "expected GET, HEAD, POST, PUT, PATCH or DELETE", |text| {
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"].contains(&text).then(|| text.to_owned())
    };
    /// The name of a header that does not belong to the connection, in lower case (RFC 9110, 5.1 and 7.6.1).
    HeaderName(String): "expected the name of a header, such as Authorization; not Host, nor one of the connection or the body",
        |text| {
            let legal = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            let name = text.to_ascii_lowercase();
            let of_connection = [
                "host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length",
                "expect",
            ];
            let own = of_connection.contains(&name.as_str()) || name.starts_with("proxy-");
            ((1..=128).contains(&text.len()) && text.chars().all(legal) && !own).then_some(name)
        };
    /// Address to listen on; none turns it off.
    Listen(Option<SocketAddr>): "expected none, or an address and a port such as \"[::]:19847\" or \"127.0.0.1:19847\"",
        |text| if text == "none" { Some(None) } else { text.parse().ok().map(Some) };
    /// Path of a Unix socket; none turns it off.
    Socket(Option<PathBuf>): "expected none, or an absolute path of at most 100 bytes", |text| {
        if text == "none" {
            return Some(None);
        }
        absolute(text).filter(|_| text.len() <= 100).map(Some)
    };
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// Share of a whole, 0 to 1.
pub(super) struct Share(pub(super) f64);

/// A numeric user or group.
pub(super) struct Id(pub(super) u32);

/// The status of an HTTP answer.
pub(super) struct StatusCode(pub(super) u16);

/// A number from 1 to `MOST`; none is without limit.
pub(super) struct Count<const MOST: u32>(pub(super) Option<u32>);

/// The text of a node that must be one.
pub(super) fn text<'a>(node: &'a Node, expected: &'static str) -> Result<&'a str, Cow<'static, str>> {
    match &node.value {
        Shape::Text(text) => Ok(text),
        Shape::Bool(_) | Shape::Number(_) => {
            Err(format!("{expected}; YAML reads this as a number or a boolean: put it in quotation marks").into())
        }
        Shape::Null | Shape::List(_) | Shape::Map(_) => Err(expected.into()),
    }
}

fn of_tag(c: char) -> bool {
    c.is_alphanumeric() || " _.:/=+-@".contains(c)
}

fn absolute(text: &str) -> Option<PathBuf> {
    let mut parts = text.split('/');
    let legal = parts.next() == Some("")
        && text.len() < 4096
        && !text.chars().any(char::is_control)
        && parts.all(|part| !matches!(part, "" | "." | ".."));
    legal.then(|| PathBuf::from(text))
}

fn duration(text: &str, min: Duration, max: Duration) -> Option<Duration> {
    let parsed: jiff::SignedDuration = text.parse().ok()?;
    Duration::try_from(parsed).ok().filter(|duration| (min..=max).contains(duration))
}

// === impl Field ===

macro_rules! name_field {
    ($($name:ty: $expected:literal;)*) => {$(
        impl Field for $name {
            fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
                Self::parse(text(node, $expected)?).map_err(|error| error.to_string().into())
            }
        }
    )*};
}

name_field! {
    KeyName: "expected the name of a key";
    SecretId: "expected the name or the ARN of a secret";
    SecretName: "expected the name of a secret";
    VersionStage: "expected a staging label";
    OutputName: "expected a name";
    ActionName: "expected a name";
    ObjectName: "expected the name of a Kubernetes object";
}

impl Field for SecretType {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str =
            "expected a type such as Opaque or kubernetes.io/tls, other than that of service accounts";
        Self::parse(text(node, EXPECTED)?).ok_or(Cow::Borrowed(EXPECTED))
    }
}

impl LabelName {
    /// True for those that keytide itself writes.
    pub(super) fn is_ours(&self) -> bool {
        self.0.starts_with("keytide.dev/")
    }
}

fn label_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => ObjectName::parse(prefix).is_ok() && label_part(name),
        None => label_part(text),
    }
}

fn label_part(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().next_back()) && text.chars().all(legal)
}

impl Field for RoleArn {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        Self::parse(text(node, Self::EXPECTED)?).ok_or(Cow::Borrowed(Self::EXPECTED))
    }
}

impl Field for Expected {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str =
            "expected the ARN of a role, an account (twelve digits, in quotation marks), or a list of both";
        let one = std::slice::from_ref(node);
        let items = if let Shape::List(items) = &node.value { items.as_slice() } else { one };
        let mut expected = Self::default();
        for item in items {
            let text = text(item, EXPECTED)?;
            let (role, account) = (RoleArn::parse(text), Account::parse(text));
            let taken =
                (role.is_some() && expected.role.is_some()) || (account.is_some() && expected.account.is_some());
            if taken || (role.is_none() && account.is_none()) {
                return Err(EXPECTED.into());
            }
            expected = Self { role: role.or(expected.role), account: account.or(expected.account) };
        }
        match &expected {
            Self { role: None, account: None } => Err(EXPECTED.into()),
            Self { role: Some(role), account: Some(account) } if role.account() != *account => {
                Err("the role is not of this account: nobody could be both".into())
            }
            _ => Ok(expected),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": ["string", "array"], "items": {"type": "string"}})
    }
}

impl Field for Member {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        text(node, "expected the name of a member of a JSON secret").map(Self::new)
    }
}

impl Field for Template {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        Self::parse(text(node, "expected a template such as \"{USER|url}:{PASSWORD|url}\"")?).map_err(Cow::Owned)
    }
}

impl Field for String {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        text(node, "expected text").map(str::to_owned)
    }
}

impl Field for bool {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        if let Shape::Bool(value) = node.value { Ok(value) } else { Err("expected true or false".into()) }
    }

    fn schema() -> Schema {
        json_schema!({"type": "boolean"})
    }
}

impl Field for Share {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        match node.value {
            Shape::Number(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err("expected a number from 0 to 1".into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "number", "minimum": 0, "maximum": 1})
    }
}

impl Field for Id {
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        // The last id stands for "no id" in the calls that take one.
        match node.value {
            Shape::Number(id) if id.fract() == 0.0 && (0.0..f64::from(u32::MAX)).contains(&id) => Ok(Self(id as u32)),
            _ => Err("expected a numeric id".into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "integer", "minimum": 0, "exclusiveMaximum": u32::MAX})
    }
}

impl Field for StatusCode {
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        match node.value {
            Shape::Number(status) if status.fract() == 0.0 && (200.0..600.0).contains(&status) => {
                Ok(Self(status as u16))
            }
            _ => Err("expected an HTTP status from 200 to 599".into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "integer", "minimum": 200, "maximum": 599})
    }
}

impl<const MOST: u32> Field for Count<MOST> {
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked before"
    )]
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        match &node.value {
            Shape::Text(text) if text == "none" => Ok(Self(None)),
            Shape::Number(number) if number.fract() == 0.0 && (1.0..=f64::from(MOST)).contains(number) => {
                Ok(Self(Some(*number as u32)))
            }
            _ => Err(format!("expected none, or a whole number from 1 to {MOST}").into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"anyOf": [{"const": "none"}, {"type": "integer", "minimum": 1, "maximum": MOST}]})
    }
}

impl Field for Operation {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str = "expected create, rotate, rename or delete";
        Self::parse(text(node, EXPECTED)?).ok_or(Cow::Borrowed(EXPECTED))
    }

    fn schema() -> Schema {
        json_schema!({"enum": ["create", "rotate", "rename", "delete"]})
    }
}

impl Field for OnMissing {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        match text(node, "expected fail or skip")? {
            "fail" => Ok(Self::Fail),
            "skip" => Ok(Self::Skip),
            _ => Err("expected fail or skip".into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"enum": ["fail", "skip"]})
    }
}

impl Field for Format {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str = "expected dotenv, posix, docker, kubernetes or json";
        let label = text(node, EXPECTED)?;
        Self::ALL.into_iter().find(|format| format.label() == label).ok_or_else(|| EXPECTED.into())
    }

    fn schema() -> Schema {
        json_schema!({"enum": Self::ALL.map(Self::label)})
    }
}

//! What the user asked for: which keys come from where, and which of them an output takes under which names.

use std::collections::BTreeMap;

use super::names::{KeyName, Member, SecretId, VersionStage};

/// One read that AWS is asked for: a secret at a staging label (`None`: `AWSCURRENT`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// The secret.
    pub secret: SecretId,
    /// The staging label, where the configuration names one.
    pub stage: Option<VersionStage>,
}

/// One key that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: KeyName,
    /// Where its value comes from.
    pub origin: Origin,
    /// False: not written by an output that lists no keys; for keys that only templates use. Default true.
    pub export: bool,
    /// True: may be exported under a name that changes how programs run. Default false.
    pub allow_reserved: bool,
}

/// Where a key's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The whole value of a secret.
    Secret(Request),
    /// A member of a secret whose value is a JSON object.
    Member(Request, Member),
    /// Other keys, joined.
    Template(Template),
}

/// A secret of which every member is exported, without a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wholesale {
    /// The secret.
    pub request: Request,
    /// Members that become keys of another name.
    pub rename: BTreeMap<Member, KeyName>,
}

/// A text with other keys' values in it: `postgresql://{DB_USER|url}:{DB_PASSWORD|url}@db/app`. `{{` and `}}` stand for
/// braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(pub Vec<Segment>);

/// A piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text as it stands.
    Literal(String),
    /// The value of a key through a filter.
    Key(KeyName, Filter),
}

/// What is done to a key's value in a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Nothing.
    Plain,
    /// `url`: percent-encoded.
    Url,
    /// `base64`: standard base64 with padding.
    Base64,
    /// `json`: a JSON string with its quotation marks.
    Json,
}

/// What an output takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The keys, where the output lists some; `None`: all that are exported.
    pub keys: Option<Vec<KeyName>>,
    /// Keys that this output writes under another name.
    pub rename: BTreeMap<KeyName, String>,
}

/// The dialects of an env file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What python-dotenv, node's dotenv and Docker Compose read alike.
    Dotenv,
    /// Safe to read with `.` in any POSIX shell.
    Posix,
    /// `docker run --env-file`.
    Docker,
    /// The kubelet's env files (`fileKeyRef`).
    Kubernetes,
    /// One JSON object.
    Json,
}

// === impl Format ===

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Dotenv, Self::Posix, Self::Docker, Self::Kubernetes, Self::Json];

    /// As configurations and options spell it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dotenv => "dotenv",
            Self::Posix => "posix",
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
            Self::Json => "json",
        }
    }
}

// === impl Template ===

impl Template {
    /// Parses the text of a template.
    ///
    /// # Errors
    /// A fragment that says what is wrong; it does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    literal.push(c);
                    chars.next();
                }
                '{' => {
                    let mut closed = false;
                    let inner: String = chars
                        .by_ref()
                        .take_while(|&c| {
                            closed = c == '}';
                            !closed
                        })
                        .collect();
                    if !closed {
                        return Err("a template has a { without its }; {{ stands for a brace".to_owned());
                    }
                    let (name, filter) = inner.split_once('|').unwrap_or((&inner, ""));
                    let filter = match filter.trim() {
                        "" => Filter::Plain,
                        "url" => Filter::Url,
                        "base64" => Filter::Base64,
                        "json" => Filter::Json,
                        _ => return Err("a template knows the filters url, base64 and json".to_owned()),
                    };
                    let name = KeyName::parse(name.trim())
                        .map_err(|_| "a template has a key's name between braces; {{ and }} stand for braces")?;
                    if !literal.is_empty() {
                        segments.push(Segment::Literal(std::mem::take(&mut literal)));
                    }
                    segments.push(Segment::Key(name, filter));
                }
                '}' => return Err("a template has a } without its {; }} stands for a brace".to_owned()),
                _ => literal.push(c),
            }
        }
        if !literal.is_empty() {
            segments.push(Segment::Literal(literal));
        }
        Ok(Self(segments))
    }

    /// The keys that it needs.
    pub fn keys(&self) -> impl Iterator<Item = &KeyName> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Key(name, _) => Some(name),
        })
    }
}

// === impl Origin ===

impl Origin {
    /// The read that the key needs; none for a template.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        match self {
            Self::Secret(request) | Self::Member(request, _) => Some(request),
            Self::Template(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_literals_and_filtered_keys() {
        let key = |name: &str, filter| Segment::Key(KeyName::parse(name).unwrap(), filter);
        let literal = |text: &str| Segment::Literal(text.to_owned());
        assert_eq!(
            Template::parse("a://{U|url}:{P}@{{x}}{J|json}").unwrap().0,
            [
                literal("a://"),
                key("U", Filter::Url),
                literal(":"),
                key("P", Filter::Plain),
                literal("@{x}"),
                key("J", Filter::Json),
            ]
        );
        for bad in ["{", "{}", "}", "{A|rot13}", "{|url}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}

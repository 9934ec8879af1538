//! The tags of a session: what `AssumeRole` accepts, and what a later session inherits.

use crate::answer::Refusal;
use crate::form::{self, Form, invalid};

/// The tags that a call passes, proved to be well-formed.
#[derive(Default)]
pub(crate) struct SessionTags {
    keys: Vec<String>,
    transitive: Vec<String>,
}

const MOST: usize = 50;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

// === impl SessionTags ===

impl SessionTags {
    pub(crate) fn read(form: &Form) -> Result<Self, Refusal> {
        let keys = keys(form)?;
        let transitive: Vec<String> = form::texts(form, "TransitiveTagKeys")?.into_iter().map(str::to_owned).collect();
        if transitive.len() > MOST {
            return Err(too_many("transitiveTagKeys"));
        }
        for (key, number) in transitive.iter().zip(1..) {
            check_key(key, &format!("transitiveTagKeys.{number}.member"))?;
        }
        if !transitive.iter().all(|key| holds(&keys, key)) {
            return Err(conflict("The specified transitive tag key must be included in the requested tags."));
        }
        Ok(Self { keys, transitive })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What the new session passes on: what its caller inherited, which no tag may replace, and what it adds.
    pub(crate) fn inherit(self, inherited: &[String]) -> Result<Vec<String>, Refusal> {
        if self.keys.iter().any(|key| holds(inherited, key)) {
            return Err(conflict(
                "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key \
                 from the calling session.",
            ));
        }
        Ok(inherited.iter().cloned().chain(self.transitive).collect())
    }
}

fn keys(form: &Form) -> Result<Vec<String>, Refusal> {
    let count = form::count(form, "Tags")?;
    if count > MOST {
        return Err(too_many("tags"));
    }
    let mut keys: Vec<String> = Vec::new();
    for number in 1..=count {
        let part = |name: &str, member: &str| {
            let member = format!("tags.{number}.member.{member}");
            let value = form.get(&format!("Tags.member.{number}.{name}"));
            value
                .map(|value| (value.as_str(), member.clone()))
                .ok_or_else(|| invalid("null", &member, "Member must not be null"))
        };
        let ((key, key_member), (value, value_member)) = (part("Key", "key")?, part("Value", "value")?);
        check_key(key, &key_member)?;
        check_length(value, &value_member, LONGEST_VALUE)?;
        check_letters(value, &value_member)?;
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(conflict("Tag keys that begin with aws: are reserved for system use."));
        }
        if holds(&keys, key) {
            return Err(conflict("Duplicate tag keys found. Please note that Tag keys are case insensitive."));
        }
        keys.push(key.to_owned());
    }
    Ok(keys)
}

fn check_key(key: &str, member: &str) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(invalid(key, member, "Member must have length greater than or equal to 1"));
    }
    check_length(key, member, LONGEST_KEY)?;
    check_letters(key, member)
}

fn check_length(text: &str, member: &str, longest: usize) -> Result<(), Refusal> {
    if text.chars().count() <= longest {
        return Ok(());
    }
    Err(invalid(text, member, &format!("Member must have length less than or equal to {longest}")))
}

fn check_letters(text: &str, member: &str) -> Result<(), Refusal> {
    let allowed = |letter: char| {
        letter.is_alphanumeric() || letter.is_whitespace() && !letter.is_control() || "_.:/=+-@".contains(letter)
    };
    if text.chars().all(allowed) {
        return Ok(());
    }
    let rule = r"Member must satisfy regular expression pattern: [\p{L}\p{Z}\p{N}_.:/=+\-@]*";
    Err(invalid(text, member, rule))
}

/// Case makes no difference between keys.
fn holds(keys: &[String], key: &str) -> bool {
    keys.iter().any(|known| known.to_lowercase() == key.to_lowercase())
}

fn too_many(member: &str) -> Refusal {
    invalid("[...]", member, &format!("Member must have length less than or equal to {MOST}"))
}

fn conflict(message: &str) -> Refusal {
    Refusal::new("InvalidParameterValue", message)
}

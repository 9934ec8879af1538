//! From the bytes of an entry to what its author wrote. The author is not trusted, and no message repeats a byte of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;

use crate::domain::{
    value::{Pairs, SecretValue},
    virtual_key::{Draft, Given, Rejection, RejectionReason},
};

/// A larger file is no entry: a value of 65,536 bytes has six times as many when each is escaped.
pub const LARGEST: usize = 512 * 1024;

/// An entry of the spool: what is to be done with one secret. `docs/SPOOL.md` is the whole protocol.
///
/// A member that is null counts as left out; an unknown member is an error.
#[derive(JsonSchema)]
#[schemars(rename = "Entry", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used: entries are read member by member, so that an error names one")]
struct Schema {
    /// `create` stores a value, also over one that is there; `rotate` stores a new one, perhaps under a new name; `rename`
    /// gives the secret a new name; `delete` schedules it for deletion.
    op: Op,
    /// The name of the secret, with the prefix. Instead of `alias`.
    name: Option<String>,
    /// The name without the prefix, which keytide puts before it. For `create`: null, empty or left out beside no `name`,
    /// the name is the prefix, `virtual-key-` and the SHA-256 of the value in hex.
    alias: Option<String>,
    /// For `rotate` and `rename`: the new name, with the prefix.
    new_name: Option<String>,
    /// For `rotate` and `rename`: the new name without the prefix. Empty, for `rotate`: made of the value, as for `alias`.
    new_alias: Option<String>,
    /// For `create` and `rotate`: the value, 1 to 65,536 bytes.
    value: Option<String>,
    /// Default: that of the settings. Another one needs `keytide.spool.allow.description`.
    description: Option<String>,
    /// Tags beside those of the settings, which are always set. Other keys need `keytide.spool.allow.tag_keys`.
    tags: Option<BTreeMap<String, String>>,
    /// Default: that of the settings. Another one needs `keytide.spool.allow.kms_key_ids`.
    kms_key_id: Option<String>,
    /// Regions beside those of the settings, which are always used. Others need `keytide.spool.allow.replica_regions`.
    replica_regions: Option<Vec<String>>,
    /// For `delete`. Default: 7.
    #[schemars(range(min = 7, max = 30))]
    recovery_window_in_days: Option<u8>,
    /// Who writes, and where: a pair that `keytide.spool.teams` lists. Default: keytide itself, in its region.
    team: Option<Team>,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum Op {
    Create,
    Rotate,
    Rename,
    Delete,
}

/// A role, and a region.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Team {
    /// The ARN of the role.
    aws_role_name: String,
    /// The region.
    aws_region_name: String,
}

/// The JSON Schema of an entry.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Schema).to_value()
}

/// The members of an object, each once, as raw text.
struct Members<'a>(BTreeMap<&'static str, &'a RawValue>);

const MEMBERS: [&str; 12] = [
    "op",
    "name",
    "alias",
    "new_name",
    "new_alias",
    "value",
    "description",
    "tags",
    "kms_key_id",
    "replica_regions",
    "recovery_window_in_days",
    "team",
];
const TEAM: [&str; 2] = ["aws_role_name", "aws_region_name"];

/// Reads an entry.
///
/// # Errors
/// If it is none: what is wrong with which member.
pub fn parse(bytes: &[u8]) -> Result<Draft, Rejection> {
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("not UTF-8"))?;
    let mut members = Members::of(text, &MEMBERS, "")?;
    let value = members.read::<String>("value", "text")?.map(SecretValue::new);
    let team = match members.0.remove("team").filter(|raw| !is_null(raw)) {
        None => None,
        Some(raw) => {
            let mut members = Members::of(raw.get(), &TEAM, "team: ")?;
            let mut member = |name| {
                members.read::<String>(name, "text")?.ok_or_else(|| malformed(format!("team: {name} is required")))
            };
            Some((member("aws_role_name")?, member("aws_region_name")?))
        }
    };
    let mut text = |name| members.read::<String>(name, "text");
    Ok(Draft {
        op: text("op")?,
        name: text("name")?,
        alias: text("alias")?,
        new_name: text("new_name")?,
        new_alias: text("new_alias")?,
        value,
        given: Given {
            description: text("description")?,
            kms_key_id: text("kms_key_id")?,
            tags: members.read::<Tags>("tags", "an object of texts, each key once")?.map(|tags| tags.0),
            replica_regions: members.read("replica_regions", "a list of texts")?,
        },
        recovery_window_in_days: members.read("recovery_window_in_days", "a whole number")?,
        team,
    })
}

// === impl Members ===

impl<'a> Members<'a> {
    fn of(text: &'a str, known: &'static [&'static str], within: &str) -> Result<Self, Rejection> {
        let pairs: Pairs<'a> = serde_json::from_str(text).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            let what = if error.is_eof() { "JSON that is cut off" } else { "not a JSON object" };
            malformed(format!("{within}{what}, at {place}"))
        })?;
        let mut members = BTreeMap::new();
        for (name, raw) in pairs.0 {
            let Some(name) = known.iter().find(|known| **known == name) else {
                return Err(malformed(format!("{within}a member is unknown; known are {}", known.join(", "))));
            };
            if members.insert(*name, raw).is_some() {
                return Err(malformed(format!("{within}{name} is given twice")));
            }
        }
        Ok(Self(members))
    }

    /// The value of a member; none if it is left out or null.
    fn read<T: DeserializeOwned>(&mut self, name: &'static str, expected: &str) -> Result<Option<T>, Rejection> {
        let Some(raw) = self.0.remove(name).filter(|raw| !is_null(raw)) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| malformed(format!("{name}: expected {expected}")))
    }
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// Tags, of which none is given twice.
struct Tags(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Pairs::deserialize(deserializer)?;
        let mut tags = BTreeMap::new();
        for (key, raw) in pairs.0 {
            let value = serde_json::from_str(raw.get()).map_err(|_| D::Error::custom("a tag"))?;
            if tags.insert(key, value).is_some() {
                return Err(D::Error::custom("a tag"));
            }
        }
        Ok(Self(tags))
    }
}

fn malformed(message: impl Into<String>) -> Rejection {
    Rejection { reason: RejectionReason::Malformed, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_member_by_member() {
        let text = r#"{"op":"rotate","name":"litellm/k","new_name":"litellm/k2","value":"sk-\u00e9\n","description":null,
            "tags":{"a":"b"},"team":{"aws_role_name":"r","aws_region_name":"eu-west-1"},"recovery_window_in_days":9}"#;
        let draft = parse(text.as_bytes()).unwrap();
        assert_eq!(draft.op.as_deref(), Some("rotate"));
        assert_eq!(draft.value.unwrap().expose(), "sk-é\n");
        assert_eq!(draft.given.description, None);
        assert_eq!(draft.given.tags.unwrap().get("a").map(String::as_str), Some("b"));
        assert_eq!(draft.team, Some(("r".to_owned(), "eu-west-1".to_owned())));
        assert_eq!(draft.recovery_window_in_days, Some(9));
    }

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        for (text, message) in [
            (&b"{\"op\":\"create\",\"canary\":1}"[..], "a member is unknown; known are op, name"),
            (b"{\"op\":\"create\",\"op\":\"canary\"}", "op is given twice"),
            (b"{\"value\":canary}", "not a JSON object, at line 1, column"),
            (b"{\"value\":\"canary", "JSON that is cut off, at line 1, column"),
            (b"{\"value\":12}", "value: expected text"),
            (b"{\"tags\":{\"canary\":1}}", "tags: expected an object of texts, each key once"),
            (b"{\"tags\":{\"canary\":\"a\",\"canary\":\"b\"}}", "tags: expected an object of texts, each key once"),
            (b"{\"replica_regions\":\"canary\"}", "replica_regions: expected a list of texts"),
            (b"{\"recovery_window_in_days\":7.5}", "recovery_window_in_days: expected a whole number"),
            (b"{\"team\":{\"aws_role_name\":\"canary\"}}", "team: aws_region_name is required"),
            (b"{\"team\":{\"canary\":\"x\"}}", "team: a member is unknown"),
            (b"{\"team\":\"canary\"}", "team: not a JSON object"),
            (b"[\"canary\"]", "not a JSON object, at line 1"),
            (b"\"\xff canary\"", "not UTF-8"),
            (b"{} canary", "not a JSON object, at line 1"),
            (b"", "JSON that is cut off, at line 1, column 0"),
        ] {
            let rejection = parse(text).unwrap_err();
            assert!(rejection.message.starts_with(message), "{}: {message}", rejection.message);
            assert!(!rejection.message.contains("canary"), "{}", rejection.message);
        }
    }

    #[test]
    fn the_schema_has_the_members_that_are_read() {
        let schema = schema();
        let mut members: Vec<&str> = MEMBERS.to_vec();
        members.sort_unstable();
        let mut properties: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        properties.sort_unstable();
        assert_eq!(properties, members);
        assert_eq!(schema["additionalProperties"], false);
    }
}

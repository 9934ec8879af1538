//! A secret value, and the few things that are done with one without writing it out.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::names::Member;

/// The text of a secret. It is neither printed nor serialised; its memory is overwritten when the last share ends.
///
/// Honest limits: the buffers of TLS, HTTP and the AWS SDK that the text came through are not ours to overwrite.
pub struct SecretValue(Arc<SecretString>);

/// The members of a JSON object, in its order; of duplicates the last.
#[derive(Debug)]
pub struct Members {
    /// Each member with its value; `None` stands for `null`.
    pub members: Vec<(Member, Option<SecretValue>)>,
    /// Names that the object holds more than once.
    pub duplicates: BTreeSet<Member>,
}

/// A value that was expected to be a JSON object and is not. It says nothing of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAnObject {
    /// Not JSON at all.
    #[error("the value is not JSON")]
    NotJson,
    /// JSON, but an array, a string, a number, a boolean or null.
    #[error("the value is JSON, but not an object")]
    OtherJson,
}

// === impl SecretValue ===

impl SecretValue {
    /// Takes ownership of the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Arc::new(SecretString::from(text)))
    }

    /// A secret stored as `SecretBinary`: carried as its standard base64 text, as the AWS CLI prints it.
    #[must_use]
    pub fn from_binary(bytes: &[u8]) -> Self {
        Self::new(STANDARD.encode(bytes))
    }

    /// The bytes behind the text of [`SecretValue::from_binary`]; none if it is not base64.
    #[must_use]
    pub fn to_binary(&self) -> Option<Vec<u8>> {
        STANDARD.decode(self.expose()).ok()
    }

    /// Another handle on the same text. Not `Clone`, so that each place that keeps a value says so.
    #[must_use]
    pub fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The text itself. `tests/architecture.rs` lists the files that may call this.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.expose().len()
    }

    /// True for the empty text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True for a text of visible ASCII characters, and at least one.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        is_visible(self.expose())
    }

    /// The SHA-256 of the text, in hex: what LiteLLM calls an unnamed virtual key by (`proxy/_types.py`, `hash_token`).
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        let digest = Sha256::digest(self.expose());
        digest
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect()
    }

    /// Joins the pieces of a template.
    #[must_use]
    pub fn concat<'a>(pieces: impl Iterator<Item = Piece<'a>>) -> Self {
        let mut text = Zeroizing::new(String::new());
        for piece in pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Plain(value) => text.push_str(value.expose()),
                Piece::Url(value) => percent_encode(value.expose(), &mut text),
                Piece::Base64(value) => text.push_str(&Zeroizing::new(STANDARD.encode(value.expose()))),
                Piece::Json(value) => {
                    // Writing a string into memory does not fail.
                    let quoted = serde_json::to_string(value.expose()).unwrap_or_default();
                    text.push_str(&Zeroizing::new(quoted));
                }
            }
        }
        // Not a move out of `text`: a string that grew leaves copies of its beginning in freed memory.
        Self::new(text.as_str().to_owned())
    }

    /// Splits a JSON object into its members, byte for byte: a string becomes its text, a number or a boolean its JSON
    /// text, an object or an array its JSON text without white space between tokens.
    ///
    /// # Errors
    /// If the text is not a JSON object, or anything follows it.
    pub fn members(&self) -> Result<Members, NotAnObject> {
        let Pairs(pairs) = serde_json::from_str(self.expose()).map_err(|_| {
            match serde_json::from_str::<&RawValue>(self.expose()) {
                Ok(json) if !json.get().trim_start().starts_with('{') => NotAnObject::OtherJson,
                _ => NotAnObject::NotJson,
            }
        })?;
        let mut members: Vec<(Member, Option<SecretValue>)> = Vec::with_capacity(pairs.len());
        let mut positions: HashMap<Member, usize> = HashMap::with_capacity(pairs.len());
        let mut duplicates = BTreeSet::new();
        for (name, raw) in pairs {
            let value = member_text(raw)?;
            let name = Member::new(name);
            if let Some(&position) = positions.get(&name) {
                if let Some(slot) = members.get_mut(position) {
                    slot.1 = value;
                }
                duplicates.insert(name);
            } else {
                positions.insert(name.clone(), members.len());
                members.push((name, value));
            }
        }
        Ok(Members { members, duplicates })
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue([redacted])")
    }
}

impl PartialEq for SecretValue {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.expose() == other.expose()
    }
}

impl Eq for SecretValue {}

/// One piece of a template, with the filter that is applied to it.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Text of the template itself.
    Literal(&'a str),
    /// A value as it is.
    Plain(&'a SecretValue),
    /// A value for a part of a URL: all but `A-Z a-z 0-9 - . _ ~` percent-encoded (RFC 3986, 2.3).
    Url(&'a SecretValue),
    /// A value in standard base64 with padding (RFC 4648, 4).
    Base64(&'a SecretValue),
    /// A value as a JSON string, with its quotation marks.
    Json(&'a SecretValue),
}

/// The members of a JSON object as they stand there: raw, in order, with their duplicates.
pub struct Pairs<'a>(pub Vec<(String, &'a RawValue)>);

impl fmt::Debug for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pairs").field(&self.0.len()).finish()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn member_text(raw: &RawValue) -> Result<Option<SecretValue>, NotAnObject> {
    let json = raw.get();
    Ok(match json.as_bytes().first() {
        Some(b'n') => None,
        Some(b'"') => Some(SecretValue::new(serde_json::from_str(json).map_err(|_| NotAnObject::NotJson)?)),
        Some(b'{' | b'[') => Some(SecretValue::new(compact(json))),
        _ => Some(SecretValue::new(json.to_owned())),
    })
}

/// Drops the white space between the tokens of a JSON text, and nothing else: the order, the duplicates and the spelling
/// of numbers stay, which a parser's round trip would not promise.
fn compact(json: &str) -> String {
    let mut in_string = false;
    let mut escaped = false;
    let mut text = String::with_capacity(json.len());
    text.extend(json.chars().filter(|&c| {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            return true;
        }
        in_string = c == '"';
        !matches!(c, ' ' | '\t' | '\n' | '\r')
    }));
    text
}

fn percent_encode(text: &str, into: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.extend([byte >> 4, byte & 15].iter().filter_map(|&digit| HEX.get(usize::from(digit))));
        }
    }
}

/// True for a text of visible ASCII characters, and at least one.
#[must_use]
pub fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(json: &str) -> Vec<(String, Option<String>)> {
        let value = SecretValue::new(json.to_owned());
        let split = value.members().unwrap();
        split.members.iter().map(|(m, v)| (m.to_string(), v.as_ref().map(|v| v.expose().to_owned()))).collect()
    }

    #[test]
    fn a_primary_secret_is_split_byte_for_byte() {
        let json = r#" {"s":"a\nb ✓\u0000", "n": 12345678901234567890123, "f":1.50, "t": true, "z":null,
                       "o": { "b" : 1, "a" : [ 1, "x \" y" ], "b" : 2 }, "e": ""} "#;
        let expected: [(&str, Option<&str>); 7] = [
            ("s", Some("a\nb ✓\0")),
            ("n", Some("12345678901234567890123")),
            ("f", Some("1.50")),
            ("t", Some("true")),
            ("z", None),
            ("o", Some(r#"{"b":1,"a":[1,"x \" y"],"b":2}"#)),
            ("e", Some("")),
        ];
        let expected: Vec<_> = expected.iter().map(|(m, v)| ((*m).to_owned(), v.map(str::to_owned))).collect();
        assert_eq!(members(json), expected);
    }

    #[test]
    fn of_duplicate_members_the_last_wins_and_is_named() {
        let value = SecretValue::new(r#"{"K":"1","L":"x","K":"2"}"#.to_owned());
        let split = value.members().unwrap();
        assert_eq!(split.duplicates, BTreeSet::from([Member::new("K")]));
        assert_eq!(members(r#"{"K":"1","L":"x","K":"2"}"#).first().unwrap().1.as_deref(), Some("2"));
    }

    #[test]
    fn what_is_not_an_object_is_told_apart_without_its_text() {
        let of = |json: &str| SecretValue::new(json.to_owned()).members().unwrap_err();
        for json in ["", "abc", "{", "{\"a\":1", "{} x", "\u{feff}{}", "{\"a\":\"\\ud800\"}", "{a:1}"] {
            assert_eq!(of(json), NotAnObject::NotJson, "{json}");
        }
        for json in ["[1]", "\"x\"", "1", "null", "true", " [ ] "] {
            assert_eq!(of(json), NotAnObject::OtherJson, "{json}");
        }
        assert!(SecretValue::new("{}".to_owned()).members().unwrap().members.is_empty());
    }

    #[test]
    fn templates_filter_their_pieces() {
        let value = SecretValue::new("p@ss/\"w\" ✓".to_owned());
        let text = |piece| SecretValue::concat([Piece::Literal("<"), piece, Piece::Literal(">")].into_iter());
        assert_eq!(text(Piece::Plain(&value)).expose(), "<p@ss/\"w\" ✓>");
        assert_eq!(text(Piece::Url(&value)).expose(), "<p%40ss%2F%22w%22%20%E2%9C%93>");
        assert_eq!(text(Piece::Base64(&value)).expose(), "<cEBzcy8idyIg4pyT>");
        assert_eq!(text(Piece::Json(&value)).expose(), "<\"p@ss/\\\"w\\\" ✓\">");
    }

    #[test]
    fn an_unnamed_key_is_hashed_as_litellm_does() {
        let hash = SecretValue::new("sk-abc123".to_owned()).sha256_hex();
        assert_eq!(hash, "0a2f6ba7b3d4973643557c2bbae4f2f717b3f1d1baf8d730db9272ae6d4824ab");
    }

    #[test]
    fn debug_is_redacted() {
        let value = SecretValue::new("canary".to_owned());
        assert!(!format!("{value:?}").contains("canary"));
    }
}

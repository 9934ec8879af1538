//! What the query protocol's services are asked: a form, whose lists have numbered members.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use crate::answer::Refusal;

/// A form's fields.
pub(crate) type Form = BTreeMap<String, String>;

pub(crate) fn parse(body: &[u8]) -> Form {
    form_urlencoded::parse(body).into_owned().collect()
}

/// What a call says, without its token: for the record.
pub(crate) fn parameters(form: &Form) -> Json {
    let kept = form.iter().filter(|(key, _)| *key != "WebIdentityToken");
    kept.map(|(key, value)| (key.clone(), Json::from(value.as_str()))).collect()
}

/// A field that has to be there; `member` is its name in the refusal.
pub(crate) fn required<'a>(form: &'a Form, key: &str, member: &str) -> Result<&'a str, Refusal> {
    let value = form.get(key).map(String::as_str).filter(|value| !value.is_empty());
    value.ok_or_else(|| invalid("null", member, "Member must not be null"))
}

/// How many members a list has. They are numbered from one without a gap.
pub(crate) fn count(form: &Form, list: &str) -> Result<usize, Refusal> {
    let prefix = format!("{list}.member.");
    let number = |key: &String| key.strip_prefix(&prefix).map(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let numbers: Option<BTreeSet<usize>> = form.keys().filter_map(number).collect();
    let numbers = numbers.filter(|numbers| numbers.iter().copied().eq(1..=numbers.len()));
    let malformed = || Refusal::new("MalformedInput", format!("the members of {list} are not numbered from 1 on"));
    numbers.map(|numbers| numbers.len()).ok_or_else(malformed)
}

/// The members of a list of texts.
pub(crate) fn texts<'a>(form: &'a Form, list: &str) -> Result<Vec<&'a str>, Refusal> {
    let text = |number: usize| form.get(&format!("{list}.member.{number}")).map_or("", String::as_str);
    Ok((1..=count(form, list)?).map(text).collect())
}

/// AWS's sentence about a member that breaks one of the rules of its type.
pub(crate) fn invalid(value: &str, member: &str, rule: &str) -> Refusal {
    let value = if value == "null" { value.to_owned() } else { format!("'{value}'") };
    let message =
        format!("1 validation error detected: Value {value} at '{member}' failed to satisfy constraint: {rule}");
    Refusal::new("ValidationError", message)
}

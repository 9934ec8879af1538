//! From what an entry says to what is done: the name of its secret, and whether its author may ask for that.

use std::collections::BTreeSet;

use crate::domain::{
    names::SecretName,
    value::SecretValue,
    virtual_key::{Change, Draft, Given, Metadata, Operation, Order, Rejection, RejectionReason, Rules},
};

/// AWS's limit of a value, in bytes (`CreateSecret`, `SecretString`).
pub const LONGEST_VALUE: usize = 65_536;
/// LiteLLM's word before the hash of an unnamed key (`proxy/hooks/key_management_event_hooks.py`).
const UNNAMED: &str = "virtual-key-";
/// AWS's limit of a description (`CreateSecret`).
const LONGEST_DESCRIPTION: usize = 2048;
/// AWS's limits of tags (`Tag`).
const MOST_TAGS: usize = 50;
const LONGEST_TAG: (usize, usize) = (128, 256);

/// What an entry asks for, if it may. A message says what is wrong and never what stands there.
///
/// # Errors
/// If the entry can never succeed.
pub fn order(draft: &Draft, rules: &Rules) -> Result<Order, Rejection> {
    let Draft { op, name, alias, new_name, new_alias, value, given, recovery_window_in_days, team } = draft;
    let operation = op.as_deref().ok_or_else(|| malformed("op is required: create, rotate, rename or delete"))?;
    let operation = Operation::parse(operation)
        .ok_or_else(|| malformed("op: expected create, rotate, rename or delete, in small letters"))?;
    if !rules.operations.contains(&operation) {
        return Err(not_allowed(format!("op {operation} is not among keytide.spool.operations")));
    }
    let valued = matches!(operation, Operation::Create | Operation::Rotate);
    let renames = matches!(operation, Operation::Rotate | Operation::Rename);
    refuse(!valued && value.is_some(), operation, "value")?;
    refuse(!renames && new_name.is_some(), operation, "new_name")?;
    refuse(!renames && new_alias.is_some(), operation, "new_alias")?;
    refuse(operation != Operation::Delete && recovery_window_in_days.is_some(), operation, "recovery_window_in_days")?;
    refuse(
        operation == Operation::Delete && !given.is_empty(),
        operation,
        "description, tags, kms_key_id or replica_regions",
    )?;
    let value = check_value(value.as_ref(), valued, operation)?;
    let unnamed = value.filter(|_| operation == Operation::Create);
    let first = named("name", name.as_deref(), "alias", alias.as_deref(), unnamed, rules)?;
    let second = match (new_name, new_alias) {
        (None, None) => None,
        _ => Some(named("new_name", new_name.as_deref(), "new_alias", new_alias.as_deref(), value, rules)?),
    };
    let change = match (operation, second) {
        (Operation::Rename, None) => return Err(malformed("new_name or new_alias is required for rename")),
        (Operation::Rename | Operation::Rotate, Some(to)) if to != first => Change::Move { from: first, to, valued },
        (Operation::Rename, Some(_)) => return Err(malformed("new_name: expected another name than the old one")),
        (Operation::Create | Operation::Rotate, _) => Change::Store(first),
        (Operation::Delete, _) => {
            let days = recovery_window_in_days.unwrap_or(7);
            let days = u8::try_from(days).ok().filter(|days| (7..=30).contains(days));
            let days = days.ok_or_else(|| malformed("recovery_window_in_days: expected 7 to 30"))?;
            Change::Delete { name: first, days }
        }
    };
    let writer =
        match team {
            None => None,
            Some((role, region)) => {
                let listed = rules.teams.iter().position(|(known, there)| known.as_str() == role && there == region);
                Some(listed.ok_or_else(|| {
                    not_allowed("team: this pair of role and region is not among keytide.spool.teams")
                })?)
            }
        };
    Ok(Order { operation, change, given: metadata(given, rules)?, writer })
}

/// The entry that a plain file is: a value, stored under the alias that is the file's name.
#[must_use]
pub fn plain(alias: String, value: SecretValue) -> Draft {
    Draft { op: Some(Operation::Create.label().to_owned()), alias: Some(alias), value: Some(value), ..Draft::default() }
}

fn check_value(
    value: Option<&SecretValue>,
    valued: bool,
    operation: Operation,
) -> Result<Option<&SecretValue>, Rejection> {
    match value {
        None if valued => Err(malformed(format!("value is required for {operation}"))),
        Some(value) if value.is_empty() => Err(malformed("value: expected at least one character")),
        Some(value) if value.len() > LONGEST_VALUE => {
            let message = "value: expected at most 65,536 bytes, which is AWS's limit";
            Err(Rejection { reason: RejectionReason::TooLarge, message: message.to_owned() })
        }
        value => Ok(value),
    }
}

/// The name of a secret, given as it is or as an alias; for a key that may be unnamed, made of its value.
fn named(
    name_member: &str,
    name: Option<&str>,
    alias_member: &str,
    alias: Option<&str>,
    unnamed: Option<&SecretValue>,
    rules: &Rules,
) -> Result<SecretName, Rejection> {
    let prefix = &rules.prefix;
    let (member, text) = match (name, alias.filter(|alias| !alias.is_empty()), unnamed) {
        (Some(_), Some(_), _) => {
            return Err(malformed(format!("expected {name_member} or {alias_member}, not both")));
        }
        (Some(name), None, _) => (name_member, name.to_owned()),
        (None, Some(alias), _) => (alias_member, format!("{prefix}{alias}")),
        (None, None, Some(value)) => (alias_member, format!("{prefix}{UNNAMED}{}", value.sha256_hex())),
        (None, None, None) => {
            return Err(malformed(format!(
                "{name_member} or {alias_member} is required here: only create, and rotate for its new name, make a name \
                 of the value"
            )));
        }
    };
    let name = SecretName::parse(text).map_err(|expected| malformed(format!("{member}: {expected}")))?;
    if rules.hosted.iter().any(|secret| secret.may_mean(&name)) {
        return Err(not_allowed(format!("{member}: this is the secret of a hosted key, which no entry may touch")));
    }
    let below = name.as_str().strip_prefix(prefix.as_str()).is_some_and(|rest| !rest.is_empty());
    if !below && !rules.allow_names.contains(&name) {
        return Err(not_allowed(format!(
            "{member}: expected the name of a secret below the prefix {prefix}, or one of keytide.spool.allow_names"
        )));
    }
    Ok(name)
}

/// What an entry gives itself, where that is not the settings anyway.
fn metadata(given: &Given, rules: &Rules) -> Result<Option<Box<Given>>, Rejection> {
    let Given { description, tags, kms_key_id, replica_regions } = given.clone();
    let Metadata { description: ours, tags: our_tags, kms_key_id: our_key, replica_regions: our_regions } =
        &rules.settings;
    let allow = &rules.allow;
    // The empty text is no text, as in LiteLLM.
    let description = description.filter(|text| !text.is_empty() && Some(text) != ours.as_ref());
    if let Some(text) = &description {
        if !allow.description {
            return Err(not_allowed("description: differs from the settings (keytide.spool.allow.description)"));
        }
        if text.chars().count() > LONGEST_DESCRIPTION {
            return Err(malformed("description: expected at most 2,048 characters"));
        }
    }
    let tags = match tags {
        None => None,
        Some(tags) => {
            for (key, value) in &tags {
                if our_tags.get(key) != Some(value) && (our_tags.contains_key(key) || !allow.tag_keys.contains(key)) {
                    return Err(not_allowed("tags: one differs from the settings (keytide.spool.allow.tag_keys)"));
                }
                let (longest_key, longest_value) = LONGEST_TAG;
                if key.is_empty() || key.chars().count() > longest_key || value.chars().count() > longest_value {
                    return Err(malformed("tags: expected keys of 1 to 128 characters and values of at most 256"));
                }
            }
            let mut all = our_tags.clone();
            all.extend(tags);
            if all.len() > MOST_TAGS {
                return Err(malformed("tags: expected at most 50, those of the settings included"));
            }
            Some(all).filter(|all| all != our_tags)
        }
    };
    let kms_key_id = kms_key_id.filter(|key| !key.is_empty() && Some(key) != our_key.as_ref());
    if kms_key_id.as_ref().is_some_and(|key| !allow.kms_key_ids.contains(key)) {
        return Err(not_allowed("kms_key_id: differs from the settings (keytide.spool.allow.kms_key_ids)"));
    }
    let other = |regions: &BTreeSet<String>| {
        regions.iter().any(|region| !our_regions.contains(region) && !allow.replica_regions.contains(region))
    };
    if replica_regions.as_ref().is_some_and(other) {
        return Err(not_allowed("replica_regions: one is not allowed (keytide.spool.allow.replica_regions)"));
    }
    // Those of the settings are always there, as their tags are.
    let replica_regions = replica_regions
        .map(|regions| regions.union(our_regions).cloned().collect::<BTreeSet<_>>())
        .filter(|regions| regions != our_regions);
    let given = Given { description, tags, kms_key_id, replica_regions };
    Ok((!given.is_empty()).then(|| Box::new(given)))
}

fn refuse(wrong: bool, operation: Operation, member: &str) -> Result<(), Rejection> {
    if wrong { Err(malformed(format!("{operation} has no {member}: leave it out"))) } else { Ok(()) }
}

fn malformed(message: impl Into<String>) -> Rejection {
    Rejection { reason: RejectionReason::Malformed, message: message.into() }
}

fn not_allowed(message: impl Into<String>) -> Rejection {
    Rejection { reason: RejectionReason::NotAllowed, message: message.into() }
}

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::domain::{identity::RoleArn, names::SecretId, virtual_key::Allow};

    const ROLE: &str = "arn:aws:iam::123456789012:role/team";

    fn rules() -> Rules {
        let name = |text: &str| SecretName::parse(text).unwrap();
        Rules {
            prefix: "keys/".to_owned(),
            settings: Metadata {
                description: Some("ours".to_owned()),
                tags: BTreeMap::from([("origin".to_owned(), "keytide".to_owned())]),
                kms_key_id: Some("alias/ours".to_owned()),
                replica_regions: BTreeSet::from(["eu-west-1".to_owned()]),
            },
            operations: Operation::ALL.into_iter().collect(),
            allow: Allow {
                description: true,
                tag_keys: BTreeSet::from(["team".to_owned(), "origin".to_owned()]),
                kms_key_ids: BTreeSet::from(["alias/theirs".to_owned()]),
                replica_regions: BTreeSet::from(["us-west-2".to_owned()]),
            },
            allow_names: BTreeSet::from([name("elsewhere/one")]),
            hosted: ["keys/hosted", "arn:aws:secretsmanager:us-east-1:123456789012:secret:keys/by-arn-AbCdEf"]
                .map(|id| SecretId::parse(id).unwrap())
                .into(),
            teams: vec![(RoleArn::parse(ROLE).unwrap(), "eu-west-1".to_owned())],
        }
    }

    /// An entry in the words of its JSON.
    fn read(json: &str) -> Result<Order, Rejection> {
        order(&draft(json), &rules())
    }

    fn draft(json: &str) -> Draft {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let tags = json["tags"]
            .as_object()
            .map(|tags| tags.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect());
        let regions = json["replica_regions"]
            .as_array()
            .map(|regions| regions.iter().map(|region| region.as_str().unwrap().to_owned()).collect());
        Draft {
            op: text("op"),
            name: text("name"),
            alias: text("alias"),
            new_name: text("new_name"),
            new_alias: text("new_alias"),
            value: text("value").map(SecretValue::new),
            given: Given {
                description: text("description"),
                tags,
                kms_key_id: text("kms_key_id"),
                replica_regions: regions,
            },
            recovery_window_in_days: json["days"].as_u64(),
            team: text("role").zip(text("region")),
        }
    }

    #[test]
    fn an_entry_means_these_secrets() {
        let hash = SecretValue::new("v".to_owned()).sha256_hex();
        for (json, names) in [
            (r#"{"op":"create","name":"keys/a","value":"v"}"#, vec!["keys/a".to_owned()]),
            (r#"{"op":"create","alias":"a","value":"v"}"#, vec!["keys/a".to_owned()]),
            (r#"{"op":"create","alias":"keys/a","value":"v"}"#, vec!["keys/keys/a".to_owned()]),
            (r#"{"op":"create","alias":"a/b","value":"v"}"#, vec!["keys/a/b".to_owned()]),
            (r#"{"op":"create","alias":"","value":"v"}"#, vec![format!("keys/virtual-key-{hash}")]),
            (r#"{"op":"create","value":"v"}"#, vec![format!("keys/virtual-key-{hash}")]),
            (r#"{"op":"create","name":"elsewhere/one","value":"v"}"#, vec!["elsewhere/one".to_owned()]),
            (r#"{"op":"rotate","name":"keys/a","value":"v"}"#, vec!["keys/a".to_owned()]),
            (r#"{"op":"rotate","name":"keys/a","new_name":"keys/a","value":"v"}"#, vec!["keys/a".to_owned()]),
            (r#"{"op":"rotate","name":"keys/a","new_alias":"b","value":"v"}"#, vec!["keys/a".into(), "keys/b".into()]),
            (
                r#"{"op":"rotate","alias":"a","new_alias":"","value":"v"}"#,
                vec!["keys/a".into(), format!("keys/virtual-key-{hash}")],
            ),
            (r#"{"op":"rename","name":"keys/a","new_name":"keys/b"}"#, vec!["keys/a".into(), "keys/b".into()]),
            (r#"{"op":"delete","alias":"a"}"#, vec!["keys/a".to_owned()]),
            (r#"{"op":"delete","name":"keys/by-arn-XyZ"}"#, vec!["keys/by-arn-XyZ".to_owned()]),
        ] {
            let order = read(json).unwrap_or_else(|rejection| panic!("{json}: {}", rejection.message));
            let is: Vec<String> = order.change.names().map(ToString::to_string).collect();
            assert_eq!(is, names, "{json}");
            assert_eq!((order.given, order.writer), (None, None));
        }
    }

    #[test]
    fn what_can_never_succeed_is_refused() {
        use RejectionReason::{Malformed, NotAllowed};
        for (json, reason, message) in [
            (r#"{"name":"keys/a","value":"v"}"#, Malformed, "op is required"),
            (r#"{"op":"Create","name":"keys/a","value":"v"}"#, Malformed, "op: expected"),
            (r#"{"op":"create","name":"keys/a"}"#, Malformed, "value is required for create"),
            (r#"{"op":"create","name":"keys/a","value":""}"#, Malformed, "value: expected at least one"),
            (r#"{"op":"create","name":"keys/a","alias":"a","value":"v"}"#, Malformed, "expected name or alias"),
            (r#"{"op":"create","name":"","value":"v"}"#, Malformed, "name: expected the name"),
            (r#"{"op":"create","name":"keys/","value":"v"}"#, NotAllowed, "name: expected the name of a secret below"),
            (r#"{"op":"create","name":"keys//a","value":"v"}"#, Malformed, "name: expected the name"),
            (r#"{"op":"create","alias":"../a","value":"v"}"#, Malformed, "alias: expected the name"),
            (r#"{"op":"create","alias":"a b","value":"v"}"#, Malformed, "alias: expected the name"),
            (
                r#"{"op":"create","name":"other/a","value":"v"}"#,
                NotAllowed,
                "name: expected the name of a secret below",
            ),
            (
                r#"{"op":"create","name":"keysx/a","value":"v"}"#,
                NotAllowed,
                "name: expected the name of a secret below",
            ),
            (r#"{"op":"create","name":"keys/hosted","value":"v"}"#, NotAllowed, "name: this is the secret of a hosted"),
            (r#"{"op":"create","alias":"by-arn","value":"v"}"#, NotAllowed, "alias: this is the secret of a hosted"),
            (
                r#"{"op":"create","alias":"by-arn-AbCdEf","value":"v"}"#,
                NotAllowed,
                "alias: this is the secret of a hosted",
            ),
            (r#"{"op":"rename","name":"keys/a","new_name":"keys/hosted"}"#, NotAllowed, "new_name: this is the secret"),
            (r#"{"op":"rename","name":"keys/a"}"#, Malformed, "new_name or new_alias is required"),
            (r#"{"op":"rename","name":"keys/a","new_name":"keys/a"}"#, Malformed, "new_name: expected another"),
            (r#"{"op":"rename","name":"keys/a","new_alias":""}"#, Malformed, "new_name or new_alias is required here"),
            (r#"{"op":"rename","name":"keys/a","new_name":"keys/b","value":"v"}"#, Malformed, "rename has no value"),
            (r#"{"op":"delete","name":"keys/a","value":"v"}"#, Malformed, "delete has no value"),
            (r#"{"op":"delete","value":null}"#, Malformed, "name or alias is required here"),
            (r#"{"op":"delete","name":"keys/a","days":6}"#, Malformed, "recovery_window_in_days: expected 7 to 30"),
            (r#"{"op":"delete","name":"keys/a","days":31}"#, Malformed, "recovery_window_in_days: expected 7 to 30"),
            (r#"{"op":"delete","name":"keys/a","days":263}"#, Malformed, "recovery_window_in_days: expected 7 to 30"),
            (r#"{"op":"delete","name":"keys/a","description":"d"}"#, Malformed, "delete has no description"),
            (r#"{"op":"create","name":"keys/a","value":"v","days":7}"#, Malformed, "create has no recovery_window"),
            (r#"{"op":"create","name":"keys/a","value":"v","new_name":"keys/b"}"#, Malformed, "create has no new_name"),
            (r#"{"op":"rotate","value":"v"}"#, Malformed, "name or alias is required here"),
            (r#"{"op":"create","value":"v","tags":{"other":"x"}}"#, NotAllowed, "tags: one differs"),
            (r#"{"op":"create","value":"v","tags":{"origin":"x"}}"#, NotAllowed, "tags: one differs"),
            (r#"{"op":"create","value":"v","kms_key_id":"alias/other"}"#, NotAllowed, "kms_key_id: differs"),
            (
                r#"{"op":"create","value":"v","replica_regions":["eu-west-2"]}"#,
                NotAllowed,
                "replica_regions: one is not",
            ),
            (
                r#"{"op":"create","value":"v","role":"arn:aws:iam::123456789012:role/team","region":"us-east-1"}"#,
                NotAllowed,
                "team: this pair",
            ),
            (
                r#"{"op":"create","value":"v","role":"arn:aws:iam::123456789012:role/other","region":"eu-west-1"}"#,
                NotAllowed,
                "team: this pair",
            ),
        ] {
            let rejection = read(json).expect_err(json);
            assert_eq!(rejection.reason, reason, "{json}: {}", rejection.message);
            assert!(rejection.message.starts_with(message), "{json}: {}", rejection.message);
        }
        let too_large = plain("a".to_owned(), SecretValue::new("v".repeat(LONGEST_VALUE + 1)));
        assert_eq!(order(&too_large, &rules()).unwrap_err().reason, RejectionReason::TooLarge);
        let largest = plain("a".to_owned(), SecretValue::new("v".repeat(LONGEST_VALUE)));
        assert!(order(&largest, &rules()).is_ok());
        let mut less = rules();
        less.operations.remove(&Operation::Delete);
        let rejection = order(&draft(r#"{"op":"delete","name":"keys/a"}"#), &less).unwrap_err();
        assert_eq!(rejection.reason, NotAllowed);
    }

    #[test]
    fn what_an_entry_gives_is_kept_only_where_it_differs() {
        let same = r#"{"op":"create","name":"keys/a","value":"v","description":"ours","tags":{"origin":"keytide"},
            "kms_key_id":"alias/ours","replica_regions":["eu-west-1"]}"#;
        assert_eq!(read(same).unwrap().given, None);
        let nothing = r#"{"op":"create","name":"keys/a","value":"v","description":"","tags":{},"kms_key_id":"",
            "replica_regions":[]}"#;
        assert_eq!(read(nothing).unwrap().given, None);
        let other = r#"{"op":"create","name":"keys/a","value":"v","description":"theirs","tags":{"team":"core"},
            "kms_key_id":"alias/theirs","replica_regions":["us-west-2"],
            "role":"arn:aws:iam::123456789012:role/team","region":"eu-west-1"}"#;
        let order = read(other).unwrap();
        assert_eq!(order.writer, Some(0));
        let Metadata { description, tags, kms_key_id, replica_regions } = order.metadata(&rules().settings);
        assert_eq!((description.as_deref(), kms_key_id.as_deref()), (Some("theirs"), Some("alias/theirs")));
        assert!(
            tags.iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .eq([("origin", "keytide"), ("team", "core")])
        );
        assert!(replica_regions.iter().eq(["eu-west-1", "us-west-2"]));
    }

    /// A text whose every part is recognised: no word of ours has eight such characters in a row.
    fn canary() -> impl Strategy<Value = String> {
        "[QXZ]{8,40}"
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        option::of(prop_oneof![
            canary(),
            canary().prop_map(|canary| format!("keys/{canary}")),
            canary().prop_map(|canary| format!("keys/ {canary}\n//..")),
            Just(String::new()),
            Just("keys/hosted".to_owned()),
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn no_message_repeats_what_stands_in_the_entry(
            op in option::of(prop_oneof![
                8 => (0..4_usize).prop_map(|i| Operation::ALL[i].label().to_owned()),
                1 => canary(),
            ]),
            (name, alias, new_name, new_alias) in (text(), text(), text(), text()),
            value in option::of(prop_oneof![4 => canary(), 1 => Just(String::new()), 1 => canary().prop_map(|canary| canary.repeat(9000))]),
            (description, kms_key_id) in (text(), text()),
            tags in option::of(vec((canary(), canary()), 0..3)),
            regions in option::of(vec(canary(), 0..3)),
            days in option::of(any::<u64>()),
            team in option::of((canary(), canary())),
            allow_description in any::<bool>(),
        ) {
            let draft = Draft {
                op, name, alias, new_name, new_alias,
                value: value.map(SecretValue::new),
                given: Given {
                    description: description.map(|text| text.repeat(30)),
                    tags: tags.map(|tags| tags.into_iter().collect()),
                    kms_key_id,
                    replica_regions: regions.map(|regions| regions.into_iter().collect()),
                },
                recovery_window_in_days: days,
                team,
            };
            let mut rules = rules();
            rules.allow.description = allow_description;
            match order(&draft, &rules) {
                Err(Rejection { message, .. }) => {
                    let canary = message.split(|c| !"QXZ".contains(c)).find(|part| part.len() > 2);
                    prop_assert_eq!(canary, None, "{}", message);
                    prop_assert!(days.is_none_or(|days| days < 1000 || !message.contains(&days.to_string())), "{}", message);
                }
                Ok(order) => {
                    for name in order.change.names() {
                        prop_assert!(name.as_str().len() > 5 && name.as_str().starts_with("keys/"), "{}", name);
                        prop_assert!(!rules.hosted.iter().any(|hosted| hosted.may_mean(name)), "{}", name);
                    }
                }
            }
        }
    }
}

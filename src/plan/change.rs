//! Whether a reading of one secret is applied now, or held until the next one agrees.

use std::collections::BTreeSet;

use crate::domain::{
    names::{KeyName, VersionId},
    snapshot::{Problem, Reason, Version},
};

/// What is known of a secret when a new reading of it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The version that was applied last.
    pub applied: Option<&'a Version>,
    /// The version that was held by the reading before this one.
    pub held: Option<&'a VersionId>,
    /// The keys that were exported of it without being listed.
    pub wholesale: &'a BTreeSet<KeyName>,
}

/// Applies the two rules against accidents: no step back to an older version, and no mass removal of keys, unless two
/// readings in a row say the same or, for removals, somebody accepted them.
///
/// # Errors
/// The reason to hold the reading.
pub fn judge(
    before: Before<'_>,
    version: &Version,
    wholesale: &BTreeSet<KeyName>,
    accept_removals: bool,
) -> Result<(), Problem> {
    let Before { applied, held, wholesale: exported } = before;
    if held == Some(&version.id) {
        return Ok(());
    }
    let older = applied.filter(|applied| {
        applied.id != version.id
            && matches!((applied.created_ms, version.created_ms), (Some(applied), Some(read)) if read < applied)
    });
    if let Some(applied) = older {
        return Err(Problem::new(
            Reason::StepBack,
            format!(
                "version {} is older than version {}, which is in use; it is applied if the next refresh reads it again",
                version.id, applied.id
            ),
        ));
    }
    let gone = exported.difference(wholesale).count();
    let most = gone == exported.len() || (exported.len() >= 4 && gone * 2 > exported.len());
    if gone > 0 && most && !accept_removals {
        return Err(Problem::new(
            Reason::Removal,
            format!(
                "{gone} of {} members are gone from version {}; they are removed if the next refresh reads it again, or \
                 at once by `keytide refresh --accept-removals`",
                exported.len(),
                version.id
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(id: &str, created_ms: i64) -> Version {
        Version { id: VersionId::parse(id).unwrap(), created_ms: Some(created_ms) }
    }

    fn keys(names: &str) -> BTreeSet<KeyName> {
        names.split_whitespace().map(|name| KeyName::parse(name).unwrap()).collect()
    }

    fn reason(applied: &Version, held: Option<&str>, exported: &str, read: &Version, now: &str) -> Option<Reason> {
        let held = held.map(|id| VersionId::parse(id).unwrap());
        let exported = keys(exported);
        let before = Before { applied: Some(applied), held: held.as_ref(), wholesale: &exported };
        judge(before, read, &keys(now), false).err().map(|problem| problem.reason)
    }

    #[test]
    fn an_older_version_waits_until_two_reads_agree() {
        let (old, new) = (version("old", 1), version("new", 2));
        assert_eq!(reason(&old, None, "", &new, ""), None);
        assert_eq!(reason(&new, None, "", &old, ""), Some(Reason::StepBack));
        assert_eq!(reason(&new, Some("old"), "", &old, ""), None);
        assert_eq!(reason(&new, Some("other"), "", &old, ""), Some(Reason::StepBack));
        assert_eq!(reason(&new, None, "", &new, ""), None);
    }

    #[test]
    fn removal_of_all_or_of_most_of_four_or_more_waits() {
        let (one, two) = (version("1", 1), version("2", 2));
        let of = |before, after| reason(&one, None, before, &two, after);
        assert_eq!(of("a", ""), Some(Reason::Removal));
        assert_eq!(of("a b c", "a"), None);
        assert_eq!(of("a b c", "x"), Some(Reason::Removal));
        assert_eq!(of("a b c d", "a b"), None);
        assert_eq!(of("a b c d", "a"), Some(Reason::Removal));
        assert_eq!(reason(&one, Some("2"), "a b c d", &two, "a"), None);
        assert_eq!(of("", ""), None);
    }

    #[test]
    fn removals_can_be_accepted() {
        let exported = keys("a b c d");
        let before = Before { applied: None, held: None, wholesale: &exported };
        assert!(judge(before, &version("2", 2), &keys(""), true).is_ok());
    }
}

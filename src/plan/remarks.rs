//! What is said once, however often it is seen.

use std::collections::BTreeSet;

/// So many are known at once; what is new beyond them is not said, so that what others choose fills neither log nor memory.
const MOST: usize = 1000;

/// What was said already.
#[derive(Debug, Default)]
pub struct Remarks(BTreeSet<String>);

// === impl Remarks ===

impl Remarks {
    /// True if this is to be said: it was not yet, since the last [`Self::forget`].
    pub fn is_new(&mut self, remark: &str) -> bool {
        self.0.len() < MOST && !self.0.contains(remark) && self.0.insert(remark.to_owned())
    }

    /// What is over is said again when it comes back.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_until_it_is_over_and_never_too_many() {
        let mut remarks = Remarks::default();
        let said: Vec<bool> = ["a", "b", "a", "b"].map(|remark| remarks.is_new(remark)).into();
        assert_eq!(said, [true, true, false, false]);
        remarks.forget();
        assert!(remarks.is_new("a"));
        let many = (0..2 * MOST).filter(|number| remarks.is_new(&number.to_string())).count();
        assert_eq!(many, MOST - 1);
    }
}

//! Everything that the emulator knows, in one place and with one owner.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::access::Access;
use crate::faults::Faults;
use crate::record::Record;
use crate::secrets::Vault;
use crate::seed::Seed;

/// The state of the account.
pub(crate) struct World {
    /// Where changes from outside the API go.
    pub(crate) region: String,
    pub(crate) access: Access,
    pub(crate) faults: Faults,
    pub(crate) record: Record,
    vaults: BTreeMap<String, Vault>,
}

// === impl World ===

impl World {
    pub(crate) fn new(seed: Seed, now_ms: i64) -> Self {
        let Seed { region, account, secrets, users, roles, session_lifetime_seconds } = seed;
        let mut access = Access::new(&account, session_lifetime_seconds.map(Duration::from_secs));
        for user in users {
            access.add_user(user);
        }
        for role in roles {
            access.add_role(role);
        }
        let (faults, record) = (Faults::default(), Record::default());
        let mut world = Self { region, access, faults, record, vaults: BTreeMap::new() };
        for (name, value) in secrets {
            world.home(now_ms).set(&name, value, &[crate::secrets::CURRENT.to_owned()], now_ms);
        }
        world
    }

    /// The secrets of a region, as they are now.
    pub(crate) fn vault(&mut self, region: &str, now_ms: i64) -> &mut Vault {
        if !self.vaults.contains_key(region) {
            self.vaults.insert(region.to_owned(), Vault::new(region, &self.access.account));
        }
        let vault = self.vaults.get_mut(region).expect("it was just put there");
        vault.settle(now_ms);
        vault
    }

    /// The secrets of the region that the emulator was started for.
    pub(crate) fn home(&mut self, now_ms: i64) -> &mut Vault {
        let region = self.region.clone();
        self.vault(&region, now_ms)
    }
}

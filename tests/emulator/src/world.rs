//! Everything that the emulator knows, in one place and with one owner.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::access::Access;
use crate::eks_auth::PodIdentity;
use crate::faults::Faults;
use crate::metadata::Metadata;
use crate::record::Record;
use crate::secrets::Vault;
use crate::seed::Seed;

/// The state of all accounts.
pub(crate) struct World {
    /// Where changes from outside the API go.
    pub(crate) region: String,
    pub(crate) access: Access,
    pub(crate) faults: Faults,
    pub(crate) record: Record,
    pub(crate) pod_identity: Option<PodIdentity>,
    pub(crate) metadata: Metadata,
    /// How many descriptions still show a region after its removal.
    pub(crate) slow_replication: u32,
    vaults: BTreeMap<String, Vault>,
}

// === impl World ===

impl World {
    /// Fails if the seed gives out a role that it does not have.
    pub(crate) fn new(seed: Seed, now_ms: i64) -> io::Result<Self> {
        let Seed {
            region,
            account,
            secrets,
            users,
            roles,
            oidc_providers,
            session_lifetime_seconds,
            pod_identity,
            instance_role,
        } = seed;
        let mut access = Access::new(&account, session_lifetime_seconds.map(Duration::from_secs));
        access.oidc_providers = oidc_providers;
        for user in users {
            access.add_user(user);
        }
        for role in roles {
            access.add_role(role);
        }
        let (faults, record) = (Faults::default(), Record::default());
        let metadata = Metadata::default();
        let mut world = Self {
            region,
            access,
            faults,
            record,
            pod_identity: None,
            metadata,
            slow_replication: 0,
            vaults: BTreeMap::new(),
        };
        world.set_pod_identity(pod_identity)?;
        world.set_instance_role(instance_role.as_deref())?;
        for (name, value) in secrets {
            world.home(now_ms).set(&name, value, &[crate::secrets::CURRENT.to_owned()], now_ms);
        }
        Ok(world)
    }

    /// Fails if there is no such role.
    pub(crate) fn set_pod_identity(&mut self, pod_identity: Option<PodIdentity>) -> io::Result<()> {
        self.check_role(pod_identity.as_ref().map(|pod_identity| pod_identity.role.as_str()))?;
        self.pod_identity = pod_identity;
        Ok(())
    }

    /// Fails if there is no such role.
    pub(crate) fn set_instance_role(&mut self, arn: Option<&str>) -> io::Result<()> {
        self.check_role(arn)?;
        self.metadata.role = arn.map(str::to_owned);
        Ok(())
    }

    fn check_role(&self, arn: Option<&str>) -> io::Result<()> {
        match arn.filter(|arn| self.access.role(arn).is_none()) {
            None => Ok(()),
            Some(arn) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no role {arn}"))),
        }
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

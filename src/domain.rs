//! Names, values and mappings: what every other module speaks of. Knows nothing of files, AWS or time.

pub mod identity;
pub mod kubernetes;
pub mod mapping;
pub mod names;
pub mod reload;
pub mod snapshot;
pub mod value;
pub mod virtual_key;

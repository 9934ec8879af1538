//! How what was decided is spelled. Values in, bytes out: nothing here touches the world.

pub mod env_file;
pub mod manifest;

//! Deciding: from what was read and what was applied to what shall be. Pure: no clock, no files, no AWS.

pub mod change;
pub mod fan_out;
pub mod fold;
pub mod lease;
pub mod naming;
pub mod policy;
pub mod publish;
pub mod push;
pub mod rate;
pub mod reload;
pub mod remarks;
pub mod role;
pub mod schedule;

//! Random names in the shapes that AWS gives them.

use std::iter::repeat_with;

/// A version 4 UUID: version ids and request ids.
pub(crate) fn uuid() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    let mut uuid = String::with_capacity(36);
    for (position, digit) in hex.chars().enumerate() {
        if matches!(position, 8 | 12 | 16 | 20) {
            uuid.push('-');
        }
        uuid.push(digit);
    }
    uuid
}

/// The six characters behind a secret's name in its ARN.
pub(crate) fn arn_suffix() -> String {
    alphanumeric(6)
}

/// A session's access key id: `ASIA` and sixteen characters.
pub(crate) fn session_key_id() -> String {
    format!("ASIA{}", alphanumeric(16).to_ascii_uppercase())
}

/// A role's or user's unique id, with AWS's prefix for its kind.
pub(crate) fn unique_id(prefix: &str) -> String {
    format!("{prefix}{}", alphanumeric(17).to_ascii_uppercase())
}

/// A secret access key.
pub(crate) fn secret_key() -> String {
    alphanumeric(40)
}

/// A session token. AWS's are longer; nothing may depend on that.
pub(crate) fn session_token() -> String {
    alphanumeric(200)
}

/// What the metadata service wants to see.
pub(crate) fn metadata_token() -> String {
    alphanumeric(56)
}

fn alphanumeric(length: usize) -> String {
    repeat_with(fastrand::alphanumeric).take(length).collect()
}

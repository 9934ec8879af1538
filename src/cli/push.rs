//! `keytide push`: one well-formed entry, its value from standard input.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use zeroize::Zeroizing;

use super::{Exit, complain, print};
use crate::{
    domain::virtual_key::Operation,
    plan::naming::LONGEST_VALUE,
    process,
    spool::failed::{Reason, result_of},
    telemetry,
};

/// What somebody wants to leave in the spool.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    pub(super) name: &'a str,
    /// True: keytide puts the prefix before the names.
    pub(super) alias: bool,
    pub(super) new_name: Option<&'a str>,
    pub(super) recovery_window_in_days: Option<u8>,
    /// How long to wait for the result; none: not at all.
    pub(super) wait: Option<Duration>,
}

#[derive(Serialize)]
struct Entry<'a> {
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_window_in_days: Option<u8>,
}

/// From one look for the result to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Leaves the entry, and waits for it where that is wanted.
pub(super) fn push(spool: &Path, asked: &Asked<'_>) -> Exit {
    process::protect();
    let valued = matches!(asked.operation, Operation::Create | Operation::Rotate);
    let value = if valued {
        match read_value() {
            Ok(value) => Some(value),
            Err(message) => {
                complain(&message);
                return Exit::Usage;
            }
        }
    } else {
        None
    };
    let named = |name| if asked.alias { (None, Some(name)) } else { (Some(name), None) };
    let (name, alias) = named(asked.name);
    let (new_name, new_alias) = asked.new_name.map_or((None, None), named);
    let entry = Entry {
        op: asked.operation.label(),
        name,
        alias,
        new_name,
        new_alias,
        value: value.as_ref().map(|value| value.as_str()),
        recovery_window_in_days: asked.recovery_window_in_days,
    };
    let json = Zeroizing::new(serde_json::to_vec(&entry).unwrap_or_default());
    let dropped = drop_entry(spool, &json);
    let (file, name) = match dropped {
        Ok(dropped) => dropped,
        Err(error) => {
            complain(&format!(
                "failed to leave an entry in {}: {error}; expected keytide's drop directory (--spool, keytide.spool.directory)",
                spool.display()
            ));
            return Exit::Failed;
        }
    };
    match asked.wait {
        None => print(&format!("{name}\n")),
        Some(limit) => wait(spool, &file, &name, limit),
    }
}

/// The value, without one final line feed, as a shell's here-document has one.
fn read_value() -> Result<Zeroizing<String>, String> {
    let most = u64::try_from(LONGEST_VALUE).unwrap_or(u64::MAX) + 2;
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST_VALUE + 2));
    io::stdin()
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("failed to read the value from standard input: {}", error.kind()))?;
    let value = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let value = std::str::from_utf8(value).map_err(|_| "the value on standard input is not UTF-8".to_owned())?;
    if value.is_empty() {
        return Err("expected a value on standard input: at least one character".to_owned());
    }
    if value.len() > LONGEST_VALUE {
        return Err(format!("the value on standard input is longer than {LONGEST_VALUE} bytes, AWS's limit"));
    }
    Ok(Zeroizing::new(value.to_owned()))
}

/// Writes a file whose name begins with a dot, readable for keytide, and renames it.
fn drop_entry(spool: &Path, json: &[u8]) -> io::Result<(File, String)> {
    let since = (telemetry::wall_clock())().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = format!("{:020}-push-{:08x}.json", since.as_nanos(), fastrand::u32(..));
    let temporary = spool.join(format!(".{name}"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
    let written = file
        .set_permissions(fs::Permissions::from_mode(0o644))
        .and_then(|()| file.write_all(json))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, spool.join(&name)));
    if let Err(error) = written {
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    Ok((file, name))
}

/// keytide removes the entry once AWS confirmed it, and says so if it never can: then the file has no name any more, or
/// there is a result of its name.
fn wait(spool: &Path, file: &File, name: &str, limit: Duration) -> Exit {
    #[expect(clippy::disallowed_methods, reason = "a command that waits without a runtime")]
    let now = Instant::now;
    let end = now() + limit;
    loop {
        if file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            return print("stored\n");
        }
        if let Some(Reason { reason, message, .. }) = result_of(spool, name) {
            complain(&format!("the entry failed ({reason}): {message}"));
            return Exit::Failed;
        }
        if now() >= end {
            let taken = if spool.join(name).exists() { "not yet taken" } else { "taken, and not yet confirmed by AWS" };
            complain(&format!("the entry {name} is {taken} after {} s; it stays in the spool", limit.as_secs()));
            return Exit::Failed;
        }
        thread::park_timeout(LOOK_AGAIN);
    }
}

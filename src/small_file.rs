//! Small files that others write: tokens, profiles, certificates. Never waited for, never more of them than they should have.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

/// Reads a regular file of at most so many bytes.
///
/// # Errors
/// In words why it cannot be used; nothing of its content.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let kind = |error: io::Error| error.kind().to_string();
    let metadata = fs::metadata(path).map_err(kind)?;
    let wrong = || format!("not a regular file of {} KiB at most", most / 1024);
    // Not opened before it is known to be a file: the opening of a pipe waits for a writer.
    if !metadata.is_file() {
        return Err(wrong());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).map_err(kind)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most { Err(wrong()) } else { Ok(bytes) }
}

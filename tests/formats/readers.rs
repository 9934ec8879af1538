//! The programs that `tests/formats/setup` installs. Each takes files as arguments, and prints a line of JSON for each:
//! the names with their values in base64, or `"error"`.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tempfile::TempDir;

use crate::Variables;

/// A reader by the name of its program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader(pub(crate) &'static str);

/// Files to read, named by numbers.
#[derive(Debug)]
pub(crate) struct Files(TempDir, Vec<String>);

impl Files {
    pub(crate) fn of(contents: &[Vec<u8>]) -> Self {
        let directory = TempDir::new().unwrap();
        let names: Vec<_> = (0..contents.len()).map(|i| i.to_string()).collect();
        for (name, content) in names.iter().zip(contents) {
            fs::write(directory.path().join(name), content).unwrap();
        }
        Self(directory, names)
    }
}

impl Reader {
    /// What it reads from each file; `None` where it refuses the file.
    pub(crate) fn read(self, Files(directory, names): &Files) -> Vec<Option<Variables>> {
        let mut seen = Vec::with_capacity(names.len());
        // As many names as one command line takes with ease.
        for some in names.chunks(8192) {
            let output = Command::new(directory_of_readers().join(self.0))
                .args(some)
                .env("X", "expanded")
                .current_dir(directory)
                .output()
                .unwrap();
            assert!(output.status.success(), "{self:?}: {}", String::from_utf8_lossy(&output.stderr));
            seen.extend(output.stdout.split_inclusive(|&byte| byte == b'\n').map(variables));
        }
        assert_eq!(seen.len(), names.len(), "{self:?}");
        seen
    }
}

fn variables(line: &[u8]) -> Option<Variables> {
    let values: BTreeMap<String, String> = serde_json::from_slice(line).ok()?;
    Some(values.into_iter().map(|(name, value)| (name, STANDARD.decode(value).unwrap())).collect())
}

#[expect(clippy::disallowed_methods, reason = "./tests/run says where it put them")]
fn directory_of_readers() -> PathBuf {
    std::env::var_os("KEYTIDE_FORMAT_READERS").expect("KEYTIDE_FORMAT_READERS: run ./tests/run formats").into()
}

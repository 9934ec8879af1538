//! `keytide install`: its own binary in a directory that other containers mount.

use std::{fs, path::Path};

use super::{Exit, complain, print};
use crate::{config::FileAccess, output::directory::Directory};

/// The name of the copy.
const NAME: &str = "keytide";
/// Everybody may start it.
const MODE: u32 = 0o755;

/// Makes DIR/keytide this program; writes nothing if it is so already.
pub(super) fn install(directory: &Path) -> Exit {
    let target = directory.join(NAME);
    let program = match fs::read("/proc/self/exe") {
        Ok(program) => program,
        Err(error) => {
            complain(&format!(
                "failed to read keytide's own program, /proc/self/exe: {}; expected /proc",
                error.kind()
            ));
            return Exit::Failed;
        }
    };
    let access = FileAccess { mode: Some(MODE), group: None, owner: None, allow_disk: true };
    let installed = Directory::open(directory, true, 0o755).and_then(|directory| {
        directory.sweep();
        if directory.holds(NAME, &program, access, MODE)? {
            return Ok(false);
        }
        directory.replace(NAME, &program, access, MODE).map(|_| true)
    });
    let version = env!("CARGO_PKG_VERSION");
    match installed {
        Ok(true) => {
            if !cfg!(target_feature = "crt-static") {
                complain(
                    "this keytide is not static: it starts only where its C library is \
                     (build with -C target-feature=+crt-static)",
                );
            }
            print(&format!("installed keytide {version} as {}\n", target.display()))
        }
        Ok(false) => print(&format!("keytide {version} is in place already: {}\n", target.display())),
        Err(error) => {
            complain(&format!(
                "failed to install {}: {error}; expected a volume that user {} may write, with room for {} MiB",
                target.display(),
                rustix::process::geteuid().as_raw(),
                program.len().div_ceil(1 << 20)
            ));
            Exit::Failed
        }
    }
}

//! Arguments in, exit code out; everything else is the library's.

use std::process::ExitCode;

fn main() -> ExitCode {
    keytide::cli::main(std::env::args_os()).into()
}

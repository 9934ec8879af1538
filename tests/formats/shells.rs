//! Shells that read a file with `.`; Debian has both of them always.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::Variables;

pub(crate) const ALL: [Shell; 4] =
    [Shell("dash", "-eux"), Shell("bash", "-eux"), Shell("bash", "-aeu"), Shell("bash --posix", "-aeux")];

/// A shell, and the options under which it reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shell(&'static str, &'static str);

/// What a shell made of a file.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) variables: Variables,
    /// Something appeared in the directory that it ran in.
    pub(crate) executed: bool,
}

impl Shell {
    /// Reads the file with `.`, and gives back the variables of these names.
    pub(crate) fn read(self, content: &[u8], names: &[&str]) -> Seen {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("file.env");
        fs::write(&file, content).unwrap();
        let mut words = self.0.split(' ');
        // The names stand in the script, since a file may assign to `_`, which each command overwrites.
        let print: Vec<_> = names.iter().map(|name| format!("printf '%s\\0' \"${name}\"\n")).collect();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .args(["-c", &format!("set {}; . ./file.env; {{ set +x; }} 2>&-\n{}", self.1, print.concat())])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&directory)
            .output()
            .unwrap();
        let values = output.stdout.split(|&byte| byte == 0).map(<[_]>::to_vec);
        let mut variables: Variables = names.iter().map(|name| (*name).to_owned()).zip(values).collect();
        if !output.status.success() {
            variables.clear();
        }
        Seen { variables, executed: something_appeared(directory.path()) }
    }
}

/// The variables that bash itself knows, but those of its environment here.
pub(crate) fn variables_of_bash() -> Vec<String> {
    let output = Command::new("bash").args(["-c", "compgen -v"]).env_clear().output().unwrap();
    let mut names: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    names.extend(["FUNCNAME", "PIPESTATUS", "BASH_ENV", "ENV", "MAILCHECK", "PS0", "PS1", "PS2"].map(str::to_owned));
    assert!(names.len() > 30, "{names:?}");
    names
}

/// Whether an interactive bash that read a value of this name executes it: at a prompt, or in a shell that it
/// starts.
pub(crate) fn an_interactive_shell_executes(name: &str) -> bool {
    const INPUT: &str = "set -a\n. ./file.env\n:\nif :\nthen :\nfi\nbash -c :\nsh -i -c :\n";
    let directory = TempDir::new().unwrap();
    let value = if name == "PROMPT_COMMAND" { ">canary" } else { "$(>canary)" };
    fs::write(directory.path().join("file.env"), format!("{name}='{value}'\n")).unwrap();
    let mut bash = Command::new("bash")
        .args(["--norc", "--noprofile", "--noediting", "-i"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    bash.stdin.take().unwrap().write_all(INPUT.as_bytes()).unwrap();
    bash.wait().unwrap();
    directory.path().join("canary").exists()
}

fn something_appeared(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().count() > 1
}

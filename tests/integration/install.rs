//! `keytide install`.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
};

use rustix::process::Signal;

use crate::support::{Stage, is_root, stderr, stdout, until};

#[test]
fn a_program_is_installed_whole_and_once() {
    let stage = Stage::new();
    let directory = stage.make_directory("tools", 0o755).display().to_string();
    let output = stage.keytide(&["install", &directory]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("installed keytide {} as {directory}/keytide\n", env!("CARGO_PKG_VERSION")));
    let before = stage.stamp("tools/keytide");
    assert_eq!(fs::metadata(stage.path("tools/keytide")).unwrap().permissions().mode() & 0o7777, 0o755);
    let version = Command::new(stage.path("tools/keytide")).arg("--version").output().unwrap();
    assert_eq!(stdout(&version), stdout(&stage.keytide(&["--version"])));
    // Again, also by what was installed: nothing is written.
    for program in [stage.command(&[]).get_program().to_owned(), stage.path("tools/keytide").into()] {
        let output = Command::new(program).args(["install", &directory]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(
            stdout(&output).ends_with(&format!("is in place already: {directory}/keytide\n")),
            "{}",
            stdout(&output)
        );
    }
    assert_eq!(stage.stamp("tools/keytide"), before);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_is_there_is_replaced_also_while_it_runs() {
    let stage = Stage::new();
    let directory = stage.make_directory("tools", 0o755).display().to_string();
    assert_eq!(stage.keytide(&["install", &directory]).status.code(), Some(0));
    let mut running = Command::new(stage.path("tools/keytide"))
        .args(["exec", "--env-file", "/nowhere/keys.env", "--", "true"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Another version, or one that somebody broke.
    let inode = fs::metadata(stage.path("tools/keytide")).unwrap().ino();
    fs::set_permissions(stage.path("tools/keytide"), fs::Permissions::from_mode(0o700)).unwrap();
    let output = stage.keytide(&["install", &directory]);
    assert!(stdout(&output).starts_with("installed keytide"), "{}", stderr(&output));
    let metadata = fs::metadata(stage.path("tools/keytide")).unwrap();
    assert!(metadata.ino() != inode && metadata.permissions().mode() & 0o7777 == 0o755);
    let id = rustix::process::Pid::from_raw(i32::try_from(running.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, Signal::TERM).unwrap();
    until("its end", || running.try_wait().unwrap().is_some());
}

#[test]
fn the_directory_is_made_and_what_is_wrong_with_it_is_said() {
    let stage = Stage::new();
    stage.make_directory("volume", 0o755);
    let output = stage.keytide(&["install", &stage.path("volume/bin").display().to_string()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fs::exists(stage.path("volume/bin/keytide")).unwrap());

    let closed = stage.make_directory("closed", 0o555);
    if is_root() {
        std::os::unix::fs::chown(&closed, Some(0), Some(0)).unwrap();
    }
    stage.write("file", "");
    stage.make_directory("taken/keytide/x", 0o755);
    for (directory, says) in [("closed", "ermission denied"), ("file", "not a directory"), ("taken", "taken/keytide")] {
        let output = stage.keytide(&["install", &stage.path(directory).display().to_string()]);
        let said = stderr(&output);
        assert!(output.status.code() == Some(1) && said.contains(says), "{directory}: {said}");
        assert!(said.contains("expected a volume that user") && said.contains("with room for"), "{directory}: {said}");
    }
    assert_eq!(fs::read_dir(stage.path("taken")).unwrap().count(), 1, "nothing is left beside it");
}

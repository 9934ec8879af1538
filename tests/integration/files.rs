//! One file for each key, all swapped at once.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Stage, until};

fn stage() -> Stage {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"tls.key": "0", "tls.crt": "0"}"#);
    stage.config("aws: {region: us-east-1}\nprimary_secret: {name: app}\nrefresh: {interval: 1s}\noutputs:\n  - files: {directory: \"{dir}/volume/files\", rename: {tls.crt: cert.pem}}");
    stage.make_directory("volume", 0o755);
    stage
}

#[test]
fn each_key_is_a_file_of_its_name() {
    let stage = stage();
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(
        (stage.read("volume/files/tls.key"), stage.read("volume/files/cert.pem")),
        ("0".to_owned(), "0".to_owned())
    );
    let mode = fs::metadata(stage.path("volume/files/tls.key")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o400);
    assert!(fs::symlink_metadata(stage.path("volume/files/..data")).unwrap().is_symlink());
}

#[test]
fn a_reader_never_sees_files_of_two_generations() {
    let stage = stage();
    let daemon = stage.run();
    daemon.until_ready();
    let data = stage.path("volume/files/..data");
    let end = Instant::now() + Duration::from_secs(4);
    let mut seen = 0;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1.. {
                // On a busy machine a refresh takes its time.
                if Instant::now() > end && n > 10 {
                    break;
                }
                stage.aws.put("app", &format!(r#"{{"tls.key": "{n}", "tls.crt": "{n}"}}"#));
                daemon.hang_up();
                thread::sleep(Duration::from_millis(20));
            }
        });
        while !writer.is_finished() {
            // As a careful reader does: the link once, then every file below where it leads.
            let Ok(generation) = fs::read_link(&data) else { panic!("the link is never missing") };
            let directory = stage.path("volume/files").join(generation);
            let pair = (fs::read_to_string(directory.join("tls.key")), fs::read_to_string(directory.join("cert.pem")));
            if let (Ok(key), Ok(cert)) = pair {
                assert_eq!(key, cert);
                seen += 1;
            }
        }
    });
    assert!(seen > 100, "{seen}");
    assert!(daemon.metric("keytide_output_writes_total", &[]) > 5.0);
}

#[test]
fn a_removed_key_leaves_and_what_others_put_there_stays() {
    let stage = stage();
    stage.aws.put("app", r#"{"tls.key": "0", "tls.crt": "0", "more": "1"}"#);
    let daemon = stage.run();
    daemon.until_ready();
    stage.write("volume/files/README", "mine");
    assert_eq!(stage.read("volume/files/more"), "1");
    stage.aws.put("app", r#"{"tls.key": "0", "tls.crt": "0"}"#);
    until("the file to go", || fs::symlink_metadata(stage.path("volume/files/more")).is_err());
    assert_eq!(
        (stage.read("volume/files/README"), stage.read("volume/files/tls.key")),
        ("mine".to_owned(), "0".to_owned())
    );
    let generations = fs::read_dir(stage.path("volume/files")).unwrap();
    let old =
        generations.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("..keytide-"));
    assert_eq!(old.count(), 1);
}

#[test]
fn a_file_that_somebody_removed_is_put_back() {
    let stage = stage();
    let daemon = stage.run();
    daemon.until_ready();
    fs::remove_file(stage.path("volume/files/tls.key")).unwrap();
    stage.until_file("volume/files/tls.key", "0");
    assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 1.0);
}

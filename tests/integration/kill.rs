//! Killed in the middle of anything, keytide leaves whole files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Stage, until};

const ROUNDS: usize = 40;
const CONFIG: &str = "aws: {region: us-east-1}\nprimary_secret: {name: app}\nrefresh: {interval: 1s}\noutputs:\n  - env_file: {path: \"{dir}/env/keys.env\", format: posix}\n  - files: {directory: \"{dir}/files\"}";

#[test]
#[expect(clippy::print_stdout, reason = "the seed, for who repeats a failure")]
fn a_killed_daemon_leaves_whole_files_of_the_right_mode() {
    let seed =
        std::env::var("KEYTIDE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("KEYTIDE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let stage = Stage::new();
    // Large, so that a write takes a while.
    let put = |n: usize| {
        stage.aws.put("app", &format!(r#"{{"N": "{n}", "LONG": "{}"}}"#, format!("{n:05}").repeat(10_000)));
    };
    put(0);
    stage.config(CONFIG);
    // How long a start takes here until all is written: rounds are killed anywhere before that, and somewhat behind.
    let measured = Stage::new();
    measured.aws.put("app", &stage.aws.value("app").unwrap());
    measured.config(CONFIG);
    let began = Instant::now();
    let mut daemon = measured.run();
    until("all files", || measured.path("env/keys.env").exists() && measured.path("files").exists());
    let longest = began.elapsed().mul_f64(1.5);
    daemon.kill();
    let mut written = 0;
    for round in 1..=ROUNDS {
        put(round);
        let mut daemon = stage.run();
        thread::sleep(longest.mul_f64(random.f64()));
        if round % 2 == 0 {
            daemon.hang_up_if_running();
            thread::sleep(Duration::from_micros(random.u64(0..5000)));
        }
        daemon.kill();
        let path = stage.path("env/keys.env");
        if let Ok(text) = fs::read_to_string(&path) {
            let n: usize = text.split("N='").nth(1).and_then(|rest| rest.split('\'').next()).unwrap().parse().unwrap();
            let whole = format!("LONG='{}'\nN='{n}'\n", format!("{n:05}").repeat(10_000));
            assert!(text == whole, "round {round}: {} bytes are not the {} of {n}", text.len(), whole.len());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
            written += usize::from(n == round);
        }
        for entry in fs::read_dir(stage.path("env")).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with(".keytide-tmp-") {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                assert_eq!(mode & !0o400, 0, "a leftover is never more open than the file: {mode:o}");
            }
        }
    }
    assert!((1..ROUNDS).contains(&written), "{written} of {ROUNDS} rounds lived to write");
    // Whatever is left is swept by whoever comes next.
    let mut daemon = stage.run();
    daemon.until_ready();
    daemon.kill();
    stage.write("env/.keytide-tmp-0123456789abcdef", "half");
    let daemon = stage.run();
    daemon.until_ready();
    // Its own first write may be under way when it is ready with what was kept.
    until("the newest value", || stage.read("env/keys.env").contains(&format!("N='{ROUNDS}'")));
    for directory in ["env", "files", "env/.keytide"] {
        until(&format!("{directory} to be swept"), || {
            let mut names = fs::read_dir(stage.path(directory)).unwrap().map(|entry| entry.unwrap().file_name());
            !names.any(|name| name.to_string_lossy().starts_with(".keytide-tmp-"))
        });
    }
}

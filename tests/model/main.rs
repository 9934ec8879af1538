//! Virtual keys under the worst: thousands of random entries, faults and `kill -9`, and in the end AWS holds what a
//! reference model says; every version was made once.
//!
//! `KEYTIDE_SEED` repeats a run's entries and faults, `KEYTIDE_OPERATIONS` and `KEYTIDE_KILLS` say how many there are.

#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]
#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unused_self,
    clippy::unwrap_used,
    reason = "a test that panics has failed, it prints its seed, and nothing here is called often"
)]

mod reference;
mod scene;
mod steps;
#[expect(dead_code, reason = "the integration tests use more of it")]
#[path = "../integration/support.rs"]
mod support;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use keytide_emulator::{Fault, FaultKind};
use reference::{Entry, Producer};
use scene::{Scene, within};

/// How long it may take until nothing waits any more, once nothing stands in the way.
const PATIENCE: Duration = Duration::from_mins(2);

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// True where thousands of entries are wanted.
fn is_thorough() -> bool {
    number("KEYTIDE_OPERATIONS", 300) >= 5000
}

/// The seed of this run, which is printed.
fn seed() -> u64 {
    let given = std::env::var("KEYTIDE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("KEYTIDE_SEED={seed}");
    seed
}

/// 200 names for 5,000 entries; for few not as few, since all would wait in one long line.
fn names_for(operations: usize) -> usize {
    (operations / 8).clamp(8, 200)
}

#[test]
fn a_daemon_killed_at_any_instant_loses_no_entry_and_makes_no_version_twice() {
    let (seed, kills) = (seed(), number("KEYTIDE_KILLS", 30));
    let operations = number("KEYTIDE_OPERATIONS", 300);
    let scene = Scene::new();
    scene.stage.aws.set_recording(false);
    // So that more kills come while AWS is asked.
    scene.stage.aws.fault(Fault::any().kind(FaultKind::Latency(Duration::from_millis(2))));
    let mut producer = Producer::new(seed, names_for(operations));
    let entries: Vec<Entry> = (0..operations).map(|_| producer.next()).collect();
    let (done, began) = (AtomicUsize::new(0), Instant::now());
    let mut random = fastrand::Rng::with_seed(seed.wrapping_add(1));
    let (mut at_work, mut ended) = (0, 0);
    thread::scope(|scope| {
        let mut pace = random.fork();
        let (scene, entries, done) = (&scene, &entries, &done);
        // Whether keytide lives or not.
        scope.spawn(move || {
            for (i, entry) in entries.iter().enumerate() {
                while i * kills > (done.load(Ordering::Relaxed) + 1) * entries.len() {
                    thread::sleep(Duration::from_micros(200));
                }
                scene.drop_entry(entry);
                if pace.u8(..3) == 0 {
                    thread::sleep(Duration::from_micros(pace.u64(..20_000)));
                }
            }
        });
        for _ in 0..kills {
            let calls = scene.calls();
            let mut daemon = scene.stage.run();
            match random.u8(..100) {
                // At work.
                0..70 => {
                    within(Duration::from_secs(2), || scene.calls() > calls);
                    thread::sleep(Duration::from_micros(random.u64(..15_000)));
                }
                // At its start.
                70..90 => thread::sleep(Duration::from_micros(random.u64(..60_000))),
                90..97 => thread::sleep(Duration::from_micros(random.u64(..300_000))),
                // Late enough for what is tried again.
                _ => thread::sleep(Duration::from_micros(random.u64(..2_500_000))),
            }
            ended += usize::from(!daemon.is_running());
            daemon.kill();
            at_work += usize::from(scene.calls() > calls && !scene.claimed().is_empty());
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("{kills} kills in {:?}, {at_work} of them at work with claims", began.elapsed());
    assert_eq!(ended, 0, "keytide ended by itself");
    let mut daemon = scene.stage.run();
    scene.until_drained(&mut daemon, PATIENCE);
    let (wrong, folded) = producer.world.compare(&scene.stage.aws);
    println!("{operations} entries, {folded} folded, {:?} in all", began.elapsed());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(scene.failed(), producer.world.failed);
    assert!(at_work * 4 > kills, "only {at_work} of {kills} kills came after a call, while something was claimed");
    assert!(folded > 0, "nothing was folded");
}

#[test]
fn random_entries_among_random_faults_end_as_the_model_says() {
    let (seed, operations) = (seed(), number("KEYTIDE_OPERATIONS", 300));
    let scene = Scene::with("refresh: {call_timeout: 1s}");
    scene.stage.aws.set_recording(false);
    let mut producer = Producer::new(seed, names_for(operations));
    let mut random = fastrand::Rng::with_seed(seed.wrapping_add(1));
    let mut daemon = scene.stage.run();
    let began = Instant::now();
    for _ in 0..operations {
        scene.drop_entry(&producer.next());
        if random.u8(..8) == 0 {
            let fault = Fault::any().kind(fault(&mut random)).times(random.u32(1..3)).skip(random.u32(..8));
            scene.stage.aws.fault(fault);
        }
        if random.u8(..3) == 0 {
            thread::sleep(Duration::from_micros(random.u64(..20_000)));
        }
    }
    scene.stage.aws.clear_faults();
    scene.until_drained(&mut daemon, PATIENCE);
    let retries = daemon.metric("keytide_spool_retries_total", &[]);
    let (wrong, folded) = producer.world.compare(&scene.stage.aws);
    println!("{operations} entries, {folded} folded, {retries} retries, {:?} in all", began.elapsed());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(scene.failed(), producer.world.failed);
    assert!(retries > 0.0, "no fault struck");
}

/// Something that passes. Throttling is rare, since each halves the rate for a while.
fn fault(random: &mut fastrand::Rng) -> FaultKind {
    let (code, message) = ("InternalServiceError".to_owned(), "once more".to_owned());
    match random.u8(..40) {
        0 => FaultKind::Throttle,
        1..8 => FaultKind::InternalError,
        8..18 => FaultKind::CutAfter(random.usize(..40)),
        18..26 => FaultKind::ErrorAfter { code, status: 500, message },
        26..29 => FaultKind::ExpiredToken,
        29..31 => FaultKind::Hang,
        31..33 => FaultKind::Error { code: "ServiceUnavailable".to_owned(), status: 503, message },
        _ => FaultKind::Latency(Duration::from_millis(random.u64(..50))),
    }
}

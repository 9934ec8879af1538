//! What the benches have in common.

use std::{
    ffi::OsString,
    process::{Child, ExitCode},
};

use aws_sdk_secretsmanager::config::{BehaviorVersion, Region};
use aws_smithy_http_client::tls;
use aws_types::SdkConfig;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What else runs on a machine only makes a figure worse: a goal is missed if it is missed so many times.
const ATTEMPTS: u32 = 3;

/// A process that is ended with its run.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Measures, which says whether each goal was reached; if one was not, and `assert` is set, once more, and then fails.
pub(crate) fn attempts(assert: bool, measure: fn() -> Result<bool>) -> ExitCode {
    for attempt in 1..=ATTEMPTS {
        match measure() {
            Ok(reached) if reached || !assert => return ExitCode::SUCCESS,
            Ok(_) if attempt < ATTEMPTS => {
                println!("\na goal was missed: measured once more, since machines are noisy");
            }
            Ok(_) => println!("\na goal was missed {ATTEMPTS} times"),
            Err(error) => {
                println!("the bench failed: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::FAILURE
}

/// A line of the table with a goal; hands on whether it was reached.
pub(crate) fn verdict(what: &str, ratio: f64, reached: bool, goal: &str) -> bool {
    println!("  {what:<44} {ratio:>6.2}      goal: {goal}: {}", if reached { "reached" } else { "MISSED" });
    reached
}

/// The one in the middle of an odd number.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The static release binary.
pub(crate) fn keytide() -> Result<OsString> {
    let missing = "KEYTIDE_RELEASE_BINARY must name the static release binary: `./tests/run bench` builds it";
    Ok(std::env::var_os("KEYTIDE_RELEASE_BINARY").ok_or(missing)?)
}

/// The bare SDK as it comes.
pub(crate) fn sdk(region: String, url: String) -> SdkConfig {
    let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(region))
        .endpoint_url(url)
        .http_client(aws_smithy_http_client::Builder::new().tls_provider(provider).build_https())
        .build()
}

//! Runs the emulator until it is told to stop, for people and for other languages.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use keytide_emulator::{Emulator, Seed, Tls, User};
use tokio::signal::unix::{SignalKind, signal};

/// A strict AWS Secrets Manager, STS and IAM over HTTP, in memory, with faults. For tests only.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// A JSON file with the state at the start.
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
    /// Where to answer as well, with HTTPS
    #[arg(long, value_name = "ADDRESS", requires = "tls_ca")]
    tls_listen: Option<SocketAddr>,
    /// A DNS name or an IP address that the HTTPS certificate is for, beside those of this machine
    #[arg(long, value_name = "NAME", requires = "tls_listen")]
    tls_name: Vec<String>,
    /// Where to write the certificate authority that clients have to trust
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    tls_ca: Option<PathBuf>,
    /// Keep no record of the requests, only their number.
    #[arg(long)]
    no_record: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut line = format!("keytide-emulator: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                line = format!("{line}: {cause}");
                source = cause.source();
            }
            // With stderr closed there is nobody to tell.
            writeln!(io::stderr(), "{line}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { listen, seed, tls_listen, tls_name, tls_ca, no_record } = arguments;
    let seed = seed.as_deref().map(Seed::read).transpose()?.unwrap_or_default();
    let region = seed.region.clone();
    let user = seed.users.first().cloned();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut emulator = Emulator::start_with(seed, listen)?;
    if let (Some(listen), Some(file)) = (tls_listen, tls_ca) {
        let tls = tls_name.iter().fold(Tls::new(), |tls, name| tls.name(name));
        let (_, authority) = emulator.also_tls(listen, &tls)?;
        std::fs::write(file, authority)?;
    }
    emulator.set_recording(!no_record);
    io::stdout().write_all(exports(&emulator.url(), &region, user.as_ref()).as_bytes())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// What a shell needs to point any AWS SDK here.
fn exports(url: &str, region: &str, user: Option<&User>) -> String {
    let user = user.map(|User { access_key_id, secret_access_key, .. }| {
        format!("export AWS_ACCESS_KEY_ID={access_key_id}\nexport AWS_SECRET_ACCESS_KEY={secret_access_key}\n")
    });
    let user = user.unwrap_or_default();
    format!("export AWS_ENDPOINT_URL={url}\nexport AWS_REGION={region}\nexport AWS_DEFAULT_REGION={region}\n{user}")
}

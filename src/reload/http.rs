//! A server is called. What it answers beside the status is not read.

use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    config::{HttpCall, Url},
    http_client::{self, CallError},
    plan::reload::Again,
    small_file,
};

/// More than any server takes.
const LONGEST_HEADER: u64 = 16 * 1024;
/// More than twenty times what systems bring.
pub(super) const MOST_CERTIFICATES: u64 = 8 * 1024 * 1024;

/// The call.
#[derive(Debug)]
pub(super) struct Http {
    call: HttpCall,
}

/// Why a call did not succeed. Says nothing of headers' values, nor of the answer's body.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// A file that is sent, or trusted.
    #[error("failed to read {}: {what}", path.display())]
    File { path: PathBuf, what: String },
    /// There was no answer.
    #[error("failed to call {url}: {error}")]
    Call { url: Url, error: CallError },
    /// There was one that is no success.
    #[error("{url} answered {status}{}", advice(*status))]
    Status { url: Url, status: u16 },
}

fn advice(status: u16) -> &'static str {
    match status {
        300..=399 => ", a redirect, which is not followed",
        401 | 403 => "; the files of headers hold what it does not accept",
        _ => "",
    }
}

/// The value of a header, from its file; one final line feed is dropped.
pub(super) fn header(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut value = Zeroizing::new(small_file::read(path, LONGEST_HEADER)?);
    if value.ends_with(b"\n") {
        value.pop();
    }
    if value.ends_with(b"\r") {
        value.pop();
    }
    Ok(value)
}

// === impl Http ===

impl Http {
    pub(super) fn new(call: HttpCall) -> Self {
        Self { call }
    }

    /// Calls once, with what the files hold now.
    pub(super) async fn call(&self) -> Result<String, HttpError> {
        let HttpCall { url, method, headers, expect_status, ca_file } = &self.call;
        let file = |path: &PathBuf, what| HttpError::File { path: path.clone(), what };
        let mut sent = Vec::with_capacity(headers.len());
        for (name, path) in headers {
            sent.push((name.clone(), header(path).map_err(|what| file(path, what))?));
        }
        let trusted =
            ca_file.as_ref().map(|path| small_file::read(path, MOST_CERTIFICATES).map_err(|what| file(path, what)));
        let status = http_client::call(url, method, &sent, trusted.transpose()?.as_deref()).await;
        let status = status.map_err(|error| HttpError::Call { url: url.clone(), error })?;
        let expected = expect_status.as_ref().map_or((200..300).contains(&status), |all| all.contains(&status));
        if expected {
            Ok(format!("{url} answered {status}"))
        } else {
            Err(HttpError::Status { url: url.clone(), status })
        }
    }
}

// === impl HttpError ===

impl HttpError {
    pub(super) fn again(&self) -> Again {
        match self {
            Self::Call { error: CallError::Connect(_) | CallError::Broken, .. }
            | Self::Status { status: 408 | 425 | 429 | 500.., .. } => Again::Soon,
            Self::File { .. }
            | Self::Call { error: CallError::Certificates(_) | CallError::Tls(_) | CallError::Header, .. }
            | Self::Status { .. } => Again::Slowly,
        }
    }
}

//! `keytide spool`: what waits and what failed, and what becomes of it. Never a value.

use std::path::Path;

use jiff::Timestamp;

use super::{
    Exit, Form, complain, lines_of, print,
    status::{columns, short},
};
use crate::{
    domain::virtual_key::Token,
    process,
    spool::{
        SpoolError,
        shelf::{FailedEntry, Listed, Retried, Shelf},
    },
    telemetry,
};

/// Which failed entries are meant.
#[derive(Debug)]
pub(super) enum Which {
    /// Each of them.
    All,
    /// Those with these tokens.
    These(Vec<Token>),
}

/// Shows what is there.
pub(super) fn list(spool: &Path, form: Form) -> Exit {
    // Whoever says what an entry is about has read it.
    process::protect();
    let listed = match Shelf::open(spool).and_then(|shelf| shelf.list()) {
        Ok(listed) => listed,
        Err(error) => return refused(&error),
    };
    if matches!(form, Form::Json) {
        return print(&format!("{:#}\n", serde_json::to_value(&listed).unwrap_or_default()));
    }
    if listed.is_empty() {
        return print("the spool is empty\n");
    }
    let now = now_ms();
    let rows: Vec<[String; 5]> = listed
        .iter()
        .map(|Listed { state, token, file, subject, reason, since_ms, message: _ }| {
            let state = reason.as_ref().map_or_else(|| (*state).to_owned(), |reason| format!("{state} ({reason})"));
            let age = short((now - since_ms) / 1000);
            let subject = subject.clone().unwrap_or_default();
            [token.clone().unwrap_or_default(), state, age, subject, file.clone()]
        })
        .collect();
    let mut lines = Vec::new();
    columns(&mut lines, ["ENTRY", "STATE", "AGE", "WHAT", "FILE"], &rows);
    for Listed { token, message, .. } in &listed {
        if let (Some(token), Some(message)) = (token, message) {
            lines.push(format!("! {token}: {message}"));
        }
    }
    print(&lines_of(&lines))
}

/// Puts failed entries back, to be tried again.
pub(super) fn retry(spool: &Path, which: &Which, force: bool) -> Exit {
    each(spool, which, |shelf, entry, token| {
        Ok(match shelf.retry(entry, force)? {
            Retried::Yes => Ok(format!("{token} is tried again")),
            Retried::Gone => Err(format!("{token}: somebody else has taken it")),
            Retried::Superseded => Err(format!(
                "{token}: the secret holds something newer, which this entry would overwrite; --force does that"
            )),
        })
    })
}

/// Removes failed entries, with their values.
pub(super) fn discard(spool: &Path, which: &Which) -> Exit {
    each(spool, which, |shelf, entry, token| {
        shelf.discard(entry)?;
        Ok(Ok(format!("{token} is discarded")))
    })
}

fn each(
    spool: &Path,
    which: &Which,
    act: impl Fn(&Shelf, &FailedEntry, Token) -> Result<Result<String, String>, SpoolError>,
) -> Exit {
    let done = Shelf::open(spool).and_then(|shelf| {
        let failed = shelf.failed()?;
        let tokens: Vec<Token> = match which {
            Which::All => failed.keys().copied().collect(),
            Which::These(tokens) => tokens.clone(),
        };
        let one = |token: Token| match failed.get(&token) {
            Some(entry) => act(&shelf, entry, token),
            None => Ok(Err(format!("{token}: there is no such failed entry"))),
        };
        tokens.into_iter().map(one).collect::<Result<Vec<_>, _>>()
    });
    let done = match done {
        Ok(done) => done,
        Err(error) => return refused(&error),
    };
    let mut exit = Exit::Done;
    let mut lines = Vec::new();
    for result in done {
        match result {
            Ok(line) => lines.push(line),
            Err(message) => {
                complain(&message);
                exit = Exit::Failed;
            }
        }
    }
    if print(&lines_of(&lines)) == Exit::Done { exit } else { Exit::Failed }
}

fn refused(error: &SpoolError) -> Exit {
    complain(&format!("{error}; run this as keytide's user, in its container"));
    Exit::Failed
}

fn now_ms() -> i64 {
    Timestamp::try_from((telemetry::wall_clock())()).unwrap_or_default().as_millisecond()
}

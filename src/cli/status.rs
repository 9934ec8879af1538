//! `keytide status` and `keytide refresh`: what the running daemon says, for people and for programs.

use std::{collections::BTreeMap, path::Path, thread, time::Duration};

use hyper::{Method, body::Bytes};
use jiff::Timestamp;

use super::{Exit, Form, block_on, complain, identity_lines, lines_of, print};
use crate::{
    health::{KeyStatus, OutputStatus, ReloadStatus, SpoolProblem, SpoolStatus, Status},
    http_client::{self, RequestError},
    pull::Report,
    telemetry,
};

/// From one showing of `--watch` to the next.
const AGAIN: Duration = Duration::from_secs(2);

/// Shows the status, once or again and again.
pub(super) fn status(socket: &Path, watch: bool, form: Form) -> Exit {
    loop {
        let body = match ask(socket, Method::GET, "/status") {
            Ok(body) => body,
            Err(error) => {
                complain(&error.to_string());
                return Exit::Failed;
            }
        };
        let shown = match form {
            Form::Json => print(&format!("{}\n", String::from_utf8_lossy(&body).trim_end())),
            Form::Text => {
                let Ok(status) = serde_json::from_slice::<Status>(&body) else { return foreign() };
                let clear = if watch { "\x1b[H\x1b[2J" } else { "" };
                print(&format!("{clear}{}", table(&status, now())))
            }
        };
        if shown != Exit::Done || !watch {
            return shown;
        }
        thread::park_timeout(AGAIN);
    }
}

/// Asks for a refresh and shows the report. Exit 0 only if it was complete.
pub(super) fn refresh(socket: &Path, accept_removals: bool, form: Form) -> Exit {
    let target = format!("/refresh?accept_removals={accept_removals}");
    let body = match ask(socket, Method::POST, &target) {
        Ok(body) => body,
        Err(error) => {
            complain(&error.to_string());
            return Exit::Failed;
        }
    };
    let Ok(report) = serde_json::from_slice::<Report>(&body) else { return foreign() };
    let Report { complete, changed, removed, problems } = &report;
    let shown = match form {
        Form::Json => print(&format!("{}\n", String::from_utf8_lossy(&body).trim_end())),
        Form::Text => {
            let mut lines = Vec::new();
            for (what, names) in [("changed", changed), ("removed", removed)] {
                for name in names {
                    lines.push(format!("{what}  {name}"));
                }
            }
            for problem in problems {
                lines.push(format!("problem  {problem}"));
            }
            if *complete && changed.is_empty() && removed.is_empty() {
                lines.push("nothing changed".to_owned());
            }
            print(&lines_of(&lines))
        }
    };
    if *complete { shown } else { Exit::Failed }
}

fn ask(socket: &Path, method: Method, target: &str) -> Result<Bytes, RequestError> {
    let broken = |error| RequestError::Connect { path: socket.to_owned(), error };
    block_on(http_client::request(socket, method, target)).map_err(broken)?
}

fn foreign() -> Exit {
    complain("the daemon's answer is not one that this version of keytide reads; use the same version");
    Exit::Failed
}

fn now() -> Timestamp {
    Timestamp::try_from((telemetry::wall_clock())()).unwrap_or_default()
}

/// The status for people: what is wrong first.
fn table(status: &Status, now: Timestamp) -> String {
    let Status { version, ready, started, identity, refresh, keys, secrets, outputs, spool, reload, config, remarks } =
        status;
    let mut lines = Vec::new();
    let age =
        |at: &Option<String>| at.as_deref().map_or_else(|| "never".to_owned(), |at| format!("{} ago", since(at, now)));
    let mut line = |name: &str, value: String| lines.push(format!("{name:<10} {value}"));
    line("keytide", format!("{version}, {}, up {}", if *ready { "ready" } else { "NOT ready" }, since(started, now)));
    for (i, text) in identity_lines(identity).into_iter().enumerate() {
        line(if i == 0 { "identity" } else { "" }, text);
    }
    let next = refresh.next.as_deref().map(|at| format!(", next in {}", until(at, now))).unwrap_or_default();
    line("refresh", format!("complete {}, last {}{next}", age(&refresh.last_complete), age(&refresh.last)));
    if let Some(refused) = &config.refused {
        line("config", format!("REFUSED, an older one is in use: {refused}"));
    }
    for remark in remarks {
        line("remark", remark.clone());
    }
    if !keys.is_empty() {
        lines.push(String::new());
    }
    let rows = keys.iter().map(|key| {
        let KeyStatus { name, state, reason, secret, version, created, message: _ } = key;
        let state = reason.as_ref().map_or_else(|| state.clone(), |reason| format!("{state} ({reason})"));
        let version = version.as_deref().map(|id| id.chars().take(8).collect()).unwrap_or_default();
        let created = created.as_deref().map(|at| since(at, now)).unwrap_or_default();
        [name.clone(), state, secret.clone().unwrap_or_else(|| "template".to_owned()), version, created]
    });
    columns(&mut lines, ["KEY", "STATE", "SECRET", "VERSION", "AGE"], &rows.collect::<Vec<_>>());
    if !outputs.is_empty() {
        lines.push(String::new());
    }
    let rows = outputs.iter().map(|output| {
        let OutputStatus { name, kind, path, state, keys, last_write, message: _, unrepresentable: _ } = output;
        [name.clone(), format!("{kind} {path}"), state.clone(), keys.to_string(), age(last_write)]
    });
    columns(&mut lines, ["OUTPUT", "WHERE", "STATE", "KEYS", "CHANGED"], &rows.collect::<Vec<_>>());
    if !reload.is_empty() {
        lines.push(String::new());
    }
    let rows = reload.iter().map(|action| {
        let ReloadStatus { name, kind, pending, last, message: _ } = action;
        [name.clone(), kind.clone(), if *pending { "pending" } else { "idle" }.to_owned(), age(last)]
    });
    columns(&mut lines, ["RELOAD", "KIND", "STATE", "DONE"], &rows.collect::<Vec<_>>());
    if let Some(spool) = spool {
        lines.push(String::new());
        lines.extend(spool_lines(spool, now));
    }
    // Each message once, with how many keys share it.
    let mut messages: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for key in keys {
        if let Some(message) = &key.message {
            messages.entry(message).or_default().push(&key.name);
        }
    }
    for (secret, message) in secrets {
        messages.entry(message).or_default().insert(0, secret);
    }
    let output_messages = outputs.iter().filter_map(|output| Some((output.message.as_deref()?, output.name.as_str())));
    let action_messages = reload.iter().filter_map(|action| Some((action.message.as_deref()?, action.name.as_str())));
    for (message, name) in output_messages.chain(action_messages) {
        messages.entry(message).or_default().push(name);
    }
    if !messages.is_empty() {
        lines.push(String::new());
    }
    for (message, names) in messages {
        let more = names.len().saturating_sub(3);
        let names = names.into_iter().take(3).collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("! {names}{more}: {message}"));
    }
    for output in outputs {
        for (key, reason) in &output.unrepresentable {
            lines.push(format!("! {}: cannot carry {key}: {reason}", output.name));
        }
    }
    lines_of(&lines)
}

fn spool_lines(spool: &SpoolStatus, now: Timestamp) -> Vec<String> {
    let SpoolStatus {
        directory,
        writer,
        waiting,
        claimed,
        failed,
        unreadable,
        ignored,
        oldest,
        last_confirmed,
        confirmed,
        writes_per_second,
        trouble,
        problems,
    } = spool;
    let oldest = oldest.as_deref().map(|at| format!(", the oldest for {}", since(at, now))).unwrap_or_default();
    let last = last_confirmed.as_deref().map(|at| format!(", the last {} ago", since(at, now))).unwrap_or_default();
    let mut lines = vec![format!("SPOOL  {directory}")];
    lines.push(format!("claimed {claimed}{oldest}; waiting {waiting}; confirmed {confirmed}{last}"));
    if *failed > 0 || *unreadable > 0 {
        lines.push(format!("FAILED {failed} (`keytide spool list`); unreadable {unreadable}"));
    }
    if *ignored > 0 {
        lines.push(format!("ignored {ignored} files whose names are none of entries"));
    }
    if let Some(writer) = writer {
        lines.extend(identity_lines(writer).into_iter().map(|line| format!("writer {line}")));
    }
    if let Some(rate) = writes_per_second {
        lines.push(format!("writes at most {rate:.1} a second"));
    }
    if let Some(trouble) = trouble {
        lines.push(format!("! the spool cannot be used: {trouble}"));
    }
    for SpoolProblem { entry: _, operation, subject, attempts, reason, message } in problems {
        lines.push(format!("! {operation} {subject}: {reason} ({attempts} attempts): {message}"));
    }
    lines
}

pub(super) fn columns<const N: usize>(lines: &mut Vec<String>, head: [&str; N], rows: &[[String; N]]) {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if rows.is_empty() {
        return;
    }
    let head = head.map(str::to_owned);
    for row in std::iter::once(&head).chain(rows) {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let line = line.join("  ");
        lines.push(line.trim_end().to_owned());
    }
}

fn since(at: &str, now: Timestamp) -> String {
    at.parse::<Timestamp>().map_or_else(|_| "?".to_owned(), |at| short(now.as_second().saturating_sub(at.as_second())))
}

fn until(at: &str, now: Timestamp) -> String {
    at.parse::<Timestamp>().map_or_else(|_| "?".to_owned(), |at| short(at.as_second().saturating_sub(now.as_second())))
}

pub(super) fn short(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

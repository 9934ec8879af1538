//! The dialects of an env file. What each can carry, and how, was read in the sources of its readers, and
//! `tests/formats` lets those readers read what is written here; `docs/FORMATS.md` says it for users.
//!
//! No name is written twice, and names that change how programs run are kept away: both are the caller's part.

pub mod reader;

use std::io::{self, Write};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::domain::{mapping::Format, names::EnvName, value::SecretValue};

/// Why a format cannot carry a value. Says which kind of character is in the way, never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unrepresentable {
    /// No environment can hold it.
    #[error("it holds a NUL")]
    Nul,
    /// One line is all that a value gets.
    #[error("it holds a line feed")]
    LineFeed,
    /// Taken for a part of the line's end.
    #[error("it ends in a carriage return")]
    FinalCarriageReturn,
    /// Taken for a part of a line's end.
    #[error("it holds a carriage return before a line feed")]
    CarriageReturnLineFeed,
    /// The end of the value, wherever it stands.
    #[error("it holds a single quote")]
    SingleQuote,
    /// Taken for a variable that is not there.
    #[error("it is empty")]
    Empty,
    /// Readers give up at a line of 64 KiB.
    #[error("a line of it would have 65536 bytes or more")]
    LineTooLong,
    /// python-dotenv replaces it, between any quotes.
    #[error("it holds a ${{…}} that python-dotenv expands")]
    Expanded,
    /// There are three ways of writing a value that all readers know; each has something in its way.
    #[error("single quotes cannot carry {single}, double quotes {double}, and a line without quotes {bare}")]
    NoCommonQuoting {
        /// What single quotes cannot carry.
        single: &'static str,
        /// What double quotes cannot carry.
        double: &'static str,
        /// What a line without quotes cannot carry.
        bare: &'static str,
    },
    /// A name that node's dotenv loses.
    #[error("JavaScript has no variable of this name")]
    JavaScriptName,
    /// An assignment ends the shell.
    #[error("shells hold a variable of this name read-only")]
    ReadOnlyInShell,
    /// An assignment does not keep the value, or executes it.
    #[error("shells give a variable of this name a meaning of its own")]
    ShellVariable,
}

/// The three ways of writing a value that python-dotenv, node's dotenv and Docker Compose all know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    /// `'…'`: all is literal.
    Single,
    /// `"…"`: `\r` is a carriage return, all else is literal.
    Double,
    /// All of the line is literal.
    Bare,
}

/// The length of what is written to it.
struct Length(usize);

/// The longest line, without its end, that Go's `bufio.Scanner` returns: it gives up once its buffer of 64 KiB
/// (`bufio.MaxScanTokenSize`) is full and no line has ended.
const LONGEST_LINE: usize = 64 * 1024 - 1;

/// Variables whose value a shell would execute, or would not give back; beside those that it holds read-only.
///
/// To an integer variable (`RANDOM`, `OPTIND`) bash, mksh and zsh assign the result of an arithmetic expression, in which
/// `x[$(command)]` runs the command. Found by assigning such a value to each of the 4200 upper-case words in the manuals
/// and the programs of bash 5.2, dash 0.5.12, ksh93u+m 1.0.4, mksh 59c, yash 2.52, busybox 1.35 and zsh 5.9; of zsh,
/// which is no POSIX shell unless asked, those that execute.
#[rustfmt::skip]
const SHELL_VARIABLES: [&str; 50] = [
    // Executed at the assignment.
    "BASHPID", "COLUMNS", "EGID", "ERRNO", "FUNCNEST", "GID", "HISTCMD", "HISTSIZE", "KEYTIMEOUT", "KSHEGID", "KSHGID",
    "KSHUID", "LINES", "LISTMAX", "MAILCHECK", "OPTIND", "PGRP", "RANDOM", "SAVEHIST", "SECONDS", "SHLVL", "SRANDOM",
    "TMOUT", "TRY_BLOCK_ERROR", "TRY_BLOCK_INTERRUPT", "USER_ID", "ZLE_RPROMPT_INDENT",
    // Executed at the next prompt, traced command, mail check or start of a shell.
    "BASH_ENV", "ENV", "MAILPATH", "PROMPT_COMMAND", "PS0", "PS1", "PS2", "PS4",
    // Not kept.
    "BASH_ARGC", "BASH_ARGV", "BASH_COMMAND", "BASH_LINENO", "BASH_SOURCE", "BASH_SUBSHELL", "DIRSTACK",
    "EPOCHREALTIME", "EPOCHSECONDS", "FUNCNAME", "GROUPS", "JOBMAX", "KSH_VERSION", "LINENO", "PIPESTATUS",
];

/// Whether a format carries a value under a name, byte for byte.
///
/// # Errors
/// If it does not: why.
pub fn check(format: Format, name: &EnvName, value: &SecretValue) -> Result<(), Unrepresentable> {
    let text = value.expose();
    if format != Format::Json && text.contains('\0') {
        return Err(Unrepresentable::Nul);
    }
    match format {
        Format::Dotenv if name.as_str() == "__proto__" => Err(Unrepresentable::JavaScriptName),
        Format::Dotenv => quoting(text).map(|_| ()),
        Format::Posix if name.is_shell_read_only() => Err(Unrepresentable::ReadOnlyInShell),
        Format::Posix if SHELL_VARIABLES.contains(&name.as_str()) => Err(Unrepresentable::ShellVariable),
        Format::Posix | Format::Json => Ok(()),
        Format::Docker => docker(name.as_str(), text),
        Format::Kubernetes => kubernetes(name.as_str(), text),
    }
}

/// The content of a file with these entries, in their order.
///
/// The memory is reserved before the first byte is written, so that no growth leaves an unwiped copy behind.
///
/// # Panics
/// If [`check`] refuses an entry: a file with that entry would say something else than what was meant.
#[must_use]
pub fn render(format: Format, entries: &[(&EnvName, &SecretValue)]) -> Zeroizing<Vec<u8>> {
    for (name, value) in entries {
        assert!(check(format, name, value).is_ok(), "an entry was not checked");
    }
    let mut length = Length(0);
    spell(format, entries, &mut length).expect("memory takes every write");
    let mut content = Zeroizing::new(Vec::with_capacity(length.0));
    spell(format, entries, &mut *content).expect("memory takes every write");
    content
}

/// Writes the whole file, the same at each call.
fn spell(format: Format, entries: &[(&EnvName, &SecretValue)], to: &mut impl Write) -> io::Result<()> {
    if format == Format::Json {
        return json(entries, to);
    }
    for (name, value) in entries {
        to.write_all(name.as_str().as_bytes())?;
        to.write_all(b"=")?;
        match format {
            Format::Dotenv => match quoting(value.expose()) {
                Ok(Quoting::Single) => quoted("'", value, None, to)?,
                Ok(Quoting::Double) => quoted("\"", value, Some(('\r', "\\r")), to)?,
                Ok(Quoting::Bare) | Err(_) => quoted("", value, None, to)?,
            },
            Format::Posix => quoted("'", value, Some(('\'', r"'\''")), to)?,
            Format::Kubernetes => quoted("'", value, None, to)?,
            Format::Docker | Format::Json => quoted("", value, None, to)?,
        }
        to.write_all(b"\n")?;
    }
    Ok(())
}

/// Writes a value between quotes, with the one escape that it needs.
fn quoted(quote: &str, value: &SecretValue, escape: Option<(char, &str)>, to: &mut impl Write) -> io::Result<()> {
    to.write_all(quote.as_bytes())?;
    match escape {
        None => to.write_all(value.expose().as_bytes())?,
        Some((special, spelling)) => {
            for (i, piece) in value.expose().split(special).enumerate() {
                if i > 0 {
                    to.write_all(spelling.as_bytes())?;
                }
                to.write_all(piece.as_bytes())?;
            }
        }
    }
    to.write_all(quote.as_bytes())
}

/// One object on one line.
fn json(entries: &[(&EnvName, &SecretValue)], to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"{")?;
    for (i, (name, value)) in entries.iter().enumerate() {
        if i > 0 {
            to.write_all(b",")?;
        }
        serde_json::to_writer(&mut *to, name.as_str())?;
        to.write_all(b":")?;
        serde_json::to_writer(&mut *to, value.expose())?;
    }
    to.write_all(b"}\n")
}

/// docker/cli v29, `pkg/kvfile/kvfile.go`: lines of a `bufio.Scanner`, which drops one carriage return before the line
/// feed; all after the first `=` is the value.
fn docker(name: &str, text: &str) -> Result<(), Unrepresentable> {
    if text.contains('\n') {
        Err(Unrepresentable::LineFeed)
    } else if text.ends_with('\r') {
        Err(Unrepresentable::FinalCarriageReturn)
    } else if name.len() + "=".len() + text.len() > LONGEST_LINE {
        Err(Unrepresentable::LineTooLong)
    } else {
        Ok(())
    }
}

/// Kubernetes v1.37, `pkg/kubelet/util/env/env_util.go`: lines of a `bufio.Scanner`, joined by line feeds, up to the
/// next single quote; and `pkg/kubelet/kubelet_pods.go`, which takes an empty value for a missing one.
fn kubernetes(name: &str, text: &str) -> Result<(), Unrepresentable> {
    if text.is_empty() {
        return Err(Unrepresentable::Empty);
    }
    if text.contains('\'') {
        return Err(Unrepresentable::SingleQuote);
    }
    if text.contains("\r\n") {
        return Err(Unrepresentable::CarriageReturnLineFeed);
    }
    let last = text.split('\n').count() - 1;
    let too_long = text.split('\n').enumerate().any(|(i, line)| {
        let before = if i == 0 { name.len() + "='".len() } else { 0 };
        let after = if i == last { "'".len() } else { 0 };
        before + line.len() + after > LONGEST_LINE
    });
    if too_long { Err(Unrepresentable::LineTooLong) } else { Ok(()) }
}

/// How the three readers of `dotenv` read a value alike, if they do. In all three, what stands between quotes may hold
/// line feeds. Where they differ:
///
/// * python-dotenv 1.2 (`parser.py`, `variables.py`) reads with universal newlines, so no carriage return survives as it
///   is; undoes `\\` and `\'` between single quotes, and `\` before one of `\'"abfnrtv` between double quotes; and expands
///   `${NAME}` and `${NAME:-default}` in what results, whatever the quotes.
/// * node's dotenv 18 (`dist/index.cjs`, `parse`) turns carriage returns into line feeds; undoes `\n` and `\r` between
///   double quotes and nothing else, so that no quote can be escaped; knows backticks as quotes, alone; ends a value
///   without quotes at any `#`; and trims it of JavaScript's white space. `fast: true` chooses another parser for the
///   same rules.
/// * Docker Compose (compose-go v2.16, `dotenv/parser.go`, `template/template.go`) undoes `\'` between single quotes;
///   between double quotes `\` before a double quote or one of `abfnrtv0$\`; expands `$NAME`, `${…}` and `$$` but
///   between single quotes.
fn quoting(text: &str) -> Result<Quoting, Unrepresentable> {
    if is_expanded(text) {
        return Err(Unrepresentable::Expanded);
    }
    let Err(single) = fits_single(text) else { return Ok(Quoting::Single) };
    let Err(double) = fits_double(text) else { return Ok(Quoting::Double) };
    let Err(bare) = fits_bare(text) else { return Ok(Quoting::Bare) };
    Err(Unrepresentable::NoCommonQuoting { single, double, bare })
}

fn fits_single(text: &str) -> Result<(), &'static str> {
    if text.contains('\'') {
        Err("a single quote")
    } else if text.contains('\r') {
        Err("a carriage return")
    } else if text.contains(r"\\") {
        Err("two backslashes in a row")
    } else if text.ends_with('\\') {
        Err("a backslash at the end")
    } else {
        Ok(())
    }
}

fn fits_double(text: &str) -> Result<(), &'static str> {
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('"', _) => return Err("a double quote"),
            ('\\', None) => return Err("a backslash at the end"),
            ('\\', Some(next)) if "\\'\"abfnrtv0$\r".contains(*next) => {
                return Err("a backslash that begins an escape");
            }
            ('$', Some(next)) if begins_expansion(*next) => return Err("a $ before a name, a brace or another $"),
            _ => {}
        }
    }
    Ok(())
}

fn fits_bare(text: &str) -> Result<(), &'static str> {
    let at_edge = |blank: fn(char) -> bool| text.starts_with(blank) || text.ends_with(blank);
    if text.contains(['\n', '\r', '\u{2028}', '\u{2029}']) {
        Err("a line break")
    } else if text.contains('#') {
        Err("a #")
    } else if text.starts_with(['\'', '"', '`']) {
        Err("a quote at the start")
    } else if at_edge(is_trimmed) {
        Err("white space at an end")
    } else if text.chars().zip(text.chars().skip(1)).any(|(c, next)| c == '$' && begins_expansion(next)) {
        Err("a $ before a name, a brace or another $")
    } else {
        Ok(())
    }
}

/// `${NAME}` or `${NAME:-default}` as in python-dotenv's `variables.py`, where a name is anything without `}` and `:`.
fn is_expanded(text: &str) -> bool {
    text.match_indices("${").any(|(start, opening)| {
        let after = text.split_at(start + opening.len()).1;
        let after = after.trim_start_matches(|c| c != '}' && c != ':');
        after.starts_with('}') || after.starts_with(":-") && after.contains('}')
    })
}

/// True if Docker Compose takes a `$` before this character for the beginning of a variable. Its pattern ignores case as
/// Unicode does, so a long s and the sign for Kelvin are letters.
fn begins_expansion(next: char) -> bool {
    next.is_ascii_alphabetic() || matches!(next, '_' | '{' | '$' | '\u{17f}' | '\u{212a}')
}

/// What Python, JavaScript or Go trims from the end of a line.
fn is_trimmed(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}' | '\u{feff}')
}

// === impl Length ===

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Format; 5] = [Format::Dotenv, Format::Posix, Format::Docker, Format::Kubernetes, Format::Json];

    fn name(text: &str) -> EnvName {
        EnvName::parse(text).unwrap()
    }

    fn value(text: &str) -> SecretValue {
        SecretValue::new(text.to_owned())
    }

    fn rendered(format: Format, values: &[&str]) -> String {
        let entries: Vec<_> =
            ["A", "B_2", "c"].iter().zip(values).map(|(name_text, text)| (name(name_text), value(text))).collect();
        let entries: Vec<_> = entries.iter().map(|(name, value)| (name, value)).collect();
        String::from_utf8(render(format, &entries).to_vec()).unwrap()
    }

    fn refusal(format: Format, text: &str) -> Option<String> {
        check(format, &name("A"), &value(text)).err().map(|reason| reason.to_string())
    }

    #[test]
    fn each_format_has_its_quotes() {
        assert_eq!(
            rendered(Format::Dotenv, &["", "a\n$X #\nb\\n", "\"so\""]),
            "A=''\nB_2='a\n$X #\nb\\n'\nc='\"so\"'\n"
        );
        assert_eq!(
            rendered(Format::Dotenv, &["it's", "a\r\nb", "a'\"\\\\"]),
            "A=\"it's\"\nB_2=\"a\\r\nb\"\nc=a'\"\\\\\n"
        );
        assert_eq!(rendered(Format::Posix, &["it's", "", "$(x)\r\n"]), "A='it'\\''s'\nB_2=''\nc='$(x)\r\n'\n");
        assert_eq!(rendered(Format::Docker, &[" '\"$X\\ ", "", "#"]), "A= '\"$X\\ \nB_2=\nc=#\n");
        assert_eq!(rendered(Format::Kubernetes, &["a\nb", "\"$X\\", "\r"]), "A='a\nb'\nB_2='\"$X\\'\nc='\r'\n");
        assert_eq!(rendered(Format::Json, &["\"\\\n\0é", ""]), "{\"A\":\"\\\"\\\\\\n\\u0000é\",\"B_2\":\"\"}\n");
        assert_eq!(rendered(Format::Json, &[]), "{}\n");
        assert_eq!(rendered(Format::Posix, &[]), "");
    }

    #[test]
    fn a_refusal_says_what_is_in_the_way() {
        let dotenv = |text| refusal(Format::Dotenv, text).unwrap();
        assert_eq!(dotenv("a${X}"), "it holds a ${…} that python-dotenv expands");
        assert_eq!(
            dotenv("it's \"so\" #1"),
            "single quotes cannot carry a single quote, double quotes a double quote, and a line without quotes a #"
        );
        assert_eq!(refusal(Format::Docker, "a\nb").unwrap(), "it holds a line feed");
        assert_eq!(refusal(Format::Kubernetes, "").unwrap(), "it is empty");
        assert_eq!(
            check(Format::Posix, &name("RANDOM"), &value("1")).unwrap_err().to_string(),
            "shells give a variable of this name a meaning of its own"
        );
        for format in [Format::Dotenv, Format::Posix, Format::Docker, Format::Kubernetes] {
            assert_eq!(refusal(format, "a\0").unwrap(), "it holds a NUL", "{format:?}");
        }
    }

    #[test]
    #[should_panic(expected = "an entry was not checked")]
    fn what_check_refuses_is_not_written() {
        let _content = render(Format::Kubernetes, &[(&name("A"), &value("'"))]);
    }

    proptest! {
        #[test]
        fn memory_is_reserved_once_and_filled(texts in prop::collection::vec("[\\x00-\\x7fé]{0,40}", 0..3)) {
            for format in ALL {
                let texts: Vec<_> =
                    texts.iter().map(String::as_str).filter(|text| refusal(format, text).is_none()).collect();
                let entries: Vec<_> = texts.iter().map(|text| (name("A"), value(text))).collect();
                let entries: Vec<_> = entries.iter().map(|(name, value)| (name, value)).collect();
                let content = render(format, &entries);
                prop_assert_eq!(content.capacity(), content.len());
            }
        }

        #[test]
        fn json_is_what_serde_json_reads(text in any::<String>()) {
            let read: std::collections::BTreeMap<String, String> =
                serde_json::from_str(&rendered(Format::Json, &[&text])).unwrap();
            prop_assert_eq!(read.get("A"), Some(&text));
        }
    }
}

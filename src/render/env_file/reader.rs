//! Reads an env file back: byte for byte what keytide writes, and of what others write only what can be read in one
//! way.
//!
//! `dotenv`, `posix` and `kubernetes` spell no value so that another of them reads something else, and none of their
//! lines begins with a brace: those and `json` are told apart by their content. `docker` knows no quotes, and must be
//! named.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{check, fits_bare, fits_double, fits_single, is_expanded};
use crate::domain::{
    mapping::Format,
    names::EnvName,
    value::{Pairs, SecretValue},
};

/// What an env file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<EnvName, SecretValue>);

/// What tells one set of variables from another, without holding a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// Why a file cannot be read. It says where, and nothing of what stands there: in a file that is not what it should be,
/// a name may be a piece of a value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Malformed {
    /// A line of it.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A value that this format does not carry.
    #[error("line {line}: {reason}, which the format does not carry")]
    Value {
        /// Where its entry begins, counted from 1.
        line: usize,
        /// As the writer refuses it.
        reason: super::Unrepresentable,
    },
    /// A member of a JSON object.
    #[error("the member {name}: {what}")]
    Member {
        /// Its name, which is that of a variable.
        name: EnvName,
        /// What is wrong.
        what: &'static str,
    },
}

const NO_ENTRY: &str = "expected NAME=value, as keytide writes it";
const NO_END: &str = "its value has no end: the file is cut off, or its format is another one";
const AFTER_QUOTE: &str = "something follows the closing quote";
const OTHER_FORMAT: &str = "its value is not spelled as the format has it";
const AMBIGUOUS: &str =
    "programs read this value in different ways; where the file is one of docker's, say --format docker";
const TWICE: &str = "its name was given before";
const NUL: &str = "it holds a NUL, which no environment can hold";
const NOT_UTF8: &str = "it is not UTF-8";
const CR_LF: &str = "its lines end in CR LF; expected LF";
const BOM: &str = "it begins with a byte order mark; expected none";

// === impl Variables ===

impl Variables {
    /// Reads a file of this format; none: of any but `docker`.
    ///
    /// # Errors
    /// If keytide would not have written it, and it cannot be read in one way only.
    pub fn read(content: &[u8], format: Option<Format>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(content).map_err(|error| {
            let before = content.get(..error.valid_up_to()).and_then(|before| std::str::from_utf8(before).ok());
            Malformed::Line { line: 1 + before.unwrap_or_default().matches('\n').count(), what: NOT_UTF8 }
        })?;
        if text.starts_with('\u{feff}') {
            return Err(Malformed::Line { line: 1, what: BOM });
        }
        match format {
            Some(Format::Json) => json(text),
            None if text.trim_start().starts_with('{') => json(text),
            format => lines(text, format),
        }
    }

    /// Takes what a later file holds: of two variables with one name the later one counts.
    pub fn merge(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// Each variable.
    pub fn iter(&self) -> impl Iterator<Item = (&EnvName, &SecretValue)> {
        self.0.iter()
    }

    /// What changes if and only if a name or a value does.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut digest = Sha256::new();
        for (name, value) in &self.0 {
            // Neither holds a NUL.
            for text in [name.as_str(), value.expose()] {
                digest.update(text);
                digest.update([0]);
            }
        }
        Fingerprint(digest.finalize().into())
    }

    fn add(&mut self, name: EnvName, value: SecretValue) -> Result<(), &'static str> {
        if value.expose().contains('\0') {
            return Err(NUL);
        }
        if self.0.contains_key(&name) {
            return Err(TWICE);
        }
        self.0.insert(name, value);
        Ok(())
    }
}

/// Entries, empty lines and comments.
fn lines(text: &str, format: Option<Format>) -> Result<Variables, Malformed> {
    let mut variables = Variables::default();
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let wrong = |what| Malformed::Line { line, what };
        if rest.starts_with(['\n', '#']) {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            line += 1;
            continue;
        }
        if rest.starts_with("\r\n") {
            return Err(wrong(CR_LF));
        }
        let (name, after) = rest.split_once('=').ok_or_else(|| wrong(NO_ENTRY))?;
        let name = EnvName::parse(name).map_err(|_| wrong(NO_ENTRY))?;
        let (value, after) = value(after, format).map_err(wrong)?;
        if let Some(format) = format {
            check(format, &name, &value).map_err(|reason| Malformed::Value { line, reason })?;
        }
        variables.add(name, value).map_err(wrong)?;
        line += rest.strip_suffix(after).unwrap_or_default().matches('\n').count();
        rest = after;
    }
    Ok(variables)
}

/// One value, and what follows its line. The memory of each is reserved once, at its length.
fn value(text: &str, format: Option<Format>) -> Result<(SecretValue, &str), &'static str> {
    let may = |spelled: &[Format]| format.is_none_or(|format| spelled.contains(&format));
    if format == Some(Format::Docker) {
        let (value, after) = text.split_once('\n').ok_or(NO_END)?;
        return Ok((SecretValue::new(value.to_owned()), after));
    }
    if let Some(quoted) = text.strip_prefix('\'') {
        let mut pieces = Vec::new();
        let mut rest = quoted;
        let after = loop {
            let (piece, after) = rest.split_once('\'').ok_or(NO_END)?;
            pieces.push(piece);
            match after.strip_prefix(r"\''") {
                Some(more) if may(&[Format::Posix]) => rest = more,
                _ => break after,
            }
        };
        let value = SecretValue::new(pieces.join("'"));
        if format == Some(Format::Dotenv) && (fits_single(value.expose()).is_err() || is_expanded(value.expose())) {
            return Err(AMBIGUOUS);
        }
        return Ok((value, end_of_line(after)?));
    }
    if !may(&[Format::Dotenv]) {
        return Err(OTHER_FORMAT);
    }
    let (value, after, fits) = if let Some(quoted) = text.strip_prefix('"') {
        let (spelled, after) = quoted.split_once('"').ok_or(NO_END)?;
        if spelled.contains('\r') {
            return Err(AMBIGUOUS);
        }
        let value = SecretValue::new(spelled.split(r"\r").collect::<Vec<_>>().join("\r"));
        let fits = fits_double(value.expose()).is_ok();
        (value, end_of_line(after)?, fits)
    } else {
        let (bare, after) = text.split_once('\n').ok_or(NO_END)?;
        if bare.ends_with('\r') {
            return Err(CR_LF);
        }
        (SecretValue::new(bare.to_owned()), after, fits_bare(bare).is_ok())
    };
    if fits && !is_expanded(value.expose()) { Ok((value, after)) } else { Err(AMBIGUOUS) }
}

fn end_of_line(after: &str) -> Result<&str, &'static str> {
    match after.strip_prefix('\n') {
        Some(after) => Ok(after),
        None if after.is_empty() => Err(NO_END),
        None if after.starts_with("\r\n") => Err(CR_LF),
        None => Err(AFTER_QUOTE),
    }
}

/// One object of strings.
fn json(text: &str) -> Result<Variables, Malformed> {
    let Pairs(pairs) = serde_json::from_str(text).map_err(|error| Malformed::Line {
        line: error.line().max(1),
        what: "expected one JSON object, as keytide writes it",
    })?;
    let mut variables = Variables::default();
    for (name, raw) in pairs {
        let name = EnvName::parse(name)
            .map_err(|_| Malformed::Line { line: 1, what: "a member's name is not that of an environment variable" })?;
        let value = unescaped(raw.get())
            .ok_or_else(|| Malformed::Member { name: name.clone(), what: "expected a string of Unicode characters" })?;
        variables.add(name.clone(), value).map_err(|what| Malformed::Member { name, what })?;
    }
    Ok(variables)
}

/// The text of a JSON string that is known to be well-formed; none if it is another value, or half of a surrogate pair.
///
/// Not serde's: it leaves what it read in memory that nobody overwrites.
fn unescaped(json: &str) -> Option<SecretValue> {
    let spelled = json.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = Zeroizing::new(String::with_capacity(spelled.len()));
    let mut rest = spelled.chars();
    let unit = |rest: &mut std::str::Chars<'_>| {
        let digits = rest.as_str().get(..4)?;
        rest.nth(3)?;
        u16::from_str_radix(digits, 16).ok()
    };
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match rest.next()? {
            'b' => text.push('\u{8}'),
            'f' => text.push('\u{c}'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'u' => {
                let first = unit(&mut rest)?;
                let mut units = vec![first];
                if (0xd800..0xdc00).contains(&first) {
                    rest = rest.as_str().strip_prefix(r"\u")?.chars();
                    units.push(unit(&mut rest)?);
                }
                for decoded in char::decode_utf16(units) {
                    text.push(decoded.ok()?);
                }
            }
            c => text.push(c),
        }
    }
    Some(SecretValue::new(text.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::render, *};

    const ALL: [Format; 5] = [Format::Dotenv, Format::Posix, Format::Docker, Format::Kubernetes, Format::Json];
    const HINTLESS: [Format; 4] = [Format::Dotenv, Format::Posix, Format::Kubernetes, Format::Json];

    fn read(content: &str, format: Option<Format>) -> Result<Vec<(String, String)>, String> {
        let variables = Variables::read(content.as_bytes(), format).map_err(|error| error.to_string())?;
        Ok(variables.iter().map(|(name, value)| (name.to_string(), value.expose().to_owned())).collect())
    }

    fn one(content: &str) -> Result<String, String> {
        Ok(read(content, None)?.remove(0).1)
    }

    fn written(format: Format, texts: &[String]) -> (Vec<u8>, Variables) {
        let mut entries = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let (name, value) = (EnvName::parse(format!("K{i}")).unwrap(), SecretValue::new(text.clone()));
            // A NUL, which only `json` carries, has no place in an environment.
            if check(format, &name, &value).is_ok() && !text.contains('\0') {
                entries.push((name, value));
            }
        }
        let content = render(format, &entries.iter().map(|(name, value)| (name, value)).collect::<Vec<_>>());
        (content.to_vec(), Variables(entries.into_iter().collect()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn what_is_written_is_read_back(
            texts in prop::collection::vec(
                prop_oneof!["[ -~]{0,20}", "[\\\\'\"`$#{}=XnrK0 \t\r\n\u{2028}é]{0,12}", any::<String>()], 0..5
            ),
        ) {
            for format in ALL {
                let (content, expected) = written(format, &texts);
                prop_assert_eq!(&Variables::read(&content, Some(format)).unwrap(), &expected, "{:?}", format);
                if HINTLESS.contains(&format) {
                    prop_assert_eq!(&Variables::read(&content, None).unwrap(), &expected, "{:?}, found", format);
                }
            }
        }

        #[test]
        fn what_is_cut_off_is_not_read_as_something_else(
            texts in prop::collection::vec("[\\\\'\"$#=XK0 \n]{0,12}", 1..4), at in any::<prop::sample::Index>(),
        ) {
            for format in HINTLESS {
                let (content, expected) = written(format, &texts);
                let cut = content.get(..at.index(content.len() + 1)).unwrap();
                if let Ok(variables) = Variables::read(cut, Some(format)) {
                    // What is there is what was meant, of as many entries as there are.
                    for (name, value) in variables.iter() {
                        prop_assert_eq!(expected.0.get(name), Some(value), "{:?}", format);
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_word_of_them(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            for format in ALL.into_iter().map(Some).chain([None]) {
                drop(Variables::read(&bytes, format));
            }
        }

        #[test]
        fn json_is_read_as_serde_reads_it(text in "(\\\\[\"\\\\/bfnrtu]|[d89abc0-9]{1,4}|[ -!#-\\[\\]-~é🌊]){0,8}") {
            let content = format!("{{\"A\":\"{text}\"}}\n");
            let expected: Option<BTreeMap<String, String>> = serde_json::from_str(&content).ok();
            let expected = expected.and_then(|mut map| map.remove("A")).filter(|text| !text.contains('\0'));
            prop_assert_eq!(one(&content).ok(), expected);
        }
    }

    #[test]
    fn each_format_is_told_by_its_content() {
        let two = |a: &str, b: &str| Ok(vec![("A".to_owned(), a.to_owned()), ("B".to_owned(), b.to_owned())]);
        assert_eq!(read("A='it'\\''s'\nB=''\n", None), two("it's", ""));
        assert_eq!(read("# made by hand\n\nA=\"it's\\r\nx\"\nB=a'\"\\\\\n", None), two("it's\r\nx", "a'\"\\\\"));
        assert_eq!(read("A='x\ny'\nB='${X}'\n", None), two("x\ny", "${X}"));
        assert_eq!(read("{\"A\":\"\\\"\\u00e9\\ud83c\\udf0a\\n\",\"B\":\"\"}\n", None), two("\"é🌊\n", ""));
        assert_eq!(read(" {} \n", None), Ok(vec![]));
        assert_eq!(read("", None), Ok(vec![]));
        assert_eq!(read("A='x' #\nB=\n", Some(Format::Docker)), two("'x' #", ""));
    }

    #[test]
    fn what_keytide_would_not_write_is_refused_by_its_line() {
        let ambiguous = format!("line 1: {AMBIGUOUS}");
        for (content, expected) in [
            ("A='1'\nexport B='2'\n", "line 2: expected NAME=value, as keytide writes it"),
            ("A='1'\nsecret words\n", "line 2: expected NAME=value, as keytide writes it"),
            ("A='1\n2'\nB='3", "line 3: its value has no end: the file is cut off, or its format is another one"),
            ("A=1", "line 1: its value has no end: the file is cut off, or its format is another one"),
            ("A='1'x\n", "line 1: something follows the closing quote"),
            ("A='1'\r\nB='2'\r\n", "line 1: its lines end in CR LF; expected LF"),
            ("# by hand\r\nA=1\r\n", "line 2: its lines end in CR LF; expected LF"),
            ("\r\nA=1\r\n", "line 1: its lines end in CR LF; expected LF"),
            ("\u{feff}A='1'\n", "line 1: it begins with a byte order mark; expected none"),
            ("\u{feff}{}\n", "line 1: it begins with a byte order mark; expected none"),
            ("A='1'\nA='2'\n", "line 2: its name was given before"),
            ("A=\"a\\nb\"\n", &*ambiguous),
            ("A=a #b\n", &*ambiguous),
            ("A='\0'\n", "line 1: it holds a NUL, which no environment can hold"),
            ("{\"A\":1}", "the member A: expected a string of Unicode characters"),
            ("{\"A\":\"\\ud800\"}", "the member A: expected a string of Unicode characters"),
            ("{\"A\":\"\\u0000\"}", "the member A: it holds a NUL, which no environment can hold"),
            ("{\"A\":\"1\",\"A\":\"2\"}", "the member A: its name was given before"),
            ("{\"a-b\":\"1\"}", "line 1: a member's name is not that of an environment variable"),
            ("{\"A\":\"1\"", "line 1: expected one JSON object, as keytide writes it"),
        ] {
            assert_eq!(read(content, None), Err(expected.to_owned()), "{content}");
        }
        assert_eq!(Variables::read(b"A='1'\nB='\xff'\n", None).unwrap_err().to_string(), "line 2: it is not UTF-8");
        assert_eq!(
            read("A='it'\\''s'\n", Some(Format::Kubernetes)),
            Err("line 1: something follows the closing quote".to_owned())
        );
        assert_eq!(
            read("A=''\n", Some(Format::Kubernetes)),
            Err("line 1: it is empty, which the format does not carry".to_owned())
        );
        assert_eq!(
            read("A=x\n", Some(Format::Posix)),
            Err("line 1: its value is not spelled as the format has it".to_owned())
        );
        assert!(read("A='${X}'\n", Some(Format::Dotenv)).is_err());
    }

    #[test]
    fn a_fingerprint_follows_names_and_values_only() {
        let of = |content: &str| Variables::read(content.as_bytes(), None).unwrap().fingerprint();
        assert_eq!(of("A='1'\nB='2'\n"), of("# again\nB=2\nA='1'\n"));
        assert_eq!(of("A='1'\nB='2'\n"), of("{\"A\":\"1\",\"B\":\"2\"}"));
        assert_ne!(of("A='1'\nB='2'\n"), of("A='1'\n"));
        assert_ne!(of("A='1'\n"), of("A='2'\n"));
        let mut merged = Variables::read(b"A='1'\nB='1'\n", None).unwrap();
        merged.merge(Variables::read(b"B='2'\n", None).unwrap());
        assert_eq!(merged.fingerprint(), of("A='1'\nB='2'\n"));
    }
}

//! What loading finds: errors, of which one run reports all, and notices; each with its place.

use std::{
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
};

use thiserror::Error;

use super::{
    Environment,
    fields::Field,
    yaml::{Node, Position, Problem, Unchecked},
};

/// Where in the configuration something stands: `FILE:LINE:COL: KEY PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or `environment`.
    pub file: PathBuf,
    /// The position in it, where there is one.
    pub position: Option<Position>,
    /// The key path, such as `keytide.refresh.interval`, or the name of an environment variable.
    pub path: String,
}

/// One thing that is wrong with the configuration. Holds no value of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// What was expected.
    pub message: String,
}

/// Everything that is wrong with the configuration; shown with one line for each.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// A value, and where it was given.
#[derive(Debug, Clone)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What was found so far.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    pub(super) environment: &'a Environment,
    pub(super) errors: Vec<ConfigError>,
    pub(super) notices: Vec<String>,
}

/// Reads the fields of one file.
#[derive(Debug)]
pub(super) struct Reader<'a, 'e> {
    file: Rc<Path>,
    pub(super) findings: &'a mut Findings<'e>,
}

// === impl Place ===

impl Place {
    /// An environment variable.
    pub(super) fn environment(name: &str) -> Self {
        Self { file: "environment".into(), position: None, path: name.to_owned() }
    }

    /// A file as a whole.
    pub(super) fn file(file: &Path) -> Self {
        Self { file: file.to_owned(), position: None, path: String::new() }
    }

    /// Where a problem of a file's text is.
    pub(super) fn of(file: &Path, problem: &Problem) -> Self {
        Self { file: file.to_owned(), position: problem.at, path: problem.path.clone() }
    }

    /// `FILE:LINE`, for the second place in a message.
    pub(super) fn line(&self) -> String {
        match self.position {
            Some(position) => format!("{}:{}", self.file.display(), position.line),
            None => format!("{} ({})", self.path, self.file.display()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(position) = self.position {
            write!(f, ":{position}")?;
        }
        if self.path.is_empty() { Ok(()) } else { write!(f, ": {}", self.path) }
    }
}

// === impl ConfigErrors ===

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

// === impl Given ===

impl<T> Given<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Given<U> {
        Given { value: f(self.value), place: self.place }
    }
}

// === impl Findings ===

impl<'e> Findings<'e> {
    pub(super) fn new(environment: &'e Environment) -> Self {
        Self { environment, errors: Vec::new(), notices: Vec::new() }
    }

    pub(super) fn error(&mut self, place: &Place, message: impl Into<String>) {
        self.errors.push(ConfigError { place: place.clone(), message: message.into() });
    }

    pub(super) fn notice(&mut self, place: &Place, message: &str) {
        self.notices.push(format!("{place}: {message}"));
    }

    /// Says each error once, also where two were led to it.
    pub(super) fn unite_errors(&mut self) {
        let mut once: Vec<ConfigError> = Vec::with_capacity(self.errors.len());
        for error in self.errors.drain(..) {
            if !once.contains(&error) {
                once.push(error);
            }
        }
        self.errors = once;
    }

    /// A block that cannot be used, since a variable that it refers to is not set; a field that is bad was said before.
    pub(super) fn incomplete(&mut self, place: &Place) {
        let said = |error: &ConfigError| error.place.file == place.file && error.place.path.starts_with(&place.path);
        if !self.errors.iter().any(said) {
            self.error(place, "incomplete, since an environment variable that it refers to is not set");
        }
    }

    /// Of two places for one setting, the one that is given. Both is an error.
    pub(super) fn either<T>(&mut self, first: Option<Given<T>>, second: Option<Given<T>>) -> Option<Given<T>> {
        if let (Some(first), Some(second)) = (&first, &second) {
            let message = format!("given twice; the other is {} at {}", first.place.path, first.place.line());
            self.error(&second.place, message);
        }
        first.or(second)
    }
}

// === impl Reader ===

impl<'a, 'e> Reader<'a, 'e> {
    pub(super) fn new(file: &Path, findings: &'a mut Findings<'e>) -> Self {
        Self { file: file.into(), findings }
    }

    pub(super) fn place(&self, at: Position, path: impl Into<String>) -> Place {
        Place { file: self.file.to_path_buf(), position: Some(at), path: path.into() }
    }

    /// Reads a field. `os.environ/NAME` stands for the environment variable; where that is missing, the field is unset.
    pub(super) fn field<T: Field>(&mut self, path: &str, field: Option<Unchecked<T>>) -> Option<Given<T>> {
        let node = field?.node;
        let place = self.place(node.at, path);
        let node = self.resolve(node, &place)?;
        match T::read(&node) {
            Ok(value) => Some(Given { value, place }),
            Err(expected) => {
                self.findings.error(&place, expected);
                None
            }
        }
    }

    /// Reads a field on which it depends who keytide is. Left out is fine; a reference to a variable that is not set is not.
    pub(super) fn certain<T: Field>(&mut self, path: &str, field: Option<Unchecked<T>>) -> Option<Given<T>> {
        let place = self.place(field.as_ref()?.node.at, path);
        let errors = self.findings.errors.len();
        let given = self.field(path, field);
        if given.is_none() && self.findings.errors.len() == errors {
            self.findings.error(&place, "the environment variable that it refers to is not set");
        }
        given
    }

    /// The value of a field, where its place does not matter later.
    pub(super) fn value<T: Field>(&mut self, path: &str, field: Option<Unchecked<T>>) -> Option<T> {
        self.field(path, field).map(|given| given.value)
    }

    /// The value of a field that its block must have.
    pub(super) fn required<T: Field>(&mut self, block: &Place, name: &str, field: Option<Unchecked<T>>) -> Option<T> {
        if field.is_none() {
            self.findings.error(block, format!("{name} is required"));
        }
        self.certain(&format!("{}.{name}", block.path), field).map(|given| given.value)
    }

    /// Puts the variable in the place of `os.environ/NAME`; none, and a notice, where it is missing.
    pub(super) fn resolve(&mut self, node: Node, place: &Place) -> Option<Node> {
        let Some(name) = node.text().and_then(|text| text.strip_prefix("os.environ/")) else {
            return Some(node);
        };
        let value = self.findings.environment.get(name).map(|text| Node::of_text(node.at, text));
        if value.is_none() {
            self.findings.notice(place, "the environment variable that it refers to is not set: taken as left out");
        }
        value
    }
}

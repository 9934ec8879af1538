//! YAML with positions: the one file that knows the parser. What it says of an error is its own: the parser's messages
//! quote the input, and LiteLLM's file holds keys.

use std::{fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    Error, Spanned, alias_limits, budget,
    options::{DuplicateKeyPolicy, NonFiniteFloatPolicy},
};

use super::fields::Field;

/// A position in a file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// A part of the file whose position is kept.
#[derive(Debug)]
pub(super) struct Located<T> {
    pub(super) at: Position,
    pub(super) value: T,
}

/// One node of the file, of whatever shape. Has no `Debug`: it may hold a key.
pub(super) type Node = Located<Shape>;

/// The shape of a [`Node`].
pub(super) enum Shape {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// A field as it stands in the file: its position, and what [`Field::read`] is to make a `T` of, so that the second pass
/// can report every bad field in one run.
pub(super) struct Unchecked<T> {
    pub(super) node: Node,
    kind: PhantomData<T>,
}

/// A mapping in our block whose keys and values are fields, in the order of the file.
pub(super) struct Pairs<K, V>(pub(super) Vec<(Unchecked<K>, Unchecked<V>)>);

/// What is wrong with the text of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) at: Option<Position>,
    pub(super) path: String,
    pub(super) message: String,
}

/// Reads a file.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    read(text).map_err(|error| problem(text, &error))
}

/// The content of somebody else's file, without positions and without a type, which would be another reader of its own in
/// the program; none if it is no YAML.
pub(super) fn value(text: &str) -> Option<serde_json::Value> {
    read::<Node>(text).ok().map(|node| plain(node.value))
}

fn plain(shape: Shape) -> serde_json::Value {
    match shape {
        Shape::Null => serde_json::Value::Null,
        Shape::Bool(yes) => yes.into(),
        Shape::Number(number) => number.into(),
        Shape::Text(text) => text.into(),
        Shape::List(nodes) => nodes.into_iter().map(|node| plain(node.value)).collect(),
        Shape::Map(pairs) => {
            let text = |key: Node| if let Shape::Text(text) = key.value { Some(text) } else { None };
            pairs.into_iter().filter_map(|(key, node)| Some((text(key)?, plain(node.value)))).collect()
        }
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let options = serde_saphyr::options! {
        // LiteLLM's parser takes the last of duplicate keys; ours are refused by the types that they are read into.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
        budget: budget! { max_documents: 2, max_depth: 48, max_aliases: 10_000, max_recorded_anchor_events: 100_000 },
        alias_limits: alias_limits! { max_total_replayed_events: 100_000, max_replay_stack_depth: 16 },
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn problem(text: &str, error: &Error) -> Problem {
    let at = error.location().filter(|at| at.line() > 0).map(Position::from);
    let mut cause = error;
    while let Error::AliasError { error, .. } | Error::WithSnippet { error, .. } = cause {
        cause = error;
    }
    // Read again, since the parser's errors have no key path.
    let tree = || read::<Node>(text).ok();
    let problem = |at, path: Option<String>, message: String| Problem { at, path: path.unwrap_or_default(), message };
    match cause {
        Error::SerdeUnknownField { field, expected, .. }
        | Error::SerdeUnknownVariant { variant: field, expected, .. } => {
            let path = at.and_then(|at| {
                let tree = tree()?;
                find(&tree, at, Sought::Key).or_else(|| find(&tree, at, Sought::Value))
            });
            problem(at, path, unknown(field, expected))
        }
        Error::SerdeInvalidType { expected, .. } => {
            let path = at.and_then(|at| find(&tree()?, at, Sought::Value));
            problem(at, path, format!("expected {}", shape(expected)))
        }
        Error::Unexpected { expected, .. } => {
            let path = at.and_then(|at| find(&tree()?, at, Sought::Value));
            problem(at, path, format!("expected {}", shape(expected)))
        }
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. }
        | Error::ExpectedMappingEndAfterEnumVariantValue { .. }
        | Error::UnexpectedValueForUnitEnumVariant { .. }
        | Error::ExpectedStringKeyForExternallyTaggedEnum { .. } => {
            let path = at.and_then(|at| find(&tree()?, at, Sought::Value));
            let kinds = match &path {
                Some(path) if path.starts_with("keytide.reload") => {
                    "action in each item of the list: signal, http, generation or rollout"
                }
                _ => "output in each item of the list: env_file, files or kubernetes_secret",
            };
            problem(at, path, format!("expected one kind of {kinds}"))
        }
        // Our types make no other message of their own.
        Error::Message { .. } => match tree().as_ref().and_then(duplicate) {
            Some((path, first, second)) => {
                let first = format!("given twice; the first is on line {}", first.line);
                problem(Some(second), Some(path), first)
            }
            None => problem(at, None, "not readable as a configuration".to_owned()),
        },
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::RecursiveReferencesRequireWeakTypes { .. } => {
            problem(at, None, "the YAML is nested too deep, too large, or its aliases unfold to too much".to_owned())
        }
        Error::UnknownAnchor { .. } => problem(at, None, "an alias without its anchor".to_owned()),
        Error::MultipleDocuments { .. } => problem(at, None, "expected one YAML document, found more".to_owned()),
        _ => problem(at, None, "not valid YAML".to_owned()),
    }
}

/// What a type expects, in our words: the parser's own have its types' names in them.
fn shape(expected: &str) -> &'static str {
    if expected.contains("sequence") { "a list" } else { "a mapping" }
}

fn unknown(field: &str, expected: &[&'static str]) -> String {
    let nearest = expected.iter().map(|known| (distance(field, known), known)).min();
    let hint = match nearest {
        Some((distance, known)) if distance <= 1 + known.len() / 4 => format!("did you mean {known}? "),
        _ => String::new(),
    };
    format!("unknown key; {hint}expected one of {}", expected.join(", "))
}

/// How many letters must be put in, taken out or exchanged.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // A longer text than any key of ours is unlike all of them.
    for (i, c) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row, vec![i + 1]);
        diagonal.reverse();
        let mut corner = diagonal.pop().unwrap_or_default();
        for &d in &b {
            let above = diagonal.pop().unwrap_or_default();
            let left = row.last().copied().unwrap_or_default();
            row.push((corner + usize::from(c != d)).min(above + 1).min(left + 1));
            corner = above;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sought {
    Key,
    Value,
}

/// The key path of what begins at a position: within our block only, since the other keys of the file are none of ours.
fn find(root: &Node, at: Position, sought: Sought) -> Option<String> {
    fn walk(node: &Node, path: &str, at: Position, sought: Sought) -> Option<String> {
        match &node.value {
            Shape::Map(entries) => entries.iter().find_map(|(key, value)| {
                let path = join(path, key);
                let hit = if sought == Sought::Key { key.at } else { value.at };
                if hit == at { Some(path) } else { walk(value, &path, at, sought) }
            }),
            Shape::List(items) => items.iter().enumerate().find_map(|(i, item)| {
                let path = format!("{path}[{i}]");
                if sought == Sought::Value && item.at == at { Some(path) } else { walk(item, &path, at, sought) }
            }),
            _ => None,
        }
    }
    if let (Sought::Value, Shape::Map(entries)) = (sought, &root.value)
        && let Some(name) = ["keytide", "general_settings"]
            .into_iter()
            .find(|name| entries.iter().any(|(key, value)| key.text() == Some(name) && value.at == at))
    {
        return Some(name.to_owned());
    }
    walk(ours(root).next()?.1, "keytide", at, sought)
}

/// The first key of our block that is given twice, and both its positions.
fn duplicate(root: &Node) -> Option<(String, Position, Position)> {
    fn walk(node: &Node, path: &str) -> Option<(String, Position, Position)> {
        match &node.value {
            Shape::Map(entries) => entries.iter().enumerate().find_map(|(i, (key, value))| {
                let twin = entries.iter().take(i).find(|(other, _)| key.text().is_some() && other.text() == key.text());
                let path = join(path, key);
                match twin {
                    Some((other, _)) => Some((path, other.at, key.at)),
                    None => walk(value, &path),
                }
            }),
            Shape::List(items) => items.iter().enumerate().find_map(|(i, item)| walk(item, &format!("{path}[{i}]"))),
            _ => None,
        }
    }
    let mut blocks = ours(root);
    let (first, block) = blocks.next()?;
    match blocks.next() {
        Some((second, _)) => Some(("keytide".to_owned(), first.at, second.at)),
        None => walk(block, "keytide"),
    }
}

fn ours(root: &Node) -> impl Iterator<Item = (&Node, &Node)> {
    let entries = if let Shape::Map(entries) = &root.value { entries.as_slice() } else { &[] };
    entries.iter().filter(|(key, _)| key.text() == Some("keytide")).map(|(key, value)| (key, value))
}

fn join(path: &str, key: &Node) -> String {
    match key.text() {
        // A key's name stands in the message only where it can do no harm there.
        Some(name) if name.len() <= 128 && !name.chars().any(char::is_control) => format!("{path}.{name}"),
        _ => format!("{path}.(a key)"),
    }
}

// === impl Position ===

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

// === impl Located ===

impl Node {
    /// A text at a position.
    pub(super) fn of_text(at: Position, text: &str) -> Self {
        Self { at, value: Shape::Text(text.to_owned()) }
    }

    /// Its text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        if let Shape::Text(text) = &self.value { Some(text) } else { None }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(Self { at: spanned.referenced.into(), value: spanned.value })
    }
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }
}

// === impl Shape ===

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyShape;

        impl<'de> Visitor<'de> for AnyShape {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Shape, E> {
                Ok(Shape::Bool(value))
            }

            #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "no field needs more than 2^53")]
            fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
                Ok(Shape::Number(value as f64))
            }

            #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "no field needs more than 2^53")]
            fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
                Ok(Shape::Number(value as f64))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Shape, E> {
                Ok(Shape::Number(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<Shape, E> {
                Ok(Shape::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Shape::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Shape, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Shape::Map(map))
            }
        }

        deserializer.deserialize_any(AnyShape)
    }
}

// === impl Unchecked ===

impl<T> From<Node> for Unchecked<T> {
    fn from(node: Node) -> Self {
        Self { node, kind: PhantomData }
    }
}

impl<'de, T> Deserialize<'de> for Unchecked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Node::deserialize(deserializer).map(Self::from)
    }
}

impl<T: Field> JsonSchema for Unchecked<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        std::any::type_name::<T>().into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }

    fn inline_schema() -> bool {
        true
    }
}

// === impl Pairs ===

impl<'de, K, V> Deserialize<'de> for Pairs<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyPairs<K, V>(PhantomData<(K, V)>);

        impl<'de, K, V> Visitor<'de> for AnyPairs<K, V> {
            type Value = Pairs<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Vec<(Unchecked<K>, Unchecked<V>)> = Vec::new();
                while let Some((key, value)) = entries.next_entry::<Unchecked<K>, Unchecked<V>>()? {
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(AnyPairs(PhantomData))
    }
}

impl<K: Field, V: Field> JsonSchema for Pairs<K, V> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Pairs_{}", std::any::type_name::<(K, V)>()).into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"type": "object", "additionalProperties": V::schema()})
    }

    fn inline_schema() -> bool {
        true
    }
}

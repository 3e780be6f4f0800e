//! YAML as a tree of nodes that know where they stand.

use std::collections::HashSet;
use std::fmt;

use saphyr_parser::{Event, Marker, Parser, Span, StrInput};

use super::{LONGEST, Problems, shown};

/// Deeper nesting than anything of ours has.
const DEEPEST: usize = 16;

/// More values than a directory of [`LONGEST`] bytes has, if it says anything.
const MOST_NODES: usize = 1_000_000;

/// A line and a column, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What YAML has.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Everything that is written as one word or text.
    Scalar(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys, where they stand, and their values. No key comes twice.
    Mapping(Vec<(String, Place, Node)>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl From<&Marker> for Place {
    fn from(marker: &Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// The tree, unless the text can't be read at all, and what is wrong with it.
pub(super) fn read(text: &str) -> (Option<Node>, Problems) {
    let mut problems = Problems::default();
    if text.len() > LONGEST {
        problems.add(Place { line: 1, column: 1 }, format!("longer than {LONGEST} bytes"));
        return (None, problems);
    }
    let mut reader = Reader { parser: Parser::new_from_str(text), problems, nodes: 0 };
    let root = reader.document();
    (root, reader.problems)
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    problems: Problems,
    nodes: usize,
}

impl<'a> Reader<'a> {
    /// The one document of the text; an empty text is an empty mapping.
    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_none() => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, 0)?);
                }
                Event::StreamEnd => {
                    return Some(
                        root.unwrap_or(Node { place: Place { line: 1, column: 1 }, value: Value::Mapping(Vec::new()) }),
                    );
                }
                Event::DocumentStart(_)
                | Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => return self.fail(span, "a second document; only one is read"),
            }
        }
    }

    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        match self.parser.next() {
            Some(Ok(event)) => Some(event),
            Some(Err(error)) => {
                self.problems.add(Place::from(error.marker()), format!("not YAML: {}", error.info()));
                None
            }
            None => None,
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Option<Node> {
        if depth > DEEPEST {
            return self.fail(span, "nested too deeply");
        }
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return self.fail(span, &format!("more than {MOST_NODES} values"));
        }
        let value = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == saphyr_parser::ScalarStyle::Plain;
                if plain && ["", "~", "null", "Null", "NULL"].contains(&&*text) {
                    Value::Null
                } else {
                    Value::Scalar(text.into_owned())
                }
            }
            Event::SequenceStart(..) => self.sequence(depth)?,
            Event::MappingStart(..) => self.mapping(depth)?,
            Event::Alias(_) => return self.fail(span, "aliases (`*name`) are not read; write the value out"),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return self.fail(span, "a value is missing"),
        };
        Some(Node { place: Place::from(&span.start), value })
    }

    fn sequence(&mut self, depth: usize) -> Option<Value> {
        let mut nodes = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Some(Value::Sequence(nodes));
            }
            nodes.push(self.node(event, span, depth + 1)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Option<Value> {
        let (mut entries, mut seen) = (Vec::new(), HashSet::new());
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Some(Value::Mapping(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::Alias(_)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..) => return self.fail(span, "a key must be one word"),
            };
            let (event, value_span) = self.next()?;
            let value = self.node(event, value_span, depth + 1)?;
            let place = Place::from(&span.start);
            if seen.insert(key.clone()) {
                entries.push((key, place, value));
            } else {
                self.problems.add(place, format!("`{}` is given twice", shown(&key)));
            }
        }
    }

    fn fail<T>(&mut self, span: Span, text: &str) -> Option<T> {
        self.problems.add(Place::from(&span.start), text);
        None
    }
}

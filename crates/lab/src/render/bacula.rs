//! Writes Bacula's configuration language.
//!
//! Two traps shape this writer. A value that names another resource ends only at the end of its
//! line, so every directive and every brace gets a line of its own. And `@` outside quotes includes
//! a file, which is how passwords stay out of the text: [`Value::Secret`].

use std::fmt::Write as _;

/// A resource such as `Job { … }`, or a block inside one.
#[derive(Clone, Debug)]
pub(super) struct Block {
    kind: &'static str,
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
enum Line {
    Set(&'static str, Value),
    Block(Block),
}

/// What a directive is set to.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Any text; quoted.
    Text(String),
    /// A word or number of Bacula's own; not quoted.
    Word(String),
    /// Several names; each quoted.
    List(Vec<String>),
    /// The content of a file, read by the daemon itself.
    Secret(String),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Word(number.to_string())
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Word(if yes { "yes" } else { "no" }.into())
    }
}

/// A word of Bacula's own.
pub(super) fn word(text: &str) -> Value {
    Value::Word(text.into())
}

/// A number of days.
pub(super) fn days(number: u32) -> Value {
    Value::Word(format!("{number} days"))
}

impl Block {
    /// An empty resource.
    pub(super) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            lines: Vec::new(),
        }
    }

    /// Adds a directive.
    pub(super) fn set(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.lines.push(Line::Set(key, value.into()));
        self
    }

    /// Adds a block inside.
    pub(super) fn with(mut self, block: Block) -> Self {
        self.lines.push(Line::Block(block));
        self
    }

    /// No connection without TLS, keyed by the password that both ends share.
    pub(super) fn tls(self) -> Self {
        self.set("TLS PSK Enable", true).set("TLS Require", true)
    }

    fn write(&self, depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{pad}{} {{", self.kind);
        for line in &self.lines {
            match line {
                Line::Set(key, value) => {
                    let _ = writeln!(out, "{pad}  {key} = {}", value.text());
                }
                Line::Block(block) => block.write(depth + 1, out),
            }
        }
        let _ = writeln!(out, "{pad}}}");
    }
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => quote(text),
            Self::Word(word) => word.clone(),
            Self::List(items) => items
                .iter()
                .map(|i| quote(i))
                .collect::<Vec<_>>()
                .join(", "),
            Self::Secret(path) => format!("@{path}"),
        }
    }
}

/// Text in quotes. A line break would end the directive; the model has refused it long before.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The text of a file.
pub(super) fn file(blocks: &[Block]) -> String {
    let mut out = String::from(super::HEADER);
    for block in blocks {
        out.push('\n');
        block.write(0, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_quotes() {
        let block = Block::new("Job").set("Name", "a\"\\\n}b");
        assert!(file(&[block]).ends_with("Job {\n  Name = \"a\\\"\\\\ }b\"\n}\n"));
    }

    #[test]
    fn every_brace_stands_alone() {
        let options = Block::new("Options").set("Signature", word("SHA256"));
        let set = Block::new("FileSet").with(Block::new("Include").with(options));
        let text = file(&[set]);
        assert!(
            text.ends_with(
                "FileSet {\n  Include {\n    Options {\n      Signature = SHA256\n    }\n  }\n}\n"
            ),
            "{text}"
        );
    }
}

//! Turning one change of one element into a range of bytes and its replacement.

use std::ops::Range;

use roxmltree::{Attribute, Node};

use super::{XmlError, escape, missing, text};

/// One replacement.
#[derive(Debug)]
pub(super) struct Edit {
    /// Bytes to replace; empty to insert.
    pub(super) range: Range<usize>,
    /// What comes there.
    pub(super) new: String,
}

/// Looks at the text around the nodes of a parsed document.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl<'a> Text<'a> {
    /// Bytes of an element.
    pub(super) fn source(&self, node: Node) -> &'a str {
        self.0.get(node.range()).unwrap_or_default()
    }

    /// Where an element's start tag ends, and whether that is its end, too.
    pub(super) fn start_tag(&self, node: Node) -> (usize, bool) {
        let bytes = self.source(node).as_bytes();
        let mut quote = None;
        for (i, &byte) in bytes.iter().enumerate() {
            match quote {
                Some(q) if q == byte => quote = None,
                Some(_) => {}
                None if byte == b'"' || byte == b'\'' => quote = Some(byte),
                None if byte == b'>' => {
                    let empty = i > 0 && bytes.get(i - 1) == Some(&b'/');
                    return (node.range().start + i + 1, empty);
                }
                None => {}
            }
        }
        (node.range().end, true)
    }

    /// Name of an element as it is written.
    pub(super) fn tag(&self, node: Node) -> &'a str {
        let source = self.source(node).trim_start_matches('<');
        source
            .split(|c: char| c.is_whitespace() || c == '/' || c == '>')
            .next()
            .unwrap_or_default()
    }

    /// Where an element's end tag begins.
    pub(super) fn end_tag(&self, node: Node) -> usize {
        let range = node.range();
        self.source(node)
            .rfind("</")
            .map_or(range.end, |at| range.start + at)
    }

    /// Replaces all that is inside an element by text.
    pub(super) fn text_edit(&self, node: Node, value: &str) -> Result<Option<Edit>, XmlError> {
        if text(node) == value && !node.children().any(|n| n.is_element()) {
            return Ok(None);
        }
        let new = escape(value)?;
        let (start, empty) = self.start_tag(node);
        Ok(Some(if empty {
            Edit {
                range: start - 2..start,
                new: format!(">{new}</{}>", self.tag(node)),
            }
        } else {
            Edit {
                range: start..self.end_tag(node),
                new,
            }
        }))
    }

    /// Sets an attribute, adding it if it is not there.
    pub(super) fn attr_edit(
        &self,
        node: Node,
        key: &str,
        value: &str,
    ) -> Result<Option<Edit>, XmlError> {
        let Some(old) = node.attribute_node(key) else {
            let at = node.range().start + 1 + self.tag(node).len();
            let new = format!(" {key}='{}'", escape(value)?);
            return Ok(Some(Edit { range: at..at, new }));
        };
        if old.value() == value {
            return Ok(None);
        }
        let range = self
            .value_range(&old)
            .ok_or_else(|| missing(format!("value of {key}")))?;
        Ok(Some(Edit {
            range,
            new: escape(value)?,
        }))
    }

    /// The bytes between an attribute's quotes. The parser's own answer is wrong for very long
    /// names and for very many spaces around the equal sign.
    pub(super) fn value_range(&self, attr: &Attribute) -> Option<Range<usize>> {
        let range = attr.range();
        let quote = self.0.get(range.clone())?.find(['"', '\''])?;
        Some(range.start + quote + 1..range.end.checked_sub(1)?)
    }

    /// Adds a child after the last one, indented like it.
    pub(super) fn child_edit(&self, node: Node, new: &str) -> Edit {
        let (start, empty) = self.start_tag(node);
        if empty {
            let new = format!(">{new}</{}>", self.tag(node));
            return Edit {
                range: start - 2..start,
                new,
            };
        }
        match node.last_element_child() {
            Some(last) => {
                let end = last.range().end;
                Edit {
                    range: end..end,
                    new: format!("{}{new}", self.indent(last)),
                }
            }
            None => {
                let end = self.end_tag(node);
                Edit {
                    range: end..end,
                    new: new.into(),
                }
            }
        }
    }

    pub(super) fn removal(&self, node: Node) -> Edit {
        Edit {
            range: self.with_space_before(node.range()),
            new: String::new(),
        }
    }

    /// White space right before an element.
    pub(super) fn indent(&self, node: Node) -> &'a str {
        let start = node.range().start;
        self.0
            .get(self.with_space_before(start..start))
            .unwrap_or_default()
    }

    pub(super) fn with_space_before(&self, range: Range<usize>) -> Range<usize> {
        let before = self.0.get(..range.start).unwrap_or_default();
        let blank = |c| matches!(c, ' ' | '\t' | '\r' | '\n');
        before.trim_end_matches(blank).len()..range.end
    }
}

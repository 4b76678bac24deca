//! XML of domains, checkpoints and backups.
//!
//! Domain XML is untrusted: it may come out of a backup volume. It is parsed with limits and
//! without DTD, so that no entity expands. [`DomainView`] reads it, [`Edits`] changes single bytes
//! ranges of it and leaves every other byte alone, [`backup_xml`] and [`checkpoint_xml`] write the
//! XML of a backup job.

use roxmltree::{Document, Node, ParsingOptions};

mod build;
mod diff;
mod disk;
mod edit;
mod job;
mod splice;
mod view;

pub use build::{
    BackupDisk, BackupRead, CheckpointDisk, backup_xml, checkpoint_again_xml, checkpoint_xml,
};
pub use diff::{Difference, differences};
pub use disk::{Backing, Disk, DiskSource, SecretRef};
pub use edit::Edits;
pub use job::{BackupView, BackupViewDisk, CheckpointView, CheckpointViewDisk};
pub use view::{DomainView, Interface, Loader, Nvram, Tpm, TpmSource};

/// Largest XML that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// Most nodes that are read.
pub const MAX_NODES: u32 = 200_000;
/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 64;

/// Why XML is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XmlError {
    /// Longer than [`MAX_BYTES`].
    #[error("the XML has {len} bytes, more than 4 MiB")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Not well-formed, with a DTD, or with more than [`MAX_NODES`] nodes.
    #[error("the XML does not parse")]
    Parse(#[from] roxmltree::Error),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the XML is nested deeper than {MAX_DEPTH} elements")]
    TooDeep,
    /// The root element is another one.
    #[error("the XML begins with <{found}>, not <{due}>")]
    Root {
        /// What was found.
        found: String,
        /// What was due.
        due: &'static str,
    },
    /// Something that must be there is not.
    #[error("the XML has no {what}")]
    Missing {
        /// What is missing.
        what: String,
    },
    /// A value that XML cannot carry.
    #[error("{value:?} cannot be written into XML")]
    BadValue {
        /// The value, shortened.
        value: String,
    },
    /// Laid out for a comparison it takes too much memory.
    #[error("the XML is too large to compare")]
    TooMuch,
    /// Two edits touch the same bytes.
    #[error("two edits of the XML overlap at byte {at}")]
    Overlap {
        /// Where.
        at: usize,
    },
}

/// Parses within the limits and checks the root element.
pub(crate) fn parse<'a>(xml: &'a str, root: &'static str) -> Result<Document<'a>, XmlError> {
    if xml.len() > MAX_BYTES {
        return Err(XmlError::TooLong { len: xml.len() });
    }
    let options = ParsingOptions {
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let doc = Document::parse_with_options(xml, options)?;
    // The element itself and the document are counted, too.
    let too_deep = |n: Node| n.is_element() && n.ancestors().nth(MAX_DEPTH + 1).is_some();
    if doc.descendants().any(too_deep) {
        return Err(XmlError::TooDeep);
    }
    let found = doc.root_element().tag_name().name();
    if found != root {
        return Err(XmlError::Root {
            found: found.chars().take(80).collect(),
            due: root,
        });
    }
    Ok(doc)
}

/// The first child element of a name, in no namespace.
pub(crate) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// Child elements of a name, in no namespace.
pub(crate) fn children<'a, 'i, 'n>(
    node: Node<'a, 'i>,
    name: &'n str,
) -> impl Iterator<Item = Node<'a, 'i>> + use<'a, 'i, 'n> {
    node.children()
        .filter(move |n| n.tag_name().namespace().is_none() && n.has_tag_name(name))
}

/// Follows child elements by name.
pub(crate) fn descend<'a, 'i>(node: Node<'a, 'i>, path: &[&str]) -> Option<Node<'a, 'i>> {
    path.iter().try_fold(node, |node, name| child(node, name))
}

/// An attribute as owned text.
pub(crate) fn attr(node: Node, name: &str) -> Option<String> {
    node.attribute(name).map(str::to_owned)
}

/// All text directly inside an element: comments may split it.
pub(crate) fn text(node: Node) -> String {
    node.children()
        .filter(Node::is_text)
        .filter_map(|n| n.text())
        .collect()
}

/// Text for use between tags or inside quotes of either kind.
pub(crate) fn escape(value: &str) -> Result<String, XmlError> {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // As themselves they would be read back as spaces.
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return Err(bad_value(value)),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// A path as text.
pub(crate) fn path_text(path: &std::path::Path) -> Result<&str, XmlError> {
    path.to_str()
        .ok_or_else(|| bad_value(&path.to_string_lossy()))
}

fn bad_value(value: &str) -> XmlError {
    XmlError::BadValue {
        value: value.chars().take(80).collect(),
    }
}

pub(crate) fn missing(what: impl Into<String>) -> XmlError {
    XmlError::Missing { what: what.into() }
}

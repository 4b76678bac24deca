//! What two definitions of a domain say differently.
//!
//! Order and spelling do not count: each definition becomes a set of facts, one for every attribute
//! and text, under a path whose elements are named by what is stable about them, such as the target
//! of a disk. Facts that only one of the two has, or that differ, are the differences.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use roxmltree::Node;

use super::{XmlError, child, parse, text};

/// Longest part of a path and longest value that is shown, in characters.
const SHOWN: usize = 80;
/// Most bytes of paths and values of one definition.
const MAX_FACTS: usize = 32 << 20;

/// A fact that two definitions do not share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, such as `devices/disk[vda]/source@file`.
    pub path: String,
    /// What the first definition says; none if it says nothing.
    pub before: Option<String>,
    /// What the second says.
    pub after: Option<String>,
}

impl fmt::Display for Difference {
    /// On one line; what may be secret is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &String| {
            if is_secret(&self.path) {
                "(not shown)".to_owned()
            } else {
                format!("{:?}", shorten(value))
            }
        };
        write!(f, "{}: ", self.path)?;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{} became {}", show(before), show(after)),
            (Some(before), None) => write!(f, "{} is gone", show(before)),
            (None, Some(after)) => write!(f, "{} is new", show(after)),
            (None, None) => write!(f, "nothing"),
        }
    }
}

/// Every difference between two definitions, sorted by path.
pub fn differences(before: &str, after: &str) -> Result<Vec<Difference>, XmlError> {
    let (mut old, new) = (facts(before)?, facts(after)?);
    let mut found = Vec::new();
    for (path, value) in new {
        let was = old.remove(&path);
        if was.as_ref() != Some(&value) {
            found.push(Difference {
                path,
                before: was,
                after: Some(value),
            });
        }
    }
    found.extend(old.into_iter().map(|(path, value)| Difference {
        path,
        before: Some(value),
        after: None,
    }));
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Passwords, keys, and what people put where we cannot tell.
fn is_secret(path: &str) -> bool {
    [
        "passw",
        "cookie",
        "commandline",
        "sysinfo",
        "metadata",
        "launchSecurity",
        "key",
    ]
    .iter()
    .any(|word| {
        path.to_ascii_lowercase()
            .contains(&word.to_ascii_lowercase())
    })
}

type Facts = BTreeMap<String, String>;

fn facts(xml: &str) -> Result<Facts, XmlError> {
    let doc = parse(xml, "domain")?;
    let mut facts = Facts::new();
    let mut bytes = 0;
    // Nesting is limited by the parse, so this recursion is, too.
    collect(doc.root_element(), "", &mut facts, &mut bytes)?;
    Ok(facts)
}

fn collect(node: Node, path: &str, facts: &mut Facts, bytes: &mut usize) -> Result<(), XmlError> {
    let mut add = |path: String, value: String| {
        *bytes += path.len() + value.len();
        facts.insert(path, value);
        if *bytes > MAX_FACTS {
            return Err(XmlError::TooMuch);
        }
        Ok(())
    };
    let mut says_something = false;
    for attribute in node.attributes() {
        let name = named(attribute.namespace(), attribute.name());
        add(format!("{path}@{name}"), attribute.value().to_owned())?;
        says_something = true;
    }
    let content = text(node);
    let elements = || node.children().filter(Node::is_element);
    says_something |= elements().next().is_some();
    if !content.trim().is_empty() {
        add(path.to_owned(), content.trim().to_owned())?;
    } else if !says_something {
        // Such as `<readonly/>`: that it is there is the fact.
        add(path.to_owned(), String::new())?;
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    for element in elements() {
        let mut part = part_of(element);
        let count = seen.entry(part.clone()).or_default();
        *count += 1;
        if *count > 1 {
            part = format!("{part}#{count}");
        }
        let below = if path.is_empty() {
            part
        } else {
            format!("{path}/{part}")
        };
        collect(element, &below, facts, bytes)?;
    }
    Ok(())
}

/// An element's name, with what tells it from others of that name.
fn part_of(element: Node) -> String {
    let tag = element.tag_name();
    let name = named(tag.namespace(), tag.name());
    let of_target = |key| child(element, "target").and_then(|target| target.attribute(key));
    let key = match tag.name() {
        _ if tag.namespace().is_some() => None,
        "disk" => of_target("dev").map(str::to_owned),
        "channel" => of_target("name").map(str::to_owned),
        "controller" => {
            let get = |key| element.attribute(key).unwrap_or_default();
            Some(format!("{} {}", get("type"), get("index")))
        }
        _ => None,
    };
    match key {
        Some(key) => format!("{name}[{}]", shorten(&key)),
        None => name,
    }
}

fn named(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{{{}}}{}", shorten(namespace), shorten(name)),
        None => shorten(name),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = include_str!("../../tests/domains/live.xml");
    const EVERYTHING: &str = include_str!("../../tests/domains/everything.xml");

    fn said(before: &str, after: &str) -> Vec<String> {
        let found = differences(before, after).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn order_quotes_and_comments_do_not_count() {
        for xml in [LIVE, EVERYTHING] {
            assert_eq!(said(xml, xml), [""; 0]);
        }
        let one = "<domain type='kvm' id='1'><name>a</name><uuid>b</uuid></domain>";
        let two =
            "<domain id=\"1\" type=\"kvm\">\n <uuid>b</uuid><!-- x -->\n<name> a\n</name></domain>";
        assert_eq!(said(one, two), [""; 0]);
    }

    #[test]
    fn every_change_is_one_line_with_its_place() {
        let two = EVERYTHING
            .replace("52:54:00:aa:bb:02", "52:54:00:aa:bb:03")
            .replace("<transient/>", "")
            .replace(
                "dev='vdb' bus='virtio'/>",
                "dev='vdb' bus='virtio'/><readonly/>",
            )
            .replace("web.qcow2", "other.qcow2");
        assert_eq!(
            said(EVERYTHING, &two),
            [
                "devices/disk[vdb]/readonly: \"\" is new",
                "devices/disk[vdc]/source@volume: \"web.qcow2\" became \"other.qcow2\"",
                "devices/disk[vdd]/transient: \"\" is gone",
                "devices/interface#2/mac@address: \"52:54:00:aa:bb:02\" became \"52:54:00:aa:bb:03\"",
            ]
        );
    }

    #[test]
    fn a_device_that_is_gone_does_not_move_the_others() {
        let start = EVERYTHING.find("<disk type='volume'").unwrap();
        let end = start + EVERYTHING[start..].find("</disk>").unwrap() + "</disk>".len();
        let two = [&EVERYTHING[..start], &EVERYTHING[end..]].concat();
        let lines = said(EVERYTHING, &two);
        assert!(!lines.is_empty());
        assert!(
            lines
                .iter()
                .all(|line| line.starts_with("devices/disk[vdc]") && line.ends_with("is gone"))
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let one = "<domain><devices><graphics type='vnc' passwd='geheim'/></devices></domain>";
        let two = one.replace("geheim", "secret");
        let lines = said(one, &two);
        assert_eq!(
            lines,
            ["devices/graphics@passwd: (not shown) became (not shown)"]
        );
    }

    #[test]
    fn a_definition_made_to_fill_the_memory_is_refused() {
        let deep = "a".repeat(1 << 20);
        let xml = format!(
            "<domain><{deep}>{}</{deep}></domain>",
            "<b c=''/>".repeat(100)
        );
        assert!(differences(&xml, &xml).is_ok());
        let name = "d".repeat(80);
        let xml = format!(
            "<domain>{}{}{}</domain>",
            format!("<{name}>").repeat(50),
            "<b/>".repeat(50_000),
            format!("</{name}>").repeat(50)
        );
        assert_eq!(differences(&xml, &xml), Err(XmlError::TooMuch));
    }
}

//! Restore options inside Bacula's `where`.
//!
//! Bacula offers a restore exactly one free text: `where`. Empty or `/` means the original place,
//! an absolute directory means plain files there, and `#` followed by base64 of a JSON object
//! means [`Options`]. Unknown keys are refused: an option that is not understood must not be
//! silently ignored when it may decide what is overwritten.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// Longest `where` that is read, in bytes.
pub const MAX_LEN: usize = 16 << 10;

/// Format of a restored image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Bytes as the guest saw them.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// What the network cards of a restored VM are plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// As in the original.
    Same,
    /// As in the original, link down.
    Isolated,
}

/// How a VM is to be rebuilt. Everything but the version may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Version of this encoding: 1.
    pub v: u32,
    /// New libvirt domain name; absent keeps the original identity.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// New UUID; absent with a new name means a random one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uuid: Option<String>,
    /// New MAC addresses by old address; absent with a new name means random ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub mac: BTreeMap<String, String>,
    /// Directory for the images; absent means that of the originals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dir: Option<PathBuf>,
    /// Format of the images; absent means that of the originals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub format: Option<Format>,
    /// Targets (`vda`, …) to restore; absent means all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disks: Option<Vec<String>>,
    /// Network cards; absent means `same` for the original identity and `isolated` for a new name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<Network>,
    /// Start the VM when it is back?
    #[serde(default)]
    pub start: bool,
}

/// What a `where` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The VM as it was, where it was.
    Original,
    /// Plain files in a directory.
    Directory(PathBuf),
    /// The VM, with options.
    Rebuild(Options),
}

/// Why a `where` is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Longer than [`MAX_LEN`].
    #[error("where is longer than 16 KiB")]
    TooLong,
    /// Neither empty, nor an absolute clean path, nor options.
    #[error("where {0:?} is neither empty, nor an absolute path without '..', nor # and options")]
    NotUnderstood(String),
    /// The text after `#` is not base64.
    #[error("the options in where are not base64")]
    NotBase64(#[source] base64::DecodeError),
    /// The JSON is not one that this version knows.
    #[error("the options in where are not understood")]
    NotOptions(#[source] serde_json::Error),
    /// The options are of another version.
    #[error("the options in where have version {0}, this program knows 1")]
    Version(u32),
}

impl Target {
    /// Reads a `where`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_LEN {
            return Err(Error::TooLong);
        }
        if text.is_empty() || text == "/" {
            return Ok(Self::Original);
        }
        if let Some(code) = text.strip_prefix('#') {
            return decode(code).map(Self::Rebuild);
        }
        clean_absolute(text)
            .map(Self::Directory)
            .ok_or_else(|| Error::NotUnderstood(text.chars().take(120).collect()))
    }
}

/// Writes options as a `where`.
pub fn encode(options: &Options) -> String {
    let json = serde_json::to_vec(options).expect("options are plain data and always serialise");
    format!("#{}", URL_SAFE_NO_PAD.encode(json))
}

fn decode(code: &str) -> Result<Options, Error> {
    // A web form may use the other alphabet or padding; both say the same.
    let json = URL_SAFE_NO_PAD
        .decode(code)
        .or_else(|_| STANDARD.decode(code))
        .map_err(Error::NotBase64)?;
    let options: Options = serde_json::from_slice(&json).map_err(Error::NotOptions)?;
    if options.v != 1 {
        return Err(Error::Version(options.v));
    }
    Ok(options)
}

/// An absolute path without `..` and control characters, or nothing.
fn clean_absolute(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let clean = path.is_absolute()
        && !text.chars().any(char::is_control)
        && path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    clean.then(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_of_where() {
        assert_eq!(Target::parse("").unwrap(), Target::Original);
        assert_eq!(Target::parse("/").unwrap(), Target::Original);
        assert_eq!(
            Target::parse("/a/b").unwrap(),
            Target::Directory("/a/b".into())
        );
        let options = Options {
            v: 1,
            name: Some("web02".into()),
            ..Options::default()
        };
        assert_eq!(
            Target::parse(&encode(&options)).unwrap(),
            Target::Rebuild(options)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let with = |json: &str| format!("#{}", STANDARD.encode(json));
        for text in ["a", "../a", "/a/../b", "/a\n", "#", "#!!", "C:/x"] {
            assert!(Target::parse(text).is_err(), "{text:?}");
        }
        for json in ["{}", r#"{"v":2}"#, r#"{"v":1,"nmae":"x"}"#, "[]", "null"] {
            assert!(Target::parse(&with(json)).is_err(), "{json}");
        }
        assert!(Target::parse(&"/a".repeat(MAX_LEN)).is_err());
    }

    #[test]
    fn shell_characters_are_plain_data() {
        let text = "/srv/$(id);`x`|y";
        assert_eq!(Target::parse(text).unwrap(), Target::Directory(text.into()));
    }
}

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
    /// Read everything and prove it, and write nothing? Then only `disks` may stand beside it.
    #[serde(skip_serializing_if = "is_false", default)]
    pub verify: bool,
}

fn is_false(value: &bool) -> bool {
    !value
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
    /// Nothing but the proof.
    Proof {
        /// Targets to prove; `None` means all, and the files beside them.
        disks: Option<Vec<String>>,
    },
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
    /// Something is to be written and nothing is.
    #[error(
        "the options in where ask for verify, which writes nothing, and for {0}; leave one out"
    )]
    VerifyAnd(&'static str),
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
            return decode(code)?.target();
        }
        clean_absolute(text)
            .map(Self::Directory)
            .ok_or_else(|| Error::NotUnderstood(text.chars().take(120).collect()))
    }
}

impl Options {
    /// What they ask for.
    fn target(self) -> Result<Target, Error> {
        if !self.verify {
            return Ok(Target::Rebuild(self));
        }
        // Taken apart, so that an option to come is not forgotten here.
        let Self {
            v: _,
            name,
            uuid,
            mac,
            dir,
            format,
            disks,
            network,
            start,
            verify: _,
        } = self;
        let others = [
            ("name", name.is_some()),
            ("uuid", uuid.is_some()),
            ("mac", !mac.is_empty()),
            ("dir", dir.is_some()),
            ("format", format.is_some()),
            ("network", network.is_some()),
            ("start", start),
        ];
        match others.into_iter().find(|(_, asked)| *asked) {
            Some((other, _)) => Err(Error::VerifyAnd(other)),
            None => Ok(Target::Proof { disks }),
        }
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
    fn verify_stands_alone_or_beside_disks() {
        let target = |json: &str| Target::parse(&format!("#{}", STANDARD.encode(json)));
        let text = r#"{"v":1,"verify":true"#;
        assert_eq!(
            target(&format!("{text}}}")).unwrap(),
            Target::Proof { disks: None }
        );
        let disks = Some(vec!["vda".to_owned()]);
        assert_eq!(
            target(&format!(r#"{text},"disks":["vda"]}}"#)).unwrap(),
            Target::Proof {
                disks: disks.clone()
            }
        );
        let options = Options {
            v: 1,
            disks: disks.clone(),
            verify: true,
            ..Options::default()
        };
        assert_eq!(
            Target::parse(&encode(&options)).unwrap(),
            Target::Proof { disks }
        );
        for (other, value) in [
            ("name", r#""x""#),
            ("uuid", r#""x""#),
            ("mac", r#"{"a":"b"}"#),
            ("dir", r#""/x""#),
            ("format", r#""raw""#),
            ("network", r#""same""#),
            ("start", "true"),
        ] {
            let error = target(&format!(r#"{text},"{other}":{value}}}"#)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(other) && !error.contains('\n'), "{error}");
        }
        assert!(matches!(
            target(r#"{"v":1,"verify":false}"#).unwrap(),
            Target::Rebuild(_)
        ));
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

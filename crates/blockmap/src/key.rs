//! The key of a VM's maps, and the root that it leads to.

use std::fmt;
use std::str::FromStr;

use highway::{HighwayHash, HighwayHasher};

use crate::Error;

/// The 256-bit key under which the disks of one VM are fingerprinted.
///
/// Without it nobody can craft two blocks of equal fingerprint; with it, anybody can prove an image.
/// It is therefore stored beside the maps, readable by root only, and in the manifest of each job,
/// and never printed: [`fmt::Debug`] shows the id.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Draws a key from the system's random source.
    pub fn random() -> Result<Self, Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(Error::Random)?;
        Ok(Self(bytes))
    }

    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 hexadecimal digits that [`Key::from_str`] reads.
    pub fn to_hex(&self) -> String {
        Hex(&self.0).to_string()
    }

    /// A name for the key that says nothing about it.
    pub fn id(&self) -> KeyId {
        let digest = digest(self.lanes(), b"lab-backup map 1: key id");
        let [a, b, c, d, e, f, g, h, ..] = digest;
        KeyId(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The key as HighwayHash takes it: four little-endian words.
    pub(crate) fn lanes(&self) -> highway::Key {
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(self.0.chunks_exact(8)) {
            *lane = bytes.try_into().map_or(0, u64::from_le_bytes);
        }
        highway::Key(lanes)
    }

    /// The key for one purpose, named by `label`.
    ///
    /// Separate keys keep a page from ever passing for a node, or a node of one level for another.
    pub(crate) fn derive(&self, label: &str) -> highway::Key {
        Key(digest(self.lanes(), label.as_bytes())).lanes()
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(hex: &str) -> Result<Self, Error> {
        from_hex(hex).map(Self).ok_or(Error::BadHex { what: "key" })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

/// Short name of a [`Key`]: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(pub(crate) u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a disk's size and content come down to under one key.
///
/// Equal disks have equal roots, whatever jobs, maps or writes led there; shown and read as 64
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub(crate) [u8; 32]);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({self})")
    }
}

impl FromStr for Root {
    type Err = Error;

    fn from_str(hex: &str) -> Result<Self, Error> {
        from_hex(hex)
            .map(Self)
            .ok_or(Error::BadHex { what: "root" })
    }
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(bytes)
}

/// HighwayHash-256 as bytes: four little-endian words.
pub(crate) fn digest(key: highway::Key, data: &[u8]) -> [u8; 32] {
    let words = HighwayHasher::new(key).hash256(data);
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_reads_what_it_wrote_and_nothing_else() {
        let key = Key::random().unwrap();
        let hex = key.to_hex();
        assert_eq!(hex.parse::<Key>().unwrap(), key);
        assert_eq!(hex.to_uppercase().parse::<Key>().unwrap(), key);
        for bad in [
            "",
            "0",
            &hex[1..],
            &format!("{hex}0"),
            &hex.replace(&hex[..1], "g"),
        ] {
            assert!(matches!(
                bad.parse::<Key>(),
                Err(Error::BadHex { what: "key" })
            ));
            assert!(bad.parse::<Root>().is_err());
        }
        // 64 bytes, but not 64 digits.
        assert!("é".repeat(32).parse::<Key>().is_err());
        assert!("+1".repeat(32).parse::<Key>().is_err());
        let root = Root([0xa5; 32]);
        assert_eq!(root.to_string().parse::<Root>().unwrap(), root);
    }

    #[test]
    fn two_keys_differ_and_debug_hides_them() {
        let (a, b) = (Key::random().unwrap(), Key::random().unwrap());
        assert_ne!(a, b);
        assert_ne!(a.id(), b.id());
        assert!(!format!("{a:?}").contains(&a.to_hex()[..16]));
    }
}

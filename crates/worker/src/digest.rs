//! SHA-256 of small files: the manifest records it, a restore checks it.

use std::fmt::Write;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Of bytes, hexadecimal.
pub(crate) fn of(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// Of all that can be read, hexadecimal, and how many bytes that were. Stops after `most` bytes: what
/// is longer is not what was looked for.
pub(crate) fn of_reader(from: impl Read, most: u64) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut from = from.take(most);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok((hex(hash.finalize().as_slice()), total)),
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(buffer.get(..len).unwrap_or_default());
        total += len as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing into a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_that_sha256sum_prints() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(b"abc"), abc);
        assert_eq!(of_reader(&b"abc"[..], 9).unwrap(), (abc.into(), 3));
        assert_eq!(of_reader(&b"abcdef"[..], 3).unwrap(), (abc.into(), 3));
    }
}

//! The small files of a restore are what the backup recorded, or nothing is put in place.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::backup::{MAX_BOOT, MAX_NVRAM};
use crate::digest;
use crate::manifest::Manifest;
use crate::session::Line;

/// Most bytes of small files (XML, NVRAM, TPM, kernel) that one restore may bring. They are in memory.
pub(super) const MAX_SMALL: u64 = 2 * MAX_BOOT + MAX_NVRAM + MAX_OTHER;
/// Most small files that one restore may bring.
pub(super) const MAX_FILES: usize = 64;
/// Small files by name.
pub(super) type Small<'a> = BTreeMap<&'a str, &'a [u8]>;
/// Most bytes of a small file that is neither NVRAM nor booted.
const MAX_OTHER: u64 = 16 << 20;

/// Most bytes that a file of this name may have.
pub(super) fn limit(name: &str) -> u64 {
    match name {
        "kernel" | "initrd" => MAX_BOOT,
        "nvram.fd" => MAX_NVRAM,
        _ => MAX_OTHER,
    }
}

/// The files that are proven, by name. A file that the newest job did not record is of another
/// instant and left out.
pub(super) fn prove<'a>(
    line: &Line,
    vm: &str,
    manifest: Option<&Manifest>,
    files: &'a BTreeMap<String, Vec<u8>>,
) -> Result<Small<'a>> {
    let all = files
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_slice()));
    let Some(manifest) = manifest else {
        if !files.is_empty() {
            line.warn(format!(
                "{vm}: its small files are unverified: no manifest came with them"
            ));
        }
        return Ok(all.collect());
    };
    let mut proven = BTreeMap::new();
    for (name, content) in all {
        if name == "manifest.json" {
            // The one in hand came from the catalog. Whoever has only the volumes has this one.
            ensure!(
                Manifest::parse(content).is_ok_and(|found| found == *manifest),
                "{vm}/{name}: the restored file is not what was backed up: it is not the manifest that \
                 the catalog has of job {}; nothing was put in place",
                manifest.job
            );
        } else {
            let Some(record) = manifest.file(name) else {
                line.warn(format!(
                    "{vm}/{name}: left out: the newest job of this restore has no such file"
                ));
                continue;
            };
            let found = digest::of(content);
            ensure!(
                content.len() as u64 == record.size && found == record.digest,
                "{vm}/{name}: the restored file is not what was backed up: {} bytes with SHA-256 {found}, \
                 recorded {} with {}; nothing was put in place",
                content.len(),
                record.size,
                record.digest
            );
        }
        proven.insert(name, content);
    }
    Ok(proven)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;
    use crate::session::Session;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_what_the_newest_job_recorded_is_put_in_place() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let session = Session::new(ours).unwrap();
        let manifest = sample();
        let prove = |files: &[(&str, &str)]| -> Result<Vec<String>> {
            let files = files
                .iter()
                .map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()))
                .collect();
            let proven = prove(session.line(), "web01", Some(&manifest), &files)?;
            Ok(proven.into_keys().map(str::to_owned).collect())
        };
        let text = String::from_utf8(manifest.to_json()).unwrap();
        let good = [
            ("domain.xml", "abc"),
            ("manifest.json", text.as_str()),
            ("tpm/old", "x"),
        ];
        assert_eq!(prove(&good).unwrap(), ["domain.xml", "manifest.json"]);
        for bad in ["", "{}", &text.replace("web 01", "web 02")] {
            let error = prove(&[("manifest.json", bad)]).unwrap_err().to_string();
            assert!(error.contains("manifest.json"), "{error}");
        }
        for bad in ["abd", "ab", "abcd", ""] {
            let error = prove(&[("domain.xml", bad)]).unwrap_err().to_string();
            assert!(
                error.contains("domain.xml") && error.contains("nothing"),
                "{error}"
            );
        }
    }
}

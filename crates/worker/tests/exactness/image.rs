//! A disk image in the hands of QEMU's own programs.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::rng::Rng;

/// Runs a program of QEMU to its end and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {complaint}",
        args.join(" ")
    );
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("paths of this test are plain")
}

/// An image that a guest writes to, and those below it.
pub(crate) struct Image {
    dir: PathBuf,
    pub(crate) path: PathBuf,
    pub(crate) format: &'static str,
    /// Images below that were on top once, the newest last.
    below: Vec<(PathBuf, &'static str)>,
    /// Does it sit on an image that was never the disk's?
    cloned: bool,
    made: u32,
}

impl Image {
    pub(crate) fn create(rng: &mut Rng, dir: &Path, size: u64) -> Result<(Self, String)> {
        let format = if rng.one_in(6) { "raw" } else { "qcow2" };
        let mut image = Self {
            dir: dir.into(),
            path: dir.join("0"),
            format,
            below: Vec::new(),
            cloned: false,
            made: 0,
        };
        let mut options = Self::options(rng, format);
        if format == "qcow2" && rng.one_in(3) {
            let format = if rng.one_in(2) { "raw" } else { "qcow2" };
            let backing = dir.join("backing");
            let made = match rng.below(3) {
                0 => size,
                1 => (size / 2).next_multiple_of(512),
                _ => size + 65536,
            };
            run(
                "qemu-img",
                &[
                    "create",
                    "-q",
                    "-f",
                    format,
                    text(&backing),
                    &made.to_string(),
                ],
            )?;
            let script = Self::script(rng, made, 6);
            Self::write(&backing, format, &script)?;
            options = format!(
                "{options},backing_file={},backing_fmt={format}",
                text(&backing)
            );
            image.cloned = true;
        }
        let size = size.to_string();
        let mut args = vec!["create", "-q", "-f", format];
        if format == "qcow2" {
            args.extend(["-o", &options]);
        }
        args.extend([text(&image.path), &size]);
        run("qemu-img", &args)?;
        Ok((image, format!("{format} {options} {size}")))
    }

    fn options(rng: &mut Rng, format: &str) -> String {
        if format == "raw" {
            return String::new();
        }
        let cluster = *rng.pick(&[4096, 16384, 65536, 65536, 65536, 1 << 20]);
        let extended = cluster >= 16384 && rng.one_in(2);
        let lazy = rng.one_in(4);
        let on = |is: bool| if is { "on" } else { "off" };
        format!(
            "compat=1.1,cluster_size={cluster},extended_l2={},lazy_refcounts={}",
            on(extended),
            on(lazy)
        )
    }

    fn next_path(&mut self) -> PathBuf {
        self.made += 1;
        self.dir.join(self.made.to_string())
    }

    /// Commands of `qemu-io` for a disk of `size` bytes.
    pub(crate) fn script(rng: &mut Rng, size: u64, most: u64) -> Vec<String> {
        (0..rng.between(1, most))
            .map(|_| {
                let longest = *rng.pick(&[512, 4096, 16384, 65536, 131_072]);
                let unit = *rng.pick(&[512, 4096, 4096, 65536]);
                let len = rng.between(1, longest).next_multiple_of(512).min(size);
                let offset = match rng.below(6) {
                    0 => size - len,
                    _ => rng.between(0, size - len) / unit * unit,
                };
                let pattern = rng.below(256);
                match rng.below(12) {
                    0..6 => format!("write -P {pattern} {offset} {len}"),
                    6 => format!("write -P 0 {offset} {len}"),
                    7 => format!("write -z {offset} {len}"),
                    8 => format!("write -z -u {offset} {len}"),
                    9 => format!("discard {offset} {len}"),
                    10 if rng.one_in(6) => format!("discard 0 {size}"),
                    _ => format!("write -P {pattern} {offset} 512"),
                }
            })
            .collect()
    }

    fn write(path: &Path, format: &str, script: &[String]) -> Result<()> {
        let mut args = vec!["-f", format, "-d", "unmap"];
        for command in script {
            args.extend(["-c", command]);
        }
        args.push(text(path));
        let said = run("qemu-io", &args)?;
        ensure!(!said.contains("failed"), "{script:?}: {said}");
        Ok(())
    }

    /// What a guest does.
    pub(crate) fn guest(&self, script: &[String]) -> Result<()> {
        Self::write(&self.path, self.format, script)
    }

    /// What a guest does, until QEMU is killed.
    pub(crate) fn crash(&self, script: &[String]) -> Result<()> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", self.format, "-d", "unmap"]);
        for step in script.iter().map(String::as_str).chain(["sigraise 9"]) {
            command.args(["-c", step]);
        }
        let output = command.arg(&self.path).stdin(Stdio::null()).output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        let killed = output.status.signal() == Some(9);
        ensure!(killed, "qemu-io {script:?}: {}: {complaint}", output.status);
        Ok(())
    }

    /// The bytes of the disk, as QEMU converts them.
    pub(crate) fn content(&self) -> Result<Vec<u8>> {
        let flat = self.dir.join("flat");
        let args = ["convert", "-f", self.format, "-O", "raw"];
        run(
            "qemu-img",
            &[&args[..], &[text(&self.path), text(&flat)]].concat(),
        )?;
        let bytes = std::fs::read(&flat)?;
        std::fs::remove_file(&flat)?;
        Ok(bytes)
    }

    pub(crate) fn identity(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        let facts = std::fs::metadata(&self.path)?;
        let (dev, inode) = (facts.dev(), facts.ino());
        Ok(format!("file {dev}:{inode} {} vda", self.format))
    }

    /// What `qemu-img` says of it.
    pub(crate) fn info(&self) -> Result<serde_json::Value> {
        let args = ["info", "--output=json", "-f", self.format, text(&self.path)];
        Ok(serde_json::from_str(&run("qemu-img", &args)?)?)
    }

    /// Names of the bitmaps, and whether each can be used.
    pub(crate) fn bitmaps(&self) -> Result<Vec<(String, bool)>> {
        let bitmaps = &self.info()?["format-specific"]["data"]["bitmaps"];
        let bitmaps = bitmaps.as_array().into_iter().flatten().map(|bitmap| {
            let flags = bitmap["flags"].as_array();
            let has = |flag| flags.is_some_and(|flags| flags.iter().any(|f| f == flag));
            let name = bitmap["name"].as_str().unwrap_or_default();
            (name.to_owned(), has("auto") && !has("in-use"))
        });
        Ok(bitmaps.collect())
    }

    pub(crate) fn bitmap(&self, what: &str, name: &str) -> Result<()> {
        let args = ["bitmap", what, "-f", self.format, text(&self.path), name];
        run("qemu-img", &args).map(drop)
    }

    pub(crate) fn resize(&self, size: u64) -> Result<()> {
        let size = size.to_string();
        let args = [
            "resize",
            "-q",
            "--shrink",
            "-f",
            self.format,
            text(&self.path),
            &size,
        ];
        run("qemu-img", &args).map(drop)
    }

    /// Another image with the same content takes its place, alone.
    pub(crate) fn convert(&mut self, rng: &mut Rng) -> Result<()> {
        let to = self.next_path();
        let mut args = vec!["convert", "-f", self.format, "-O", self.format];
        let options = Self::options(rng, self.format);
        if self.format == "qcow2" {
            args.extend(["-o", &options]);
            if self.bitmaps()?.iter().all(|(_, usable)| *usable) && rng.one_in(2) {
                args.push("--bitmaps");
            }
        }
        args.extend([text(&self.path), text(&to)]);
        run("qemu-img", &args)?;
        std::fs::remove_file(&self.path)?;
        std::fs::rename(&to, &self.path)?;
        self.below.clear();
        self.cloned = false;
        Ok(())
    }

    /// An external snapshot: the guest goes on in a new image.
    pub(crate) fn snapshot(&mut self) -> Result<()> {
        let top = self.next_path();
        let args = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&self.path),
            "-F",
            self.format,
        ];
        run("qemu-img", &[&args[..], &[text(&top)]].concat())?;
        let path = std::mem::replace(&mut self.path, top);
        self.below
            .push((path, std::mem::replace(&mut self.format, "qcow2")));
        Ok(())
    }

    /// The newest snapshot goes into the image below, in which the guest goes on.
    pub(crate) fn commit(&mut self) -> Result<bool> {
        let args = ["commit", "-q", "-f", self.format, text(&self.path)];
        // An image below whose bitmaps are broken cannot grow, for example.
        if self.below.is_empty() || run("qemu-img", &args).is_err() {
            return Ok(false);
        }
        std::fs::remove_file(&self.path)?;
        if let Some(below) = self.below.pop() {
            (self.path, self.format) = below;
        }
        Ok(true)
    }

    /// What lies below becomes a part of it.
    pub(crate) fn rebase(&mut self) -> Result<bool> {
        if self.below.is_empty() && !self.cloned {
            return Ok(false);
        }
        run(
            "qemu-img",
            &[
                "rebase",
                "-q",
                "-f",
                self.format,
                "-b",
                "",
                text(&self.path),
            ],
        )?;
        self.below.clear();
        self.cloned = false;
        Ok(true)
    }

    /// A copy of an image on which nothing depends and that depends on nothing that changes.
    pub(crate) fn copy(&mut self) -> Result<Option<PathBuf>> {
        if !self.below.is_empty() {
            return Ok(None);
        }
        let copy = self.next_path();
        std::fs::copy(&self.path, &copy)?;
        Ok(Some(copy))
    }

    /// The content of a copy comes back into the same file.
    pub(crate) fn roll_back(&self, copy: &Path) -> Result<()> {
        std::fs::copy(copy, &self.path)?;
        Ok(())
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.below.is_empty()
    }
}

//! Changing domain XML without touching the rest of it.
//!
//! A stored definition is somebody's work: comments, order and spelling carry meaning for people
//! and tools. So nothing is parsed and written again; each edit replaces a range of bytes, and all
//! other bytes stay what they were. An edit that would write what is there already is no edit.

use std::path::Path;

use roxmltree::{Document, Node};

use super::splice::{Edit, Text};
use super::view::{console_files, is_libvirts};
use super::{XmlError, child, children, descend, escape, missing, parse, path_text};

/// Edits of one domain's XML, collected and then applied at once.
#[derive(Debug)]
pub struct Edits<'a> {
    xml: Text<'a>,
    doc: Document<'a>,
    list: Vec<Edit>,
}

impl<'a> Edits<'a> {
    /// Begins with nothing changed.
    pub fn new(xml: &'a str) -> Result<Self, XmlError> {
        let doc = parse(xml, "domain")?;
        Ok(Self {
            xml: Text(xml),
            doc,
            list: Vec::new(),
        })
    }

    /// The XML with all edits made. Refuses edits that overlap.
    pub fn apply(mut self) -> Result<String, XmlError> {
        // A stable sort keeps insertions at one place in the order in which they were asked for.
        self.list
            .sort_by_key(|edit| (edit.range.start, edit.range.end));
        let mut out = String::with_capacity(self.xml.0.len() + 256);
        let mut done = 0;
        for edit in &self.list {
            let kept = self.xml.0.get(done..edit.range.start);
            out.push_str(kept.ok_or(XmlError::Overlap {
                at: edit.range.start,
            })?);
            out.push_str(&edit.new);
            done = edit.range.end;
        }
        out.push_str(self.xml.0.get(done..).unwrap_or_default());
        // Proof that the result is still XML, whatever the input looked like.
        parse(&out, "domain")?;
        Ok(out)
    }

    /// Changes the name.
    pub fn set_name(&mut self, name: &str) -> Result<(), XmlError> {
        let node = self.at(&["name"])?;
        let edit = self.xml.text_edit(node, name)?;
        self.push(edit);
        Ok(())
    }

    /// Changes the UUID, and its copy in the system information that the guest sees, which libvirt
    /// wants to be the same.
    pub fn set_uuid(&mut self, uuid: &str) -> Result<(), XmlError> {
        let Ok(node) = self.at(&["uuid"]) else {
            let name = self.at(&["name"])?;
            let new = format!("{}<uuid>{}</uuid>", self.xml.indent(name), escape(uuid)?);
            let end = name.range().end;
            self.list.push(Edit {
                range: end..end,
                new,
            });
            return Ok(());
        };
        let mut edits = vec![self.xml.text_edit(node, uuid)?];
        if let Ok(system) = self.at(&["sysinfo", "system"]) {
            for entry in children(system, "entry").filter(|e| e.attribute("name") == Some("uuid")) {
                edits.push(self.xml.text_edit(entry, uuid)?);
            }
        }
        edits.into_iter().for_each(|edit| self.push(edit));
        Ok(())
    }

    /// Takes away the number of the running domain.
    pub fn strip_id(&mut self) {
        let id = self.doc.root_element().attribute_node("id");
        if let Some(range) = id.map(|id| self.xml.with_space_before(id.range())) {
            self.list.push(Edit {
                range,
                new: String::new(),
            });
        }
    }

    /// Changes the address of the n-th network card, counted from 0 as in
    /// [`super::DomainView::interfaces`].
    pub fn set_mac(&mut self, n: usize, mac: &str) -> Result<(), XmlError> {
        let interface = self.interface(n)?;
        let edit = match child(interface, "mac") {
            Some(node) => self.xml.attr_edit(node, "address", mac)?,
            None => {
                let new = format!("<mac address='{}'/>", escape(mac)?);
                Some(self.xml.child_edit(interface, &new))
            }
        };
        self.push(edit);
        Ok(())
    }

    /// Takes the link of the n-th network card down.
    pub fn set_link_down(&mut self, n: usize) -> Result<(), XmlError> {
        let interface = self.interface(n)?;
        let edit = match child(interface, "link") {
            Some(node) => self.xml.attr_edit(node, "state", "down")?,
            None => Some(self.xml.child_edit(interface, "<link state='down'/>")),
        };
        self.push(edit);
        Ok(())
    }

    /// Puts a disk into a file of a format. What described the old source (pool, protocol, slice,
    /// encryption, data file) goes away; a file disk that has none of that keeps all but its path.
    ///
    /// A `<backingStore>` stays: see [`Edits::strip_backing_store`].
    pub fn set_disk_file(
        &mut self,
        target: &str,
        path: &Path,
        format: &str,
    ) -> Result<(), XmlError> {
        let path = path_text(path)?;
        let disk = self.disk(target)?;
        let mut edits = Vec::new();
        match child(disk, "driver") {
            Some(driver) => edits.push(self.xml.attr_edit(driver, "type", format)?),
            None => {
                let new = format!("<driver name='qemu' type='{}'/>", escape(format)?);
                edits.push(Some(self.xml.child_edit(disk, &new)));
            }
        }
        let of_old = [
            "slices",
            "encryption",
            "dataStore",
            "auth",
            "reservations",
            "cookies",
        ];
        let source = child(disk, "source");
        let plain = source.is_some_and(|source| {
            disk.attribute("type") == Some("file")
                && source.has_attribute("file")
                && of_old.iter().all(|name| child(source, name).is_none())
        });
        match source {
            Some(source) if plain => edits.push(self.xml.attr_edit(source, "file", path)?),
            source => {
                edits.push(self.xml.attr_edit(disk, "type", "file")?);
                let new = format!("<source file='{}'/>", escape(path)?);
                edits.push(Some(match source {
                    Some(source) => Edit {
                        range: source.range(),
                        new,
                    },
                    None => self.xml.child_edit(disk, &new),
                }));
            }
        }
        // In older definitions these stand beside the source.
        for name in ["encryption", "auth"] {
            edits.extend(child(disk, name).map(|node| Some(self.xml.removal(node))));
        }
        edits.into_iter().for_each(|edit| self.push(edit));
        Ok(())
    }

    /// Forgets what is below a disk's image: a restored image stands alone.
    pub fn strip_backing_store(&mut self, target: &str) -> Result<(), XmlError> {
        let disk = self.disk(target)?;
        let edits: Vec<Edit> = children(disk, "backingStore")
            .map(|n| self.xml.removal(n))
            .collect();
        self.list.extend(edits);
        Ok(())
    }

    /// Takes a disk out of the domain.
    pub fn remove_disk(&mut self, target: &str) -> Result<(), XmlError> {
        let edit = self.xml.removal(self.disk(target)?);
        self.list.push(edit);
        Ok(())
    }

    /// Changes the path of the firmware variables.
    pub fn set_nvram(&mut self, path: &Path) -> Result<(), XmlError> {
        let path = path_text(path)?;
        let nvram = self.at(&["os", "nvram"])?;
        let edit = match child(nvram, "source") {
            Some(source) => {
                let key = if source.has_attribute("dev") {
                    "dev"
                } else {
                    "file"
                };
                self.xml.attr_edit(source, key, path)?
            }
            None => self.xml.text_edit(nvram, path)?,
        };
        self.push(edit);
        Ok(())
    }

    /// Changes the path of the kernel that is booted directly.
    pub fn set_kernel(&mut self, path: &Path) -> Result<(), XmlError> {
        self.set_boot_file("kernel", path)
    }

    /// Changes the path of its initial RAM disk.
    pub fn set_initrd(&mut self, path: &Path) -> Result<(), XmlError> {
        self.set_boot_file("initrd", path)
    }

    fn set_boot_file(&mut self, what: &str, path: &Path) -> Result<(), XmlError> {
        let node = self.at(&["os", what])?;
        let edit = self.xml.text_edit(node, path_text(path)?)?;
        self.push(edit);
        Ok(())
    }

    /// Lets libvirt choose where the state of an emulated TPM is.
    pub fn strip_tpm_source(&mut self) {
        let devices = child(self.doc.root_element(), "devices");
        let edits: Vec<Edit> = devices
            .into_iter()
            .flat_map(|devices| children(devices, "tpm"))
            .filter_map(|tpm| descend(tpm, &["backend", "source"]))
            .map(|source| self.xml.removal(source))
            .collect();
        self.list.extend(edits);
    }

    /// Takes away the sockets of channels whose path libvirt chose for the running domain, so that
    /// it chooses again. Paths chosen by people stay.
    pub fn strip_channel_sockets(&mut self) {
        let devices = child(self.doc.root_element(), "devices");
        let channels = devices
            .into_iter()
            .flat_map(|devices| children(devices, "channel"));
        let chosen = |source: &Node| source.attribute("path").is_some_and(is_libvirts);
        let edits: Vec<Edit> = channels
            .filter(|channel| channel.attribute("type") == Some("unix"))
            .filter_map(|channel| child(channel, "source").filter(chosen))
            .map(|source| self.xml.removal(source))
            .collect();
        self.list.extend(edits);
    }

    /// Rewrites the files that serial ports, consoles and channels write to or listen on, as in
    /// [`super::DomainView::console_files`]: `rewrite` gets each path and returns the new one, or
    /// none to keep it.
    pub fn map_console_files(
        &mut self,
        mut rewrite: impl FnMut(&str) -> Option<String>,
    ) -> Result<(), XmlError> {
        let mut edits = Vec::new();
        for (node, key) in console_files(self.doc.root_element()) {
            if let Some(new) = node.attribute(key).and_then(&mut rewrite) {
                edits.push(self.xml.attr_edit(node, key, &new)?);
            }
        }
        edits.into_iter().for_each(|edit| self.push(edit));
        Ok(())
    }

    /// Takes away the labels that libvirt gave the running domain; it gives new ones.
    pub fn strip_runtime_labels(&mut self) {
        let dynamic = children(self.doc.root_element(), "seclabel")
            .filter(|label| label.attribute("type") == Some("dynamic"));
        let edits: Vec<Edit> = dynamic
            .flat_map(|label| children(label, "label").chain(children(label, "imagelabel")))
            .map(|node| self.xml.removal(node))
            .collect();
        self.list.extend(edits);
    }

    fn push(&mut self, edit: Option<Edit>) {
        self.list.extend(edit);
    }

    fn at(&self, path: &[&str]) -> Result<Node<'_, 'a>, XmlError> {
        descend(self.doc.root_element(), path)
            .ok_or_else(|| missing(format!("<{}>", path.join("> <"))))
    }

    fn interface(&self, n: usize) -> Result<Node<'_, 'a>, XmlError> {
        child(self.doc.root_element(), "devices")
            .and_then(|devices| children(devices, "interface").nth(n))
            .ok_or_else(|| missing(format!("network card number {n}")))
    }

    fn disk(&self, target: &str) -> Result<Node<'_, 'a>, XmlError> {
        child(self.doc.root_element(), "devices")
            .and_then(|devices| {
                children(devices, "disk").find(|disk| {
                    child(*disk, "target").and_then(|t| t.attribute("dev")) == Some(target)
                })
            })
            .ok_or_else(|| missing(format!("disk {target:?}")))
    }
}

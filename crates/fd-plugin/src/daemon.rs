//! The File Daemon, as the rest of the plugin sees it: a safe face of Bacula's functions.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use relay::message::{Class, Known};

use crate::abi::{self, AccuratePacket, BaculaFuncs, INTERFACE, PluginContext, message, rc, var};
use crate::trouble::Trouble;

/// Bacula's table, which lives as long as the process.
static FUNCS: AtomicPtr<BaculaFuncs> = AtomicPtr::new(ptr::null_mut());

/// Bacula cuts a job message at 2000 bytes; beyond this one would lose its line end.
const MAX_MESSAGE: usize = 1900;

/// Keeps Bacula's table if it is the one this plugin was built for.
///
/// # Safety
///
/// `info` and `funcs` are null or point to Bacula's static tables.
pub(crate) unsafe fn adopt(
    info: *const abi::BaculaInfo,
    funcs: *mut BaculaFuncs,
) -> Result<(), String> {
    // SAFETY: the caller's promise; null becomes None.
    let version = unsafe { info.as_ref() }.map_or(0, |info| info.version);
    if version != INTERFACE {
        return Err(format!(
            "bacula-fd has plugin interface {version}, lab-backup-fd.so is built for {INTERFACE} \
             (Bacula 15.0): not loaded"
        ));
    }
    // SAFETY: as above; the table's size stands first in every interface.
    let table = unsafe { funcs.as_ref() };
    let whole = table.is_some_and(|table| {
        table.size as usize >= size_of::<BaculaFuncs>()
            && table.version == INTERFACE
            && table.get_value.is_some()
            && table.set_value.is_some()
            && table.job_message.is_some()
            && table.free.is_some()
            && table.get_accurate.is_some()
    });
    if !whole {
        return Err(format!(
            "bacula-fd's function table is not that of plugin interface {INTERFACE}: \
             lab-backup-fd.so is not loaded"
        ));
    }
    FUNCS.store(funcs, Ordering::Release);
    Ok(())
}

/// The File Daemon, for one job.
pub(crate) struct Daemon<'a> {
    context: *mut PluginContext,
    funcs: &'static BaculaFuncs,
    cancel: &'a AtomicBool,
}

impl<'a> Daemon<'a> {
    /// The daemon behind a context; `None` before [`adopt`].
    ///
    /// # Safety
    ///
    /// `context` is the pointer that Bacula passed to the running callback.
    pub(crate) unsafe fn new(context: *mut PluginContext, cancel: &'a AtomicBool) -> Option<Self> {
        // SAFETY: `adopt` stored a table that Bacula keeps for ever, or null.
        let funcs = unsafe { FUNCS.load(Ordering::Acquire).as_ref() }?;
        Some(Self {
            context,
            funcs,
            cancel,
        })
    }

    /// A numeric variable; 0 when Bacula has none.
    pub(crate) fn number(&self, variable: c_int) -> i32 {
        let mut value: c_int = 0;
        if let Some(get) = self.funcs.get_value {
            // SAFETY: numeric variables are written as one int; the context is Bacula's own.
            unsafe { get(self.context, variable, (&raw mut value).cast()) };
        }
        value
    }

    /// A text variable; empty when Bacula has none.
    pub(crate) fn text(&self, variable: c_int) -> Result<String, Trouble> {
        let mut value: *const c_char = ptr::null();
        if let Some(get) = self.funcs.get_value {
            // SAFETY: text variables are written as one pointer.
            unsafe { get(self.context, variable, (&raw mut value).cast()) };
        }
        // SAFETY: the pointer is null or a string of the job, which outlives this callback.
        unsafe { text(value) }.map(Option::unwrap_or_default)
    }

    /// Was the job cancelled, or given up by the File Daemon?
    ///
    /// The flag alone is not enough: a lost Storage Daemon sends no event.
    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire) || self.given_up()
    }

    /// Does Bacula itself count the job as cancelled or failed?
    pub(crate) fn given_up(&self) -> bool {
        self.number(var::IS_CANCELED) != 0
    }

    /// Writes a line of the job log.
    pub(crate) fn log(&self, class: Class, text: &str) {
        let class = match class {
            Class::Info => message::INFO,
            Class::Warning => message::WARNING,
            Class::Error => message::ERROR,
        };
        self.message(class, text);
    }

    /// Writes a line of the job log and fails the job.
    pub(crate) fn fatal(&self, text: &str) {
        self.message(message::FATAL, text);
    }

    fn message(&self, class: c_int, text: &str) {
        let line = one_line(text);
        if let Some(job_message) = self.funcs.job_message {
            // SAFETY: the format takes exactly one string, which lives until the call returns.
            unsafe {
                job_message(
                    self.context,
                    c"lab-backup".as_ptr(),
                    0,
                    class,
                    0,
                    c"%s".as_ptr(),
                    line.as_ptr(),
                )
            };
        }
    }

    /// What the Director knows of a path on the chain that this job extends.
    pub(crate) fn known(&self, path: &CStr) -> Result<Known, Trouble> {
        // SAFETY: the packet is plain data, for which zero is a valid value of every field.
        let mut packet: AccuratePacket = unsafe { std::mem::zeroed() };
        packet.fname = path.as_ptr().cast_mut();
        let Some(get) = self.funcs.get_accurate else {
            return Err(Trouble::daemon("cannot be asked for earlier parts"));
        };
        // SAFETY: the packet is ours; Bacula only reads the name.
        let answer = unsafe { get(self.context, &raw mut packet) };
        if let Some(free) = self.funcs.free
            && !packet.checksum.is_null()
        {
            let file = c"lab-backup".as_ptr();
            // SAFETY: Bacula allocated the checksum for us; it is freed once.
            unsafe { free(self.context, file, 0, packet.checksum.cast::<c_void>()) };
        }
        match answer {
            rc::SEEN => Ok(Known {
                found: true,
                part: packet.stat.st_ino,
                delta_seq: u32::try_from(packet.delta_seq)
                    .map_err(|_| Trouble::daemon("has a negative delta_seq"))?,
            }),
            rc::OK => Ok(Known {
                found: false,
                part: 0,
                delta_seq: 0,
            }),
            _ => Err(Trouble::daemon("cannot say what earlier parts there are")),
        }
    }
}

impl Daemon<'_> {
    /// Keeps a file of an earlier job in the restore tree although this job does not send it.
    pub(crate) fn keep(&self, path: &CStr) -> Result<(), Trouble> {
        let answer = self.funcs.set_value.map(|set| {
            let path = path.as_ptr().cast_mut().cast::<c_void>();
            // SAFETY: this variable is read as a string, and Bacula looks it up before it returns.
            unsafe { set(self.context, var::FILE_SEEN, path) }
        });
        match answer {
            Some(rc::OK) => Ok(()),
            _ => Err(Trouble::daemon("does not keep a file of an earlier job")),
        }
    }
}

/// A string of Bacula's; `None` for null. Names travel as JSON, so they must be UTF-8.
///
/// # Safety
///
/// `pointer` is null or a string that ends in a zero byte.
pub(crate) unsafe fn text(pointer: *const c_char) -> Result<Option<String>, Trouble> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, and the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    match text.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Trouble::daemon(format!(
            "passed a text that is not UTF-8: {text:?}"
        ))),
    }
}

/// One line that no text of a worker can break: control characters become blanks.
fn one_line(text: &str) -> CString {
    let mut line: String = text.trim_end().chars().map(printable).collect();
    if line.len() > MAX_MESSAGE {
        let cut = (0..=MAX_MESSAGE)
            .rev()
            .find(|at| line.is_char_boundary(*at));
        line.truncate(cut.unwrap_or(0));
        line.push('…');
    }
    line.push('\n');
    CString::new(line).unwrap_or_default()
}

fn printable(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\nb\0c%s\n").to_bytes(), b"a b c%s\n");
        let long = one_line(&"é".repeat(4000));
        assert!(long.to_bytes().len() < 2000);
        assert!(long.to_str().unwrap().ends_with("é…\n"));
    }
}

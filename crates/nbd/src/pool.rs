//! Recycled buffers: the bound on a reader's memory.
//!
//! A reader takes a buffer before it sends a request and hands it, filled, to its sink. Whoever
//! holds it may send it to another thread; dropping it gives the memory back. A consumer that
//! falls behind therefore stops new requests, never the draining of replies that are under way.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Smallest buffer in bytes: the largest block that a server may insist on.
const LEAST: usize = 64 << 10;
/// How often a wait for a buffer looks whether it should give up.
const LOOK: Duration = Duration::from_millis(50);

/// A fixed number of buffers of one size. Cloning shares them.
#[derive(Clone)]
pub struct Pool {
    home: Arc<Home>,
}

struct Home {
    bytes: usize,
    shelf: Mutex<Shelf>,
    returned: Condvar,
}

struct Shelf {
    free: Vec<Box<[u8]>>,
    /// Buffers that may still be allocated; memory that is never needed is never taken.
    unmade: usize,
}

impl Home {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // A panic elsewhere cannot leave the list half changed.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool of `count` buffers of `bytes` each; at least one, of at least 64 KiB.
    pub fn new(count: usize, bytes: usize) -> Self {
        let shelf = Shelf {
            free: Vec::new(),
            unmade: count.max(1),
        };
        Self {
            home: Arc::new(Home {
                bytes: bytes.max(LEAST),
                shelf: Mutex::new(shelf),
                returned: Condvar::new(),
            }),
        }
    }

    /// Size of one buffer in bytes.
    pub fn buffer_bytes(&self) -> usize {
        self.home.bytes
    }

    /// A buffer if one is free now. Its content is whatever the last user left.
    pub(crate) fn try_take(&self) -> Option<Buffer> {
        Self::pick(&self.home, &mut self.home.shelf())
    }

    /// Waits for a buffer; `None` once `give_up` says so.
    pub(crate) fn take(&self, give_up: impl Fn() -> bool) -> Option<Buffer> {
        let mut shelf = self.home.shelf();
        loop {
            if give_up() {
                return None;
            }
            if let Some(buffer) = Self::pick(&self.home, &mut shelf) {
                return Some(buffer);
            }
            shelf = match self.home.returned.wait_timeout(shelf, LOOK) {
                Ok((shelf, _)) => shelf,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn pick(home: &Arc<Home>, shelf: &mut Shelf) -> Option<Buffer> {
        // Last in, first out: the buffer that is most likely still in the processor's cache.
        let bytes = match shelf.free.pop() {
            Some(bytes) => bytes,
            None => {
                shelf.unmade = shelf.unmade.checked_sub(1)?;
                vec![0; home.bytes].into_boxed_slice()
            }
        };
        Some(Buffer {
            len: 0,
            bytes,
            home: Arc::clone(home),
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shelf = self.home.shelf();
        f.debug_struct("Pool")
            .field("buffer_bytes", &self.home.bytes)
            .field("free", &shelf.free.len())
            .field("unmade", &shelf.unmade)
            .finish()
    }
}

/// Bytes that were read, on loan from a [`Pool`]; dropping it returns the memory.
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Arc<Home>,
}

impl Buffer {
    /// Sets how many bytes count and returns them; `None` if the buffer is smaller.
    pub(crate) fn set_len(&mut self, len: usize) -> Option<&mut [u8]> {
        let space = self.bytes.get_mut(..len)?;
        self.len = len;
        Some(space)
    }

    /// The bytes that count, to be filled.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.home.shelf().free.push(bytes);
        self.home.returned.notify_one();
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_no_more_than_it_has_and_takes_back_what_is_dropped() {
        let pool = Pool::new(2, 16);
        let mut one = pool.try_take().unwrap();
        let two = pool.try_take().unwrap();
        assert!(pool.try_take().is_none());
        assert!(one.set_len(LEAST + 1).is_none());
        one.set_len(4).unwrap().copy_from_slice(b"abcd");
        assert_eq!(&one[..], b"abcd");
        drop(two);
        assert!(pool.try_take().is_some());
    }

    #[test]
    fn a_wait_ends_when_another_thread_returns_a_buffer() {
        let pool = Pool::new(1, 16);
        let held = pool.try_take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                drop(held);
            });
            assert!(pool.take(|| false).is_some());
        });
    }

    #[test]
    fn a_wait_ends_when_told_to_give_up() {
        let pool = Pool::new(1, 16);
        let _held = pool.try_take().unwrap();
        assert!(pool.take(|| true).is_none());
    }
}

//! Bacula's File Daemon plugin `lab-backup-fd.so`.
//!
//! It is thin on purpose, because it lives inside a root daemon that other jobs share: Bacula's C
//! interface on one side, the [`relay`] protocol on the other, and nothing else. It starts no
//! process and no thread, keeps no state beyond a job, and never unwinds into C.
//!
//! ```text
//! bacula-fd -> boundary (C ABI, panics stop here) -> job -> backup | restore | query
//!                                                     `-> link (the worker's socket)
//! ```
//!
//! One rule decides everything that goes wrong: the File Daemon treats most plugin errors as
//! harmless, so every failure is reported as a fatal job message before the callback returns.

#[allow(unsafe_code)]
mod abi;
mod backup;
#[allow(unsafe_code)]
mod boundary;
#[allow(unsafe_code)]
mod daemon;
mod job;
mod link;
#[allow(unsafe_code)]
mod packets;
mod query;
mod restore;
mod trouble;

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;

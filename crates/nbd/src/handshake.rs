//! The fixed newstyle handshake: structured replies, contexts, then GO.
//!
//! Everything here runs under one deadline, and a server may send only a bounded number of
//! bounded replies to each option.

use crate::conn::Conn;
use crate::error::Error;
use crate::wire::{self, Cursor};

/// Largest reply to an option that is read, in bytes. Names and texts end at 4096.
const MAX_REPLY: u32 = 16 << 10;
/// Most replies to one option. A server has one per bitmap.
const MAX_REPLIES: usize = 4096;
/// Longest name the protocol allows, in bytes.
const MAX_NAME: usize = 4096;

/// Request sizes that suit the server, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Requests begin and end on multiples of this.
    pub minimum: u32,
    /// Smaller or unaligned requests may cost the server a read before its write.
    pub preferred: u32,
    /// Longest read or write.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What the protocol says of a server that says nothing.
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: 32 << 20,
        }
    }
}

/// A kind of metadata that the server granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Such as `base:allocation`.
    pub name: String,
    pub(crate) id: u32,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) blocks: BlockSizes,
    pub(crate) contexts: Vec<Context>,
    pub(crate) structured: bool,
}

/// Greets the server and selects `export` with those of `contexts` that it has.
pub(crate) fn negotiate(conn: &mut Conn, contexts: &[&str]) -> Result<Agreed, Error> {
    greet(conn)?;
    let structured = ask_structured(conn)?;
    let mut granted = Vec::new();
    if structured && !contexts.is_empty() {
        granted = meta_contexts(conn, wire::OPT_SET_META_CONTEXT, contexts)?;
        // A server that grants what nobody asked for, or one id twice, could not be understood.
        for (at, context) in granted.iter().enumerate() {
            let twice = granted.iter().skip(at + 1).any(|c| c.id == context.id);
            if twice || !contexts.contains(&context.name.as_str()) {
                return Err(conn.protocol("a context was granted that was not asked for"));
            }
        }
    }
    let (size, flags, blocks) = go(conn)?;
    Ok(Agreed {
        size,
        flags,
        blocks,
        contexts: granted,
        structured,
    })
}

/// Lists the contexts that match `queries` (`base:`, `qemu:`), then leaves.
pub(crate) fn list(conn: &mut Conn, queries: &[&str]) -> Result<Vec<String>, Error> {
    greet(conn)?;
    if !ask_structured(conn)? {
        return Ok(Vec::new());
    }
    let found = meta_contexts(conn, wire::OPT_LIST_META_CONTEXT, queries)?;
    conn.send(&wire::encode_option(wire::OPT_ABORT, &[]), &[])?;
    Ok(found.into_iter().map(|context| context.name).collect())
}

fn greet(conn: &mut Conn) -> Result<(), Error> {
    let mut hello = [0; 18];
    conn.recv(&mut hello)?;
    let mut cursor = Cursor(&hello);
    if cursor.u64() != Some(wire::INIT_MAGIC) {
        return Err(conn.protocol("it does not greet as an NBD server"));
    }
    if cursor.u64() != Some(wire::OPTION_MAGIC) {
        return Err(conn.protocol("it speaks only the old handshake"));
    }
    let flags = cursor.u16().unwrap_or(0);
    if flags & wire::FIXED_NEWSTYLE == 0 {
        return Err(conn.protocol("it does not speak the fixed newstyle handshake"));
    }
    let ours = u32::from(flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES));
    conn.send(&ours.to_be_bytes(), &[])
}

fn ask_structured(conn: &mut Conn) -> Result<bool, Error> {
    conn.send(&wire::encode_option(wire::OPT_STRUCTURED_REPLY, &[]), &[])?;
    match option_reply(conn, wire::OPT_STRUCTURED_REPLY)? {
        (wire::REP_ACK, _) => Ok(true),
        (kind, _) if kind & wire::REP_ERROR != 0 => Ok(false),
        _ => Err(conn.protocol("a reply does not fit its option")),
    }
}

fn meta_contexts(conn: &mut Conn, option: u32, queries: &[&str]) -> Result<Vec<Context>, Error> {
    let mut payload = name_of(conn)?;
    let count = u32::try_from(queries.len()).unwrap_or(u32::MAX);
    payload.extend_from_slice(&count.to_be_bytes());
    for query in queries {
        if query.len() > MAX_NAME {
            return Err(Error::NoContext {
                export: conn.export.clone(),
                context: query.chars().take(80).collect(),
            });
        }
        wire::put_string(&mut payload, query);
    }
    conn.send(&wire::encode_option(option, &payload), &[])?;
    let mut found = Vec::new();
    for _ in 0..MAX_REPLIES {
        match option_reply(conn, option)? {
            (wire::REP_ACK, _) => return Ok(found),
            (wire::REP_META_CONTEXT, payload) => {
                let mut cursor = Cursor(&payload);
                let id = cursor.u32();
                let name = std::str::from_utf8(cursor.0);
                let (Some(id), Ok(name)) = (id, name) else {
                    return Err(conn.protocol("a context does not parse"));
                };
                let name = name.to_owned();
                found.push(Context { name, id });
            }
            (kind, payload) if kind & wire::REP_ERROR != 0 => {
                return Err(refused(conn, "the metadata contexts", kind, &payload));
            }
            _ => return Err(conn.protocol("a reply does not fit its option")),
        }
    }
    Err(conn.protocol("an option has too many replies"))
}

fn go(conn: &mut Conn) -> Result<(u64, u16, BlockSizes), Error> {
    let mut payload = name_of(conn)?;
    payload.extend_from_slice(&1_u16.to_be_bytes());
    payload.extend_from_slice(&wire::INFO_BLOCK_SIZE.to_be_bytes());
    conn.send(&wire::encode_option(wire::OPT_GO, &payload), &[])?;
    let (mut export, mut blocks) = (None, BlockSizes::default());
    for _ in 0..MAX_REPLIES {
        match option_reply(conn, wire::OPT_GO)? {
            (wire::REP_ACK, _) => {
                let Some((size, flags)) = export else {
                    return Err(conn.protocol("it does not say how large the export is"));
                };
                // Beyond this no file system goes, and sums of offset and length stay sound.
                if size > i64::MAX as u64 {
                    return Err(conn.protocol("its size makes no sense"));
                }
                return Ok((size, flags, blocks));
            }
            (wire::REP_INFO, payload) => {
                let mut cursor = Cursor(&payload);
                match cursor.u16() {
                    Some(wire::INFO_EXPORT) => export = cursor.u64().zip(cursor.u16()),
                    Some(wire::INFO_BLOCK_SIZE) => {
                        let Some(sizes) = block_sizes(&mut cursor) else {
                            return Err(conn.protocol("its block sizes make no sense"));
                        };
                        blocks = sizes;
                    }
                    _ => {}
                }
            }
            (kind, payload) if kind & wire::REP_ERROR != 0 => {
                return Err(refused(conn, "the use", kind, &payload));
            }
            _ => return Err(conn.protocol("a reply does not fit its option")),
        }
    }
    Err(conn.protocol("an option has too many replies"))
}

fn block_sizes(cursor: &mut Cursor<'_>) -> Option<BlockSizes> {
    let (minimum, preferred, maximum) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let sane = minimum.is_power_of_two()
        && minimum <= 64 << 10
        && preferred.is_power_of_two()
        && maximum >= minimum.max(4096);
    sane.then_some(BlockSizes {
        minimum,
        preferred,
        maximum,
    })
}

fn name_of(conn: &Conn) -> Result<Vec<u8>, Error> {
    if conn.export.len() > MAX_NAME {
        return Err(Error::Refused {
            export: conn.export.chars().take(80).collect(),
            option: "the name",
            reason: "it is longer than the protocol allows".into(),
        });
    }
    let mut payload = Vec::new();
    wire::put_string(&mut payload, &conn.export);
    Ok(payload)
}

fn option_reply(conn: &mut Conn, option: u32) -> Result<(u32, Vec<u8>), Error> {
    let mut head = [0; 20];
    conn.recv(&mut head)?;
    let mut cursor = Cursor(&head);
    if cursor.u64() != Some(wire::OPTION_REPLY_MAGIC) || cursor.u32() != Some(option) {
        return Err(conn.protocol("a reply to an option is garbled"));
    }
    let (kind, len) = (cursor.u32().unwrap_or(0), cursor.u32().unwrap_or(0));
    if len > MAX_REPLY {
        return Err(conn.protocol("a reply to an option is too long"));
    }
    let mut payload = vec![0; len as usize];
    conn.recv(&mut payload)?;
    Ok((kind, payload))
}

fn refused(conn: &mut Conn, option: &'static str, kind: u32, text: &[u8]) -> Error {
    conn.poison();
    let mut reason = wire::clean(text);
    if reason.is_empty() {
        reason = match kind ^ wire::REP_ERROR {
            1 => "not supported".into(),
            2 => "forbidden by policy".into(),
            3 => "invalid request".into(),
            5 => "TLS is required".into(),
            6 => "no such export".into(),
            7 => "server is shutting down".into(),
            code => format!("error {code}"),
        };
    }
    Error::Refused {
        export: conn.export.clone(),
        option,
        reason,
    }
}

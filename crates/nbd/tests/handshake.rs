//! Servers that never finish the handshake, or finish it in nonsense.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fake;

use std::time::{Duration, Instant};

use fake::*;
use nbd::{Client, Error};
use proptest::prelude::*;

#[test]
fn a_silent_server_in_the_handshake_runs_into_the_deadline() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let result = Client::from_socket(ours, "disk", &[], Duration::from_millis(100));
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    drop(theirs);
}

#[test]
fn a_dribbling_handshake_runs_into_the_same_deadline() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut peer = Peer(theirs);
        // One byte at a time: each alone would be in time.
        for byte in b"NBDMAGICIHAVEOPT\0\x03" {
            peer.raw(&[*byte]);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let start = Instant::now();
    let result = Client::from_socket(ours, "disk", &[], Duration::from_millis(200));
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    assert!(
        start.elapsed() < Duration::from_millis(2500),
        "{:?}",
        start.elapsed()
    );
    server.join().unwrap();
}

#[test]
fn a_socket_that_nobody_accepts_runs_into_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    // Fills the only place in the queue.
    let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let start = Instant::now();
    let result = Client::connect(&path, "", &[], Duration::from_millis(200));
    assert!(matches!(result, Err(Error::Connect { .. })), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(waiting);
    let missing = Client::connect(&dir.path().join("no"), "", &[], Duration::from_secs(1));
    assert!(matches!(missing, Err(Error::Connect { .. })));
    let long = dir.path().join("x".repeat(200));
    let long = Client::connect(&long, "", &[], Duration::from_secs(1));
    assert!(matches!(long, Err(Error::Connect { .. })));
}

#[test]
fn handshakes_that_make_no_sense_are_refused() {
    let hello = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let reply = |option: u32, kind: u32, payload: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    };
    let ok = reply(8, 1, &[]);
    let context = reply(10, 4, b"\0\0\0\x01base:allocation");
    let foreign = reply(10, 4, b"\0\0\0\x01qemu:other");
    let ack = reply(10, 1, &[]);
    let mut long = reply(8, 1, &[]);
    long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let export = |size: u64| reply(7, 3, &[&[0, 0][..], &size.to_be_bytes(), &[0, 1]].concat());
    let blocks = |min: u32, max: u32| {
        let payload = [
            &[0, 3][..],
            &min.to_be_bytes(),
            &[0, 0, 16, 0],
            &max.to_be_bytes(),
        ]
        .concat();
        reply(7, 3, &payload)
    };
    let done = reply(7, 1, &[]);
    let go = |replies: &[Vec<u8>]| {
        [&[hello.clone(), ok.clone(), ack.clone()][..], replies]
            .concat()
            .concat()
    };
    let bad = [
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
        b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0".to_vec(),
        b"NBDMAGICIHAVEOPT\0\0".to_vec(),
        [&hello[..], &[0; 20]].concat(),
        [&hello[..], &long].concat(),
        [&hello[..], &reply(7, 1, &[])].concat(),
        [&hello[..], &ok, &foreign, &ack].concat(),
        [&hello[..], &ok, &context, &context, &ack].concat(),
        [&hello[..], &ok, &reply(10, 4, b"\0\0\0"), &ack].concat(),
        [&hello[..], &ok, &reply(10, 4, b"\0\0\0\x01\xff\xfe"), &ack].concat(),
        go(std::slice::from_ref(&done)),
        go(&[export(u64::MAX), done.clone()]),
        go(&[export(4096), blocks(3, 1 << 20), done.clone()]),
        go(&[export(4096), blocks(0, 1 << 20), done.clone()]),
        go(&[export(4096), blocks(4096, 512), done.clone()]),
        go(&[reply(7, 3, &[0, 0, 1]), done.clone()]),
        go(&[reply(7, 77, &[])]),
    ];
    for (at, bytes) in bad.into_iter().enumerate() {
        let result = greeted_with(bytes);
        assert!(
            matches!(result, Err(Error::Protocol { .. })),
            "{at}: {result:?}"
        );
    }
    let result = greeted_with(go(&[reply(7, 0x8000_0006, b"no such\nexport")]));
    assert_eq!(
        result.unwrap_err().to_string(),
        "the server refuses the use of NBD export \"disk\": no such export"
    );
    let client = greeted_with(go(&[export(4096), blocks(512, 1 << 20), done])).unwrap();
    assert_eq!((client.size(), client.block_sizes().minimum), (4096, 512));
    assert!(client.contexts().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_handshakes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let whole = [&b"NBDMAGICIHAVEOPT\0\x03"[..], &bytes].concat();
        prop_assert!(greeted_with(whole).is_err());
        prop_assert!(greeted_with(bytes).is_err());
    }
}

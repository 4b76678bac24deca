//! Pipelined writes against a scripted server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fake;

use std::time::Duration;

use fake::*;
use nbd::{Command, Error, ServerError};

fn payload(peer: &mut Peer, asked: &Asked) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; asked.len as usize];
    peer.0.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn several_writes_are_under_way_and_acknowledged_in_any_order() {
    let (mut client, server) = serve(|peer| {
        let mut asked = Vec::new();
        for number in 0..4 {
            let request = peer.requests(1)[0];
            assert_eq!((request.command, request.offset), (1, number * 4096));
            assert_eq!(payload(peer, &request), [number as u8; 4096]);
            asked.push(request);
        }
        peer.simple(0, asked[2].cookie);
        peer.chunk(DONE, NONE, asked[0].cookie, &[]);
        let fifth = peer.requests(1)[0];
        payload(peer, &fifth);
        for cookie in [fifth.cookie, asked[3].cookie, asked[1].cookie] {
            peer.simple(0, cookie);
        }
        let flush = peer.requests(1)[0];
        assert_eq!((flush.command, flush.offset, flush.len), (3, 0, 0));
        peer.simple(0, flush.cookie);
        let goodbye = peer.requests(1)[0];
        assert_eq!(goodbye.command, 2);
        assert!(peer.request().is_none());
    });
    let mut writer = client.writer(4);
    for number in 0..5 {
        writer.write(number * 4096, &[number as u8; 4096]).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);
    client.close().unwrap();
    server.join().unwrap();
}

#[test]
fn a_failed_write_is_reported_by_flush_at_the_latest_and_for_ever() {
    let (mut client, server) = serve(|peer| {
        let asked = peer.requests(1)[0];
        payload(peer, &asked);
        let other = peer.requests(1)[0];
        peer.error(asked.cookie, 28, "disk full");
        peer.simple(5, other.cookie);
        let next = peer.requests(1)[0];
        assert_eq!(
            next.command, 2,
            "nothing but goodbye is sent after a failure"
        );
    });
    let mut writer = client.writer(8);
    writer.write(8192, &[1; 4096]).unwrap();
    writer.write_zeroes(65536, 4096).unwrap();
    for _ in 0..2 {
        let error = writer.flush().unwrap_err();
        assert_eq!(error.server_error(), Some(ServerError::NoSpace));
        assert_eq!(error.offset(), Some(8192));
        assert!(
            error
                .to_string()
                .contains("write of 4096 bytes at offset 8192"),
            "{error}"
        );
    }
    assert!(writer.write(0, &[1; 4096]).is_err());
    assert!(writer.trim(0, 4096).is_err());
    drop(writer);
    client.close().unwrap();
    server.join().unwrap();
}

#[test]
fn requests_that_overlap_wait_for_each_other() {
    let (mut client, server) = serve(|peer| {
        let first = peer.requests(1)[0];
        payload(peer, &first);
        let apart = peer.requests(1)[0];
        payload(peer, &apart);
        peer.0
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert!(
            peer.request().is_none(),
            "the overlapping one came too early"
        );
        peer.0.set_read_timeout(None).unwrap();
        peer.simple(0, first.cookie);
        let overlapping = peer.requests(1)[0];
        assert_eq!((overlapping.command, overlapping.offset), (6, 4096));
        peer.simple(0, overlapping.cookie);
        peer.simple(0, apart.cookie);
        let flush = peer.requests(1)[0];
        peer.simple(0, flush.cookie);
    });
    let mut writer = client.writer(8);
    writer.write(0, &[1; 8192]).unwrap();
    writer.write(65536, &[1; 4096]).unwrap();
    writer.write_zeroes(4096, 8192).unwrap();
    writer.flush().unwrap();
    drop(writer);
    server.join().unwrap();
}

#[test]
fn long_ranges_are_cut_and_bad_ones_refused() {
    const SIZE: u64 = 5 << 30;
    let (mut client, server) = serve_as(&[], SIZE, Some([512, 4096, 4096]), |peer| {
        let mut zeroed = 0;
        while let Some(asked) = peer.request() {
            match asked.command {
                1 => {
                    assert!(asked.len <= 4096);
                    payload(peer, &asked);
                }
                4 | 6 => {
                    assert!(asked.len <= 1 << 30);
                    zeroed += u64::from(asked.len);
                }
                _ => {}
            }
            peer.simple(0, asked.cookie);
        }
        assert_eq!(zeroed, 2 * (SIZE - 512));
    });
    let mut writer = client.writer(2);
    writer.write(512, &[1; 10240]).unwrap();
    writer.write_zeroes(512, SIZE - 512).unwrap();
    writer.trim(512, SIZE - 512).unwrap();
    for (offset, len) in [(1, 512), (0, 511), (SIZE, 512), (u64::MAX, 2)] {
        let result = writer.write(offset, &vec![0; len]);
        assert!(
            matches!(result, Err(Error::BadRange { .. })),
            "{offset} {len}"
        );
        assert!(writer.write_zeroes(offset, len as u64).is_err());
    }
    writer.flush().unwrap();
    drop(writer);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_writer_dropped_too_early_makes_the_client_unusable() {
    let (mut client, server) = serve(|peer| while peer.get::<1>().is_some() {});
    client.writer(8).write(0, &[1; 4096]).unwrap();
    assert!(matches!(
        client.writer(8).flush(),
        Err(Error::Unusable { .. })
    ));
    drop(client);
    server.join().unwrap();
}

#[test]
fn acknowledgements_that_make_no_sense_are_refused() {
    let scripts: [fn(&mut Peer, &Asked); 5] = [
        |peer, asked| peer.simple(0, asked.cookie + 1),
        |peer, asked| peer.data(DONE, asked.cookie, 0, &[1; 8]),
        |peer, asked| peer.chunk(0, NONE, asked.cookie, &[]),
        |peer, asked| peer.chunk(DONE, NONE, asked.cookie, &[1]),
        |peer, _| peer.raw(&[0x11; 20]),
    ];
    for (at, script) in scripts.into_iter().enumerate() {
        let (mut client, server) = serve(move |peer| {
            let asked = peer.requests(1)[0];
            assert_eq!(asked.command, Command::Flush as u16);
            script(peer, &asked);
            peer.request();
        });
        let error = client.writer(8).flush().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{at}: {error:?}");
        drop(client);
        server.join().unwrap();
    }
}

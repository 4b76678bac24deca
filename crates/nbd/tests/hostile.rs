//! What a reader does when the server is slow, wrong, or gone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fake;

use std::time::{Duration, Instant};

use fake::*;
use nbd::{Client, Error, Extent, Piece, Pool, ReadOptions, ServerError};
use proptest::prelude::*;

/// Four requests of 64 KiB at once.
fn options() -> ReadOptions {
    let mut options = ReadOptions::default();
    (options.request, options.in_flight) = (64 << 10, 4);
    options
}

/// Reads the first `len` bytes; what the sink got, and how it ended.
fn read(client: &mut Client, len: u64) -> (Vec<u8>, Result<(), Error>) {
    let mut got = Vec::new();
    let pool = options().pool(2);
    let result = client.read([Ok(Extent::data(0, len))], &options(), &pool, |piece| {
        assert_eq!(piece.offset(), got.len() as u64, "in order, without gaps");
        match piece {
            Piece::Data { bytes, .. } => got.extend_from_slice(&bytes),
            Piece::Zero { len, .. } => got.resize(got.len() + len as usize, 0),
        }
        Ok(())
    });
    (got, result)
}

/// The failure of a read of 256 KiB whose first 64 KiB the server answers by `script`.
fn first_fails(script: impl FnOnce(&mut Peer, Asked) + Send + 'static) -> Error {
    let (mut client, server) = serve(move |peer| {
        let first = peer.requests(4)[0];
        script(peer, first);
    });
    let (got, result) = read(&mut client, 256 << 10);
    assert!(
        got.is_empty(),
        "nothing before the failure may reach the sink"
    );
    let error = result.unwrap_err();
    drop(client);
    server.join().unwrap();
    error
}

fn broke_protocol(script: impl FnOnce(&mut Peer, Asked) + Send + 'static) -> &'static str {
    match first_fails(script) {
        Error::Protocol { what, .. } => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn replies_in_any_order_reach_the_sink_in_order() {
    let (mut client, server) = serve(|peer| {
        let mut asked = peer.requests(4);
        for _ in 0..12 {
            // The youngest first, so that everything else has to wait for the oldest.
            for request in asked.iter().rev() {
                peer.serve(request);
            }
            let more = asked.last().unwrap().offset + (64 << 10) < SIZE;
            asked = if more { peer.requests(4) } else { break };
        }
    });
    let (got, result) = read(&mut client, SIZE);
    result.unwrap();
    assert!(got == pattern(0, SIZE as usize));
    server.join().unwrap();
}

#[test]
fn a_reply_in_pieces_and_out_of_order_is_put_together() {
    let (mut client, server) = serve(|peer| {
        let asked = peer.requests(1)[0];
        let at = |from: u64, len: usize| pattern(from, len);
        peer.data(0, asked.cookie, 40960, &at(40960, 24576));
        peer.data(0, asked.cookie, 0, &at(0, 10));
        peer.hole(0, asked.cookie, 10, 4086);
        peer.data(0, asked.cookie, 8192, &at(8192, 32768));
        peer.data(0, asked.cookie, 4096, &at(4096, 4096));
        peer.chunk(DONE, NONE, asked.cookie, &[]);
    });
    let (got, result) = read(&mut client, 65536);
    result.unwrap();
    let mut due = pattern(0, 65536);
    due[10..4096].fill(0);
    assert!(got == due);
    server.join().unwrap();
}

#[test]
fn a_whole_hole_is_zero_and_stale_bytes_of_a_buffer_never_show() {
    let (mut client, server) = serve(|peer| {
        for number in 0..8 {
            let asked = peer.requests(1)[0];
            match number % 2 {
                0 => peer.serve(&asked),
                _ => {
                    peer.hole(0, asked.cookie, asked.offset, 30_000);
                    peer.hole(
                        DONE,
                        asked.cookie,
                        asked.offset + 30_000,
                        asked.len - 30_000,
                    );
                }
            }
        }
    });
    let mut options = options();
    options.in_flight = 1;
    let pool = Pool::new(1, 64 << 10);
    let mut kinds = String::new();
    let plan = [Ok::<_, Error>(Extent::data(0, 512 << 10))];
    client
        .read(plan, &options, &pool, |piece| {
            match piece {
                Piece::Data { offset, bytes } => {
                    assert!(bytes[..] == pattern(offset, bytes.len()));
                    kinds.push('d');
                }
                Piece::Zero { len, .. } => {
                    assert_eq!(len, 64 << 10);
                    kinds.push('z');
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(kinds, "dzdzdzdz");
    server.join().unwrap();
}

#[test]
fn an_error_names_the_offset_and_leaves_the_client_usable() {
    let (mut client, server) = serve(|peer| {
        let asked = peer.requests(4);
        peer.serve(&asked[0]);
        peer.serve(&asked[3]);
        peer.error(asked[2].cookie, 5, "bad\nsector");
        peer.serve(&asked[1]);
        let more = peer.requests(1);
        peer.serve(&more[0]);
        let again = peer.requests(1);
        peer.serve(&again[0]);
    });
    let (got, result) = read(&mut client, 320 << 10);
    let error = result.unwrap_err();
    assert!(
        got == pattern(0, 128 << 10),
        "all before the failure, nothing behind it"
    );
    assert_eq!(error.server_error(), Some(ServerError::Io));
    assert_eq!(error.offset(), Some(128 << 10));
    assert_eq!(
        error.to_string(),
        "NBD export \"disk\": read of 65536 bytes at offset 131072: input/output error: bad sector"
    );
    let (got, result) = read(&mut client, 4096);
    result.unwrap();
    assert!(got == pattern(0, 4096));
    server.join().unwrap();
}

#[test]
fn an_error_in_the_middle_of_a_reply_is_an_error() {
    let error = first_fails(|peer, asked| {
        peer.data(0, asked.cookie, 0, &pattern(0, 4096));
        peer.error(asked.cookie, 28, "");
        for number in 1..4 {
            let at = number * 65536;
            peer.data(DONE, asked.cookie + number, at, &pattern(at, 65536));
        }
    });
    assert_eq!(error.server_error(), Some(ServerError::NoSpace));
}

#[test]
fn a_reply_longer_than_asked_is_refused_before_it_is_read() {
    let what = broke_protocol(|peer, asked| {
        // Only the head: a client that waited for the announced bytes would time out.
        peer.raw(&chunk_head(DONE, DATA, asked.cookie, 8 + 65537));
        peer.request();
    });
    assert_eq!(what, "more was sent than was asked for");
    broke_protocol(|peer, asked| {
        peer.raw(&chunk_head(DONE, DATA, asked.cookie, u32::MAX));
        peer.request();
    });
    broke_protocol(|peer, asked| {
        peer.raw(&chunk_head(DONE, ERROR, asked.cookie, u32::MAX));
        peer.request();
    });
}

#[test]
fn data_for_another_place_or_twice_or_too_little_is_refused() {
    broke_protocol(|peer, asked| peer.data(DONE, asked.cookie, 4096, &[7; 65536]));
    broke_protocol(|peer, asked| peer.data(DONE, asked.cookie, u64::MAX, &[7; 4096]));
    broke_protocol(|peer, asked| peer.hole(DONE, asked.cookie, 4096, 65536));
    broke_protocol(|peer, asked| peer.hole(DONE, asked.cookie, 0, 0));
    broke_protocol(|peer, asked| {
        peer.data(0, asked.cookie, 0, &[7; 4096]);
        peer.data(DONE, asked.cookie, 2048, &[7; 4096]);
    });
    broke_protocol(|peer, asked| {
        peer.data(0, asked.cookie, 8192, &[7; 4096]);
        peer.hole(DONE, asked.cookie, 0, 8193);
    });
    let what = broke_protocol(|peer, asked| peer.data(DONE, asked.cookie, 0, &[7; 65535]));
    assert_eq!(what, "a read was answered in part");
    broke_protocol(|peer, asked| {
        peer.data(0, asked.cookie, 4096, &[7; 61440]);
        peer.chunk(DONE, NONE, asked.cookie, &[]);
    });
}

#[test]
fn a_wrong_cookie_is_refused() {
    for wrong in [0, 1 << 40, u64::MAX] {
        broke_protocol(move |peer, asked| {
            peer.data(
                DONE,
                asked.cookie.wrapping_add(wrong).wrapping_sub(1),
                0,
                &[7; 65536],
            );
        });
    }
    let (mut client, server) = serve(|peer| {
        let asked = peer.requests(4);
        peer.serve(&asked[1]);
        // Answered already.
        peer.serve(&asked[1]);
    });
    let (_, result) = read(&mut client, 256 << 10);
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    server.join().unwrap();
}

#[test]
fn garbled_or_misplaced_heads_are_refused() {
    broke_protocol(|peer, _| peer.raw(&[0x55; 64]));
    broke_protocol(|peer, asked| peer.simple(0, asked.cookie));
    broke_protocol(|peer, asked| peer.chunk(DONE, 3, asked.cookie, &[]));
    broke_protocol(|peer, asked| peer.chunk(DONE, NONE, asked.cookie, &[1]));
    broke_protocol(|peer, asked| peer.chunk(DONE, DATA, asked.cookie, &[0; 8]));
    broke_protocol(|peer, asked| peer.chunk(DONE, HOLE, asked.cookie, &[0; 13]));
    broke_protocol(|peer, asked| peer.chunk(DONE, ERROR, asked.cookie, &[0; 3]));
    broke_protocol(|peer, asked| peer.status(DONE, asked.cookie, 1, &[(65536, 0)]));
}

#[test]
fn a_disconnect_in_the_middle_names_the_offset() {
    for cut in [0, 4, 16, 19, 20, 27, 28, 5000] {
        let error = first_fails(move |peer, asked| {
            let head = chunk_head(DONE, DATA, asked.cookie, 8 + 65536);
            let whole = [&head[..], &0_u64.to_be_bytes(), &pattern(0, 65536)].concat();
            peer.raw(&whole[..cut]);
        });
        assert!(
            matches!(error, Error::Disconnected { .. }),
            "cut at {cut}: {error:?}"
        );
        assert_eq!(error.offset(), Some(0));
    }
}

#[test]
fn a_silent_server_runs_into_the_time_out_and_the_client_is_unusable() {
    let (mut client, server) = serve(|peer| {
        let asked = peer.requests(1)[0];
        peer.raw(&chunk_head(DONE, DATA, asked.cookie, 8 + 65536));
        // Until the client leaves.
        while peer.request().is_some() {}
    });
    client
        .set_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let start = Instant::now();
    let (_, result) = read(&mut client, 256 << 10);
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let (_, result) = read(&mut client, 4096);
    assert!(matches!(result, Err(Error::Unusable { .. })), "{result:?}");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_shutdown_from_another_thread_ends_a_blocked_read() {
    let (mut client, server) = serve(|peer| while peer.request().is_some() {});
    client.set_timeout(None).unwrap();
    let handle = client.shutdown_handle();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            handle.shutdown();
        });
        let (_, result) = read(&mut client, 256 << 10);
        assert!(result.unwrap_err().is_stopped());
    });
    let (_, result) = read(&mut client, 4096);
    assert!(result.unwrap_err().is_stopped());
    server.join().unwrap();
}

#[test]
fn a_shutdown_ends_a_wait_for_a_consumer_that_holds_every_buffer() {
    let (mut client, server) = serve(|peer| {
        while let Some(asked) = peer.request() {
            peer.serve(&asked);
        }
    });
    let handle = client.shutdown_handle();
    let mut held = Vec::new();
    let (full, all_held) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let handle = &handle;
        scope.spawn(move || {
            all_held.recv().unwrap();
            // Long enough for the reader to ask for a fourth buffer and wait.
            std::thread::sleep(Duration::from_millis(100));
            handle.shutdown();
        });
        let plan = [Ok::<_, Error>(Extent::data(0, SIZE))];
        let pool = Pool::new(3, 64 << 10);
        let result = client.read(plan, &options(), &pool, |piece| {
            held.push(piece);
            if held.len() == 3 {
                full.send(()).unwrap();
            }
            Ok(())
        });
        assert!(result.unwrap_err().is_stopped());
    });
    assert_eq!(
        held.len(),
        3,
        "every buffer was filled: nothing is left in the server"
    );
    drop(client);
    server.join().unwrap();
}

#[test]
fn an_error_of_the_sink_ends_the_read_and_the_next_one_works() {
    let (mut client, server) = serve(|peer| {
        while let Some(asked) = peer.request() {
            peer.serve(&asked);
        }
    });
    let plan = [Ok::<_, Box<dyn std::error::Error>>(Extent::data(0, SIZE))];
    let result = client.read(plan, &options(), &options().pool(1), |piece| {
        if piece.offset() >= 128 << 10 {
            Err("the sink is full".into())
        } else {
            Ok(())
        }
    });
    assert_eq!(result.unwrap_err().to_string(), "the sink is full");
    let (got, result) = read(&mut client, 300_000);
    result.unwrap();
    assert!(got[..300_000] == pattern(0, 300_000));
    drop(client);
    server.join().unwrap();
}

#[test]
fn plans_out_of_order_or_off_the_disk_are_refused() {
    let (mut client, server) = serve(|peer| {
        while let Some(asked) = peer.request() {
            peer.serve(&asked);
        }
    });
    let plans = [
        vec![Extent::data(65536, 4096), Extent::data(0, 4096)],
        vec![Extent::data(0, 8192), Extent::zero(4096, 8192)],
        vec![Extent::data(SIZE, 1)],
        vec![Extent::zero(0, SIZE + 1)],
        vec![Extent::data(u64::MAX, 2)],
    ];
    for plan in plans {
        let text = format!("{plan:?}");
        let plan = plan.into_iter().map(Ok::<_, Error>);
        let result = client.read(plan, &options(), &options().pool(8), |_| Ok(()));
        assert!(
            matches!(result, Err(Error::BadRange { .. })),
            "{text}: {result:?}"
        );
    }
    // The client is none the worse for it.
    let (got, result) = read(&mut client, 4096);
    result.unwrap();
    assert!(got == pattern(0, 4096));
    drop(client);
    server.join().unwrap();
}

#[test]
fn requests_are_cut_at_blocks_and_at_the_end_of_the_disk() {
    const ODD: u64 = 300_000;
    let (mut client, server) = serve_as(&[], ODD, None, |peer| {
        while let Some(asked) = peer.request() {
            let end = asked.offset + u64::from(asked.len);
            assert!(
                asked.offset % 4096 == 0 && (end % 4096 == 0 || end == ODD),
                "{asked:?}"
            );
            assert!(asked.len <= 64 << 10);
            peer.serve(&asked);
        }
    });
    let plan = [
        Extent::data(5000, 10),
        Extent::zero(8192, 4096),
        Extent::zero(12288, 1),
        Extent::data(20_000, 100_000),
        Extent::zero(122_880, ODD - 1 - 122_880),
        Extent::data(ODD - 1, 1),
    ];
    let mut seen = Vec::new();
    let plan = plan.into_iter().map(Ok::<_, Error>);
    client
        .read(plan, &options(), &options().pool(2), |piece| {
            let kind = matches!(piece, Piece::Zero { .. });
            if let Piece::Data { offset, bytes } = &piece {
                assert!(bytes[..] == pattern(*offset, bytes.len()));
            }
            seen.push((piece.offset(), piece.len(), kind));
            Ok(())
        })
        .unwrap();
    assert_eq!(
        seen,
        [
            (4096, 4096, false),
            (8192, 4096, true),
            (12288, 53248, false),
            (65536, 57344, false),
            (122_880, 299_008 - 122_880, true),
            (299_008, 992, false),
        ]
    );
    let mut few = [0; 7];
    client.read_at(ODD - 7, &mut few).unwrap();
    assert_eq!(few[..], pattern(ODD - 7, 7));
    let mut many = vec![0; 200_001];
    client.read_at(4095, &mut many).unwrap();
    assert!(many == pattern(4095, 200_001));
    assert!(matches!(
        client.read_at(ODD - 6, &mut few),
        Err(Error::BadRange { .. })
    ));
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_pool_of_tiny_buffers_works() {
    let (mut client, server) = serve(|peer| {
        while let Some(asked) = peer.request() {
            peer.serve(&asked);
        }
    });
    let mut options = options();
    options.request = 1;
    let plan = [Ok::<_, Error>(Extent::data(0, 16384))];
    let mut pieces = 0;
    let read = client.read(plan, &options, &Pool::new(0, 0), |piece| {
        assert_eq!(piece.len(), 4096);
        pieces += 1;
        Ok(())
    });
    read.unwrap();
    assert_eq!(pieces, 4);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_limit_spreads_the_requests_over_time() {
    let (mut client, server) = serve(|peer| {
        while let Some(asked) = peer.request() {
            peer.serve(&asked);
        }
    });
    let mut options = options();
    options.limit = Some(2 << 20);
    let start = Instant::now();
    let plan = [Ok::<_, Error>(Extent::data(0, 512 << 10))];
    client
        .read(plan, &options, &options.pool(0), |_| Ok(()))
        .unwrap();
    // 512 KiB at 2 MiB/s; the first request is free.
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_secs(20),
        "{took:?}"
    );
    drop(client);
    server.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_replies_never_panic_and_never_pass(
        heads in proptest::collection::vec(
            (any::<bool>(), 0_u16..7, 0_u64..6, 0_u32..70_000, any::<u64>(), any::<u8>()), 0..12),
    ) {
        let (mut client, server) = serve(move |peer| {
            peer.requests(4);
            for (done, kind, cookie, len, at, fill) in heads {
                let kind = if kind == 6 { ERROR } else { kind };
                let mut payload = vec![fill; len as usize];
                let at = if at % 3 == 0 { at } else { (at % 5) * 65536 };
                if let Some(head) = payload.first_chunk_mut() { *head = at.to_be_bytes() }
                peer.chunk(u16::from(done), kind, cookie, &payload);
            }
        });
        let (got, result) = read(&mut client, 256 << 10);
        // Each block is at most what some chunk brought; a whole answer is astronomically rare.
        prop_assert!(result.is_err() || got.len() == 256 << 10);
        drop(client);
        server.join().unwrap();
    }
}

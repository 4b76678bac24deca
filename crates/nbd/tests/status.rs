//! Block status and plans against a scripted server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fake;

use std::time::{Duration, Instant};

use fake::*;
use nbd::{BASE_ALLOCATION, Client, Error, Extent, Span};

const DIRTY: &str = "qemu:dirty-bitmap:b";

fn span(offset: u64, len: u64, flags: u32) -> Span {
    Span { offset, len, flags }
}

fn walk(client: &mut Client, offset: u64, len: u64) -> Result<Vec<Span>, Error> {
    client.extents(BASE_ALLOCATION, offset, len)?.collect()
}

fn refused(script: impl FnOnce(&mut Peer, Asked) + Send + 'static) -> Error {
    let (mut client, server) = serve_as(&[BASE, DIRTY], SIZE, Some([512, 4096, 1 << 20]), |peer| {
        let asked = peer.requests(1)[0];
        assert_eq!(asked.command, 7, "a block status");
        script(peer, asked);
    });
    let error = walk(&mut client, 0, SIZE).unwrap_err();
    drop(client);
    server.join().unwrap();
    error
}

#[test]
fn equal_neighbours_merge_across_replies_and_the_end_is_clamped() {
    let (mut client, server) = serve(|peer| {
        for (at, pairs) in [
            (0, &[(4096, 0), (4096, 0), (4096, 3)][..]),
            (12288, &[(4096, 3)]),
            // Longer than asked, which the protocol allows for the last range.
            (16384, &[(4096, 0), (u32::MAX, 2)]),
        ] {
            let asked = peer.requests(1)[0];
            assert_eq!((asked.offset, u64::from(asked.len)), (at, 65536 - at));
            peer.status(DONE, asked.cookie, 1, pairs);
        }
    });
    let spans = walk(&mut client, 0, 65536).unwrap();
    assert_eq!(
        spans,
        [
            span(0, 8192, 0),
            span(8192, 8192, 3),
            span(16384, 4096, 0),
            span(20480, 45056, 2)
        ]
    );
    server.join().unwrap();
}

#[test]
fn requests_are_aligned_and_answers_cut_to_what_was_asked() {
    let blocks = Some([4096, 4096, 1 << 20]);
    let (mut client, server) = serve_as(&[BASE], SIZE, blocks, |peer| {
        let asked = peer.requests(1)[0];
        assert_eq!((asked.offset, asked.len), (4096, 8192));
        // The second range begins inside a block, so the next request begins before it.
        peer.status(DONE, asked.cookie, 1, &[(100, 1), (900, 0), (3200, 1)]);
        let asked = peer.requests(1)[0];
        assert_eq!((asked.offset, asked.len), (8192, 4096));
        peer.status(DONE, asked.cookie, 1, &[(50, 5), (150, 6), (4000, 7)]);
    });
    let spans = walk(&mut client, 5000, 5000).unwrap();
    assert_eq!(
        spans,
        [
            span(5000, 96, 0),
            span(5096, 3200, 1),
            span(8296, 96, 6),
            span(8392, 1608, 7)
        ]
    );
    server.join().unwrap();
}

#[test]
fn no_request_is_longer_than_a_gibibyte() {
    let size = 5 << 30;
    let (mut client, server) = serve_as(&[BASE], size, None, |peer| {
        while let Some(asked) = peer.request() {
            assert!(asked.len <= 1 << 30);
            peer.status(DONE, asked.cookie, 1, &[(asked.len, 3)]);
        }
    });
    assert_eq!(walk(&mut client, 0, size).unwrap(), [span(0, size, 3)]);
    drop(client);
    server.join().unwrap();
}

#[test]
fn answers_of_other_contexts_are_put_aside() {
    let (mut client, server) = serve_as(&[BASE, DIRTY], SIZE, None, |peer| {
        for _ in 0..2 {
            let asked = peer.requests(1)[0];
            peer.status(0, asked.cookie, 1, &[(asked.len, 3)]);
            peer.status(DONE, asked.cookie, 2, &[(4096, 1), (asked.len, 0)]);
        }
    });
    assert_eq!(walk(&mut client, 0, SIZE).unwrap(), [span(0, SIZE, 3)]);
    let dirty: Result<Vec<_>, _> = client.extents(DIRTY, 0, SIZE).unwrap().collect();
    assert_eq!(
        dirty.unwrap(),
        [span(0, 4096, 1), span(4096, SIZE - 4096, 0)]
    );
    assert!(matches!(
        client.extents("base:other", 0, 1),
        Err(Error::NoContext { .. })
    ));
    assert!(matches!(
        client.extents(BASE, SIZE, 1),
        Err(Error::BadRange { .. })
    ));
    server.join().unwrap();
}

#[test]
fn statuses_that_make_no_sense_are_refused() {
    let protocol = |error: Error| assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    protocol(refused(|peer, asked| {
        peer.status(DONE, asked.cookie, 1, &[(0, 0), (4096, 0)])
    }));
    protocol(refused(|peer, asked| {
        peer.status(DONE, asked.cookie, 1, &[])
    }));
    protocol(refused(|peer, asked| {
        peer.status(DONE, asked.cookie, 3, &[(4096, 0)])
    }));
    protocol(refused(|peer, asked| {
        peer.status(DONE, asked.cookie, 2, &[(4096, 0)])
    }));
    protocol(refused(|peer, asked| {
        peer.status(DONE, asked.cookie + 1, 1, &[(4096, 0)])
    }));
    protocol(refused(|peer, asked| {
        peer.chunk(DONE, STATUS, asked.cookie, &[0; 11])
    }));
    protocol(refused(|peer, asked| {
        peer.chunk(DONE, NONE, asked.cookie, &[])
    }));
    protocol(refused(|peer, asked| peer.simple(0, asked.cookie)));
    protocol(refused(|peer, asked| {
        peer.status(0, asked.cookie, 1, &[(4096, 0)]);
        peer.status(DONE, asked.cookie, 1, &[(4096, 0)]);
    }));
    protocol(refused(|peer, asked| {
        // Only the head: whoever waits for 4 GiB of ranges would time out.
        peer.raw(&chunk_head(DONE, STATUS, asked.cookie, u32::MAX - 3));
        peer.request();
    }));
    // A range that ends inside a block, and the same answer again: no progress.
    protocol(refused(|peer, asked| {
        peer.status(DONE, asked.cookie, 1, &[(100, 0)]);
        let again = peer.requests(1)[0];
        peer.status(DONE, again.cookie, 1, &[(100, 0)]);
    }));
    let error = refused(|peer, asked| peer.error(asked.cookie, 22, "no"));
    assert_eq!(error.server_error(), Some(nbd::ServerError::Invalid));
}

#[test]
fn what_came_before_an_error_is_given_out_and_then_the_walk_ends() {
    let (mut client, server) = serve(|peer| {
        let asked = peer.requests(1)[0];
        peer.status(DONE, asked.cookie, 1, &[(4096, 0)]);
        let asked = peer.requests(1)[0];
        peer.error(asked.cookie, 5, "");
    });
    let mut walk = client.extents(BASE, 0, SIZE).unwrap();
    assert_eq!(walk.next().unwrap().unwrap(), span(0, 4096, 0));
    assert!(walk.next().unwrap().is_err());
    assert!(walk.next().is_none());
    server.join().unwrap();
}

/// Answers every block status with ranges of `step` bytes whose flags alternate.
fn alternating(peer: &mut Peer, step: u64, first: u32, second: u32) -> usize {
    let mut asked_for = 0;
    while let Some(asked) = peer.request() {
        asked_for += 1;
        let mut pairs = Vec::new();
        let (mut at, end) = (asked.offset, asked.offset + u64::from(asked.len));
        // As QEMU does: a reply has a limited number of ranges.
        while at < end && pairs.len() < 131_072 {
            let len = step - at % step;
            let flags = if (at / step).is_multiple_of(2) {
                first
            } else {
                second
            };
            pairs.push((len as u32, flags));
            at += len;
        }
        peer.status(DONE, asked.cookie, 1, &pairs);
    }
    asked_for
}

#[test]
fn a_million_dirty_ranges_are_planned_in_two_seconds() {
    const STEP: u64 = 64 << 10;
    const SIZE: u64 = 2_000_000 * STEP;
    let (mut bitmap, one) = serve_as(&[DIRTY], SIZE, None, |peer| {
        alternating(peer, STEP, 1, 0);
    });
    let (mut base, two) = serve_as(&[BASE], SIZE, None, |peer| {
        alternating(peer, STEP * 8, 0, 3);
    });
    let start = Instant::now();
    let dirty = bitmap.extents(DIRTY, 0, SIZE).unwrap();
    let (mut data, mut zero) = (0_u64, 0_u64);
    for extent in base.changed(dirty) {
        let extent = extent.unwrap();
        assert_eq!(extent.len, STEP);
        match extent.kind {
            nbd::Kind::Data => data += 1,
            nbd::Kind::Zero => zero += 1,
        }
    }
    let took = start.elapsed();
    assert_eq!((data, zero), (500_000, 500_000));
    // Without optimisation only the order of growth can be judged.
    let limit = if cfg!(debug_assertions) { 30 } else { 2 };
    assert!(took < Duration::from_secs(limit), "{took:?}");
    drop((bitmap, base));
    one.join().unwrap();
    two.join().unwrap();
}

#[test]
fn only_the_neighbourhood_of_dirty_ranges_is_asked_about() {
    const GIB: u64 = 1 << 30;
    let (mut base, server) = serve_as(&[BASE], 100 * GIB, None, |peer| {
        // Two ranges in one question, one far away alone, one long one in two pieces.
        for (offset, len) in [
            (4096, 69632),
            (50 * GIB, 4096),
            (60 * GIB, GIB),
            (61 * GIB, GIB / 2),
        ] {
            let asked = peer.requests(1)[0];
            assert_eq!((asked.offset, u64::from(asked.len)), (offset, len));
            peer.status(DONE, asked.cookie, 1, &[(4096, 2), (asked.len, 0)]);
        }
        assert!(peer.request().is_none());
    });
    let dirty = [
        span(4096, 4096, 1),
        span(8192, 57344, 0),
        span(65536, 8192, 1),
        span(50 * GIB, 4096, 1),
        span(60 * GIB, GIB + GIB / 2, 1),
    ];
    let dirty = dirty.into_iter().map(Ok::<_, Error>);
    let plan: Result<Vec<_>, _> = base.changed(dirty).collect();
    assert_eq!(
        plan.unwrap(),
        [
            Extent::zero(4096, 4096),
            Extent::data(65536, 8192),
            Extent::zero(50 * GIB, 4096),
            Extent::zero(60 * GIB, 4096),
            Extent::data(60 * GIB + 4096, GIB - 4096),
            Extent::zero(61 * GIB, 4096),
            Extent::data(61 * GIB + 4096, GIB / 2 - 4096),
        ]
    );
    drop(base);
    server.join().unwrap();
}

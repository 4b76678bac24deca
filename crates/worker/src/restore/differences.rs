//! Where a disk that came back differs from what its job recorded.
//!
//! The root says only that it does. The job's own map knows where, if it is still on this host.

use std::path::Path;

use blockmap::{BLOCK, Error, Key, Map, MapWriter, Root};

/// Says in a few words which blocks differ from the map of the job that wrote the part `part`;
/// nothing if that map is not in `maps` any more. The disk must have the size that was recorded.
pub(super) fn describe(
    maps: &Path,
    key: &Key,
    part: u64,
    root: Root,
    found: &mut MapWriter,
) -> Option<String> {
    let entries = std::fs::read_dir(maps).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut recorded = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "map"))
        .filter_map(|path| Map::open(&path, key).ok())
        .find(|map| map.header().part_id == part && map.root() == root)?;
    // A map that cannot be read explains nothing; the root has its say anyway.
    let (count, first) = count(&mut recorded, found).ok()?;
    Some(format!(
        "blocks that differ: {count}, the first at byte {}",
        first? * BLOCK as u64
    ))
}

/// How many blocks differ, and which is the first.
fn count(recorded: &mut Map, found: &mut MapWriter) -> Result<(u64, Option<u64>), Error> {
    let (mut count, mut first) = (0, None);
    let mut from = 0;
    while let Some(range) = found.next_difference(recorded, from)? {
        count += range.end - range.start;
        first.get_or_insert(range.start);
        from = range.end;
    }
    Ok((count, first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockmap::Header;

    #[test]
    fn blocks_are_named_when_the_map_of_the_job_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::random().unwrap();
        let map = |name: &str, third: u64| {
            let header = Header {
                job: "web01.1".into(),
                full_read: "web01.1".into(),
                trusting: 0,
                part_id: 7,
                delta_seq: 0,
                identity: "vda".into(),
                size: 1 << 20,
            };
            let mut map = MapWriter::create(&dir.path().join(name), &key, header).unwrap();
            map.set(0, &[1, 2, third]).unwrap();
            map
        };
        let root = map("web01.1-vda.map", 3).seal().unwrap();
        let say =
            |part: u64, mut found: MapWriter| describe(dir.path(), &key, part, root, &mut found);
        let said = say(7, map("found", 4)).unwrap();
        assert_eq!(said, "blocks that differ: 1, the first at byte 8192");
        assert_eq!(say(8, map("found", 4)), None);
    }
}

//! How sizes, times and names are shown to people.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// A size with a binary unit and three digits.
pub(crate) fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut value = size as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

/// An instant of the catalog, which keeps UTC; `None` for one that has not come.
pub(crate) fn instant(text: &str) -> Option<Timestamp> {
    let civil = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).ok()?;
    let zoned = civil.to_zoned(TimeZone::UTC).ok()?;
    Some(zoned.timestamp())
}

/// An instant in local time with its zone.
pub(crate) fn local(instant: Timestamp) -> String {
    let zoned: Zoned = instant.to_zoned(TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M %Z").to_string()
}

/// How long something took or is ago.
pub(crate) fn seconds(seconds: i64) -> String {
    match seconds {
        ..0 => "in the future".into(),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Names that `wrong` may have been meant to be, at most three, best first.
pub(crate) fn near<'n>(wrong: &str, names: &'n [String]) -> Vec<&'n str> {
    let wrong = wrong.to_ascii_lowercase();
    let limit = 1 + wrong.chars().count() / 3;
    let mut close: Vec<(usize, &str)> = names
        .iter()
        .map(|name| (distance(&wrong, &name.to_ascii_lowercase()), name.as_str()))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    close.sort();
    close.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Letters to insert, remove or replace to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((y, pair), left) in b.iter().zip(row.windows(2)).zip(1..) {
            let replaced = pair.first().copied().unwrap_or(0) + usize::from(x != *y);
            let removed = pair.last().copied().unwrap_or(0) + 1;
            let inserted = next.get(left - 1).copied().unwrap_or(0) + 1;
            next.push(replaced.min(removed).min(inserted));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536 << 20, "1.50 GiB"),
            (999 << 20, "999 MiB"),
            (100 << 30, "100 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn the_catalogs_clock_is_utc() {
        assert_eq!(instant("1970-01-01 00:01:00").unwrap().as_second(), 60);
        for text in ["", "0000-00-00 00:00:00", "x", "2026-13-01 00:00:00"] {
            assert_eq!(instant(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_slip_of_the_finger_is_near_and_a_stranger_is_not() {
        let names = ["web01", "web02", "vpn-gateway", "db"].map(String::from);
        assert_eq!(near("web1", &names), ["web01", "web02"]);
        assert_eq!(near("VPN-gatway", &names), ["vpn-gateway"]);
        assert!(near("mail", &names).is_empty());
        assert!(near(&"x".repeat(200), &names).is_empty());
    }
}

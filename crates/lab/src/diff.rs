//! What changes in a text, line by line.

/// Lines that are shown of one change; the rest is counted.
const SHOWN: usize = 24;

/// The changed lines, each with `-` or `+` in front. Unchanged lines are left out.
pub(crate) fn lines(before: &str, after: &str) -> Vec<String> {
    let old: Vec<&str> = before.lines().collect();
    let new: Vec<&str> = after.lines().collect();
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (
        old.get(head..).unwrap_or(&[]),
        new.get(head..).unwrap_or(&[]),
    );
    let tail = old.iter().rev().zip(new.iter().rev());
    let tail = tail.take_while(|(a, b)| a == b).count();
    let old = old.get(..old.len() - tail).unwrap_or(&[]);
    let new = new.get(..new.len() - tail).unwrap_or(&[]);
    // Files are small and their changes smaller; beyond that the order of lines tells nobody much.
    let mut shown = if old.len() * new.len() <= 1 << 20 {
        common(old, new)
    } else {
        let removed = old.iter().map(|l| format!("- {l}"));
        removed
            .chain(new.iter().map(|l| format!("+ {l}")))
            .collect()
    };
    if shown.len() > SHOWN {
        let more = shown.len() - SHOWN;
        shown.truncate(SHOWN);
        shown.push(format!("  … {more} more lines"));
    }
    shown
}

/// A shortest change, from the table of longest common subsequences.
fn common(old: &[&str], new: &[&str]) -> Vec<String> {
    let width = new.len() + 1;
    let mut table = vec![0u32; (old.len() + 1) * width];
    let at = |table: &[u32], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or(0);
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            let value = if a == b {
                at(&table, i + 1, j + 1) + 1
            } else {
                at(&table, i + 1, j).max(at(&table, i, j + 1))
            };
            if let Some(cell) = table.get_mut(i * width + j) {
                *cell = value;
            }
        }
    }
    let mut shown = Vec::new();
    let (mut i, mut j) = (0, 0);
    loop {
        match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => (i, j) = (i + 1, j + 1),
            (Some(a), b) if b.is_none() || at(&table, i + 1, j) >= at(&table, i, j + 1) => {
                shown.push(format!("- {a}"));
                i += 1;
            }
            (_, Some(b)) => {
                shown.push(format!("+ {b}"));
                j += 1;
            }
            _ => return shown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn only_what_changed_is_shown() {
        assert_eq!(
            lines("a\nb\nc\nd\n", "a\nx\nc\nd\ne\n"),
            ["- b", "+ x", "+ e"]
        );
        assert_eq!(lines("", "a\n"), ["+ a"]);
        assert_eq!(lines("a\n", ""), ["- a"]);
        assert!(lines("a\nb", "a\nb").is_empty());
    }

    #[test]
    fn a_long_change_is_cut() {
        let after: String = (0..100).map(|n| format!("{n}\n")).collect();
        let shown = lines("", &after);
        assert_eq!(shown.len(), 25);
        assert_eq!(shown[24], "  … 76 more lines");
    }
}

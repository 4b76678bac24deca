//! When jobs run: the sentence in `lab.toml`, Bacula's words for it, and its longest gap.
//!
//! Times are UTC, like everything the Director and the catalog keep.

use std::fmt;

const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const ORDINALS: [&str; 5] = ["1st", "2nd", "3rd", "4th", "5th"];

/// Weekdays that a month can have, each as often as it can.
pub(crate) const DAYS_OF_MONTH: usize = ORDINALS.len() * DAYS.len();

/// A mean month of 30.4 days, in the unit of [`Cycle::per_month`]: a daily job runs that often.
pub(crate) const MONTH: u32 = 7 * (4 * EACH + FIFTH);
/// A weekday that every month has, such as the first Sunday.
const EACH: u32 = 70;
/// One that only some have: 30.4 days are 4 weeks and 2.4 days.
const FIFTH: u32 = 24;

/// Every weekday of a month, as nth and day, both from 0.
pub(crate) fn days_of_month() -> impl Iterator<Item = (usize, usize)> {
    (0..ORDINALS.len()).flat_map(|nth| (0..DAYS.len()).map(move |day| (nth, day)))
}

/// Such as `1st sun`.
pub(crate) fn day_name(nth: usize, day: usize) -> String {
    let name = |words: &[&'static str], at: usize| words.get(at).copied().unwrap_or("?");
    format!("{} {}", name(&ORDINALS, nth), name(&DAYS, day))
}

/// A repeating moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cycle {
    /// How often.
    pub(crate) every: Every,
    /// Hour of the day, UTC.
    pub(crate) hour: u8,
    /// Minute of the hour.
    pub(crate) minute: u8,
}

/// How often something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Every {
    /// Each day.
    Day,
    /// Once a week; 0 is Sunday.
    Week(usize),
    /// Once a month, on the nth weekday; both count from 0.
    Month(usize, usize),
}

/// A sentence that is not a schedule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotASchedule;

impl Cycle {
    /// Reads `daily 01:00`, `weekly sun 01:00` or `monthly 1st sun 01:00`; `never` is `None`.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, NotASchedule> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (every, time) = match words.as_slice() {
            ["never"] => return Ok(None),
            ["daily", time] => (Every::Day, time),
            ["weekly", day, time] => (Every::Week(index(&DAYS, day)?), time),
            ["monthly", nth, day, time] => (
                // A fifth weekday is missing from most months.
                Every::Month(index(&ORDINALS[..4], nth)?, index(&DAYS, day)?),
                time,
            ),
            _ => return Err(NotASchedule),
        };
        let (hour, minute) = time.split_once(':').ok_or(NotASchedule)?;
        let number = |text: &str, below: u8| {
            let plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            let value: u8 = text.parse().map_err(|_| NotASchedule)?;
            (plain && value < below)
                .then_some(value)
                .ok_or(NotASchedule)
        };
        Ok(Some(Self {
            every,
            hour: number(hour, 24)?,
            minute: number(minute, 60)?,
        }))
    }

    /// Longest gap between two runs, in days.
    pub(crate) fn gap_days(self) -> u32 {
        match self.every {
            Every::Day => 1,
            Every::Week(_) => 7,
            Every::Month(..) => 35,
        }
    }

    /// Bacula's `Run` times, without the days on which `other` (a more thorough level) runs.
    ///
    /// Two jobs of one VM on one evening would be duplicates, and the lesser one would be lost.
    pub(crate) fn runs(self, others: &[Cycle]) -> Vec<String> {
        let at = format!("at {:02}:{:02}", self.hour, self.minute);
        let mut lines = Vec::new();
        for (day, name) in DAYS.iter().enumerate() {
            let mut weeks: Vec<bool> = (0..5).map(|nth| self.falls_on(nth, day)).collect();
            for other in others {
                for (nth, week) in weeks.iter_mut().enumerate() {
                    *week &= !other.falls_on(nth, day);
                }
            }
            if weeks.iter().all(|&w| w) {
                lines.push(format!("{name} {at}"));
            } else if weeks.iter().any(|&w| w) {
                let nths: Vec<_> = ORDINALS
                    .iter()
                    .zip(&weeks)
                    .filter_map(|(nth, &week)| week.then_some(*nth))
                    .collect();
                lines.push(format!("{} {name} {at}", nths.join(",")));
            }
        }
        lines
    }

    /// How often it runs in a month, without the days on which `others` run, as a part of [`MONTH`].
    pub(crate) fn per_month(self, others: &[Cycle]) -> u32 {
        days_of_month()
            .filter(|&(nth, day)| self.falls_on(nth, day))
            .filter(|&(nth, day)| !others.iter().any(|other| other.falls_on(nth, day)))
            .map(|(nth, _)| if nth < 4 { EACH } else { FIFTH })
            .sum()
    }

    /// Does it run on that weekday of a month? Both count from 0.
    pub(crate) fn falls_on(self, nth: usize, day: usize) -> bool {
        match self.every {
            Every::Day => true,
            Every::Week(own) => own == day,
            Every::Month(own_nth, own) => own_nth == nth && own == day,
        }
    }
}

fn index(words: &[&str], word: &str) -> Result<usize, NotASchedule> {
    words.iter().position(|w| *w == word).ok_or(NotASchedule)
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |words: &[&'static str], at: usize| words.get(at).copied().unwrap_or("?");
        match self.every {
            Every::Day => write!(f, "daily")?,
            Every::Week(day) => write!(f, "weekly {}", name(&DAYS, day))?,
            Every::Month(nth, day) => write!(f, "monthly {}", day_name(nth, day))?,
        }
        write!(f, " {:02}:{:02}", self.hour, self.minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(text: &str) -> Cycle {
        Cycle::parse(text).unwrap().unwrap()
    }

    #[test]
    fn sentences_survive_being_read_and_written() {
        for text in ["daily 01:00", "weekly sun 23:59", "monthly 4th sat 00:00"] {
            assert_eq!(cycle(text).to_string(), text);
        }
        assert_eq!(Cycle::parse("never"), Ok(None));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "daily",
            "daily 24:00",
            "daily 1:00",
            "daily +1:00",
            "weekly 01:00",
            "weekly Sunday 01:00",
            "monthly 5th sun 01:00",
            "monthly sun 01:00",
            "daily 01:00\nRun = x",
        ] {
            assert_eq!(Cycle::parse(text), Err(NotASchedule), "{text:?}");
        }
    }

    #[test]
    fn a_month_has_its_days_and_no_day_twice() {
        let daily = cycle("daily 01:00");
        let weekly = cycle("weekly sun 01:00");
        let monthly = cycle("monthly 1st sun 01:00");
        assert_eq!(days_of_month().count(), DAYS_OF_MONTH);
        assert_eq!(daily.per_month(&[]), MONTH);
        assert_eq!(weekly.per_month(&[]) * 7, MONTH);
        // Once in 30.4 days.
        assert_eq!(monthly.per_month(&[]) * 304, MONTH * 10);
        assert_eq!(daily.per_month(&[weekly, monthly]) * 7, MONTH * 6);
        assert_eq!(weekly.per_month(&[daily]), 0);
    }

    #[test]
    fn a_lesser_level_leaves_out_the_day_of_a_greater_one() {
        let full = cycle("weekly sun 01:00");
        let runs = cycle("daily 02:30").runs(&[full]);
        assert_eq!(runs.len(), 6);
        assert!(runs.iter().all(|r| !r.contains("sun")), "{runs:?}");

        let full = cycle("monthly 1st sun 01:00");
        let runs = cycle("weekly sun 01:00").runs(&[full]);
        assert_eq!(runs, ["2nd,3rd,4th,5th sun at 01:00"]);
    }
}

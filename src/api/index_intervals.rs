//! The indexes of an Indexed Job in their text form, such as `1,3-5,7` (`JobStatus.completedIndexes` of the API reference).

use std::fmt;

/// Ascending intervals of indexes that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexIntervals(Vec<(i32, i32)>);

impl IndexIntervals {
    /// Reads what a controller once wrote: nonsense is left out, and so is what lies at or beyond `completions`.
    pub fn parse_lenient(text: &str, completions: i32) -> Self {
        let mut found = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                found.add(first.max(0), last.min(completions.saturating_sub(1)));
            }
        }
        found
    }

    /// Reads what somebody wrote. Returns it with its number of indexes.
    ///
    /// # Errors
    /// Why it is no such text (`validateIndexesFormat`).
    pub fn parse_strict(text: &str, completions: i32) -> Result<Self, String> {
        let (mut found, mut last) = (Self::default(), None::<i32>);
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (x, y) = interval(part, completions)?;
            if let Some(last) = last.filter(|last| *last >= x) {
                return Err(format!("non-increasing order, previous: {last}, current: {x}"));
            }
            found.add(x, y);
            last = Some(y);
        }
        Ok(found)
    }

    /// Adds the indexes from `first` to `last`; none when `last` is smaller.
    pub fn add(&mut self, first: i32, last: i32) {
        if last < first {
            return;
        }
        let from = self.0.partition_point(|(_, end)| i64::from(*end) + 1 < i64::from(first));
        let to = self.0.partition_point(|(start, _)| i64::from(*start) <= i64::from(last) + 1);
        let touched = &self.0[from..to];
        let first = touched.first().map_or(first, |(start, _)| first.min(*start));
        let last = touched.last().map_or(last, |(_, end)| last.max(*end));
        self.0.splice(from..to, [(first, last)]);
    }

    /// Both together.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        other.0.iter().for_each(|(first, last)| all.add(*first, *last));
        all
    }

    /// Whether the index is in it.
    pub fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, end)| *end < index);
        self.0.get(at).is_some_and(|(start, _)| *start <= index)
    }

    /// How many indexes there are.
    pub fn count(&self) -> i32 {
        let sum: i64 = self.0.iter().map(|(first, last)| i64::from(*last) - i64::from(*first) + 1).sum();
        i32::try_from(sum).unwrap_or(i32::MAX)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest index that is in both.
    pub fn first_common(&self, other: &Self) -> Option<i32> {
        let common = |(x, y): &(i32, i32)| {
            let at = other.0.partition_point(|(_, end)| end < x);
            other.0.get(at).filter(|(start, _)| start <= y).map(|(start, _)| *start.max(x))
        };
        self.0.iter().find_map(common)
    }

    /// How many indexes are in both.
    pub fn common_count(&self, other: &Self) -> i32 {
        let overlap = |(a, b): &(i32, i32), (c, d): &(i32, i32)| (b.min(d) - a.max(c) + 1).max(0);
        self.0.iter().map(|own| other.0.iter().map(|their| overlap(own, their)).sum::<i32>()).sum()
    }

    /// The first `count` indexes below `completions` that are not in it.
    pub fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let (mut found, mut candidate) = (Vec::new(), 0);
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            while candidate < first.min(completions) && found.len() < count {
                found.push(candidate);
                candidate += 1;
            }
            candidate = candidate.max(last.saturating_add(1));
        }
        found
    }
}

impl FromIterator<i32> for IndexIntervals {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        let mut all = Self::default();
        indexes.into_iter().for_each(|index| all.add(index, index));
        all
    }
}

impl fmt::Display for IndexIntervals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

fn interval(text: &str, completions: i32) -> Result<(i32, i32), String> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let number = |part: &str| -> Result<i32, String> {
        let number: i64 = part.parse().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if number >= completions.into() {
            return Err(format!("too large index: {part:?}"));
        }
        i32::try_from(number).map_err(|_| format!("cannot convert string to integer for index: {part:?}"))
    };
    let x = number(parts[0])?;
    let Some(second) = parts.get(1) else { return Ok((x, x)) };
    let y = number(second)?;
    if x >= y { Err(format!("non-increasing order, previous: {x}, current: {y}")) } else { Ok((x, y)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lenient(text: &str) -> String {
        IndexIntervals::parse_lenient(text, 100).to_string()
    }

    #[test]
    fn what_was_written_is_read_and_compressed() {
        // indexed_job_utils_test.go
        assert_eq!(lenient(""), "");
        assert_eq!(lenient("0-3,7-9"), "0-3,7-9");
        assert_eq!(lenient("4,5,6,8"), "4-6,8");
        assert_eq!(lenient("0,1"), "0,1");
        assert_eq!(lenient("0,foo,2-bar,5"), "0,5");
        assert_eq!(IndexIntervals::parse_lenient("0-9,20", 8).to_string(), "0-7");
    }

    #[test]
    fn strict_texts_are_refused_with_their_reason() {
        let why = |text: &str| IndexIntervals::parse_strict(text, 10).map(|found| found.count());
        assert_eq!(why("0,2-5"), Ok(5));
        assert_eq!(why("3,3"), Err("non-increasing order, previous: 3, current: 3".into()));
        assert_eq!(why("5-2"), Err("non-increasing order, previous: 5, current: 2".into()));
        assert_eq!(why("10"), Err("too large index: \"10\"".into()));
        assert_eq!(why("a"), Err("cannot convert string to integer for index: \"a\"".into()));
        assert!(why("1-2-3").expect_err("three parts").contains("at most two parts"));
        assert!(why("1,").is_err() && why("-1").is_err());
    }

    #[test]
    fn what_is_missing_is_found_in_order() {
        let done: IndexIntervals = [1, 2, 5].into_iter().collect();
        assert_eq!(done.missing(3, 8), [0, 3, 4]);
        assert_eq!(done.missing(9, 8), [0, 3, 4, 6, 7]);
        assert_eq!(done.missing(1, 0), Vec::<i32>::new());
        let other: IndexIntervals = [2, 3, 5, 9].into_iter().collect();
        assert_eq!((done.common_count(&other), done.first_common(&other)), (2, Some(2)));
    }

    proptest! {
        #[test]
        fn they_behave_as_sets(indexes in proptest::collection::vec(0i32..40, 0..60), others in proptest::collection::vec(0i32..40, 0..60)) {
            use std::collections::BTreeSet;
            let (a, b): (BTreeSet<i32>, BTreeSet<i32>) = (indexes.iter().copied().collect(), others.iter().copied().collect());
            let (x, y): (IndexIntervals, IndexIntervals) = (indexes.into_iter().collect(), others.into_iter().collect());
            prop_assert_eq!(x.count() as usize, a.len());
            prop_assert!((0..40).all(|index| x.contains(index) == a.contains(&index)));
            prop_assert_eq!(x.union(&y).count() as usize, a.union(&b).count());
            prop_assert_eq!(x.common_count(&y) as usize, a.intersection(&b).count());
            prop_assert_eq!(x.first_common(&y), a.intersection(&b).next().copied());
            prop_assert_eq!(&IndexIntervals::parse_strict(&x.to_string(), 40), &Ok(x.clone()));
            let missing: Vec<i32> = (0..40).filter(|index| !a.contains(index)).collect();
            prop_assert_eq!(x.missing(40, 40), missing);
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}") {
            let _ = IndexIntervals::parse_strict(&text, 7);
            let _ = IndexIntervals::parse_lenient(&text, 7).to_string();
        }
    }
}

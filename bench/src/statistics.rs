//! Median, best, spread and ratio of a few samples.

/// Which end of the scale is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Times, memory.
    Lower,
    /// Bandwidths.
    Higher,
}

/// What is said of the samples of one cell.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Summary {
    /// The middle sample, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The best sample.
    pub(crate) best: f64,
    /// How far the samples lie apart: (largest - smallest) / median.
    pub(crate) spread: f64,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64], better: Better) -> Option<Summary> {
        let median = median(samples)?;
        let smallest = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let best = if better == Better::Lower { smallest } else { largest };
        let spread = if median == 0.0 { 0.0 } else { (largest - smallest) / median };
        Some(Summary { median, best, spread })
    }
}

/// The middle sample, or the mean of the two in the middle; `None` without samples.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// `mine` in units of `reference`: the median of the ratios within each round, which a machine that becomes slower from
/// round to round does not move. Rounds in which either is missing do not count, nor do references of zero.
pub(crate) fn ratio(mine: &[Option<f64>], reference: &[Option<f64>]) -> Option<f64> {
    let ratios: Vec<f64> = mine
        .iter()
        .zip(reference)
        .filter_map(|(mine, reference)| Some((*mine)? / (*reference).filter(|value| *value != 0.0)?))
        .collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_whatever_the_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_wild_sample_does_not_move_the_median() {
        assert_eq!(median(&[1.0, 1.1, 1.2, 1.1, 500.0]), Some(1.1));
    }

    #[test]
    fn best_is_the_smallest_time_and_the_largest_bandwidth() {
        let samples = [4.0, 2.0, 3.0];
        let time = Summary { median: 3.0, best: 2.0, spread: 2.0 / 3.0 };
        assert_eq!(Summary::of(&samples, Better::Lower), Some(time));
        assert_eq!(Summary::of(&samples, Better::Higher), Some(Summary { best: 4.0, ..time }));
        assert_eq!(Summary::of(&[], Better::Lower), None);
    }

    #[test]
    fn equal_samples_have_no_spread() {
        assert_eq!(Summary::of(&[2.0, 2.0], Better::Lower).map(|summary| summary.spread), Some(0.0));
        assert_eq!(Summary::of(&[0.0, 0.0], Better::Lower).map(|summary| summary.spread), Some(0.0));
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // The machine becomes ten times slower; the ratio of the medians would be anything but 2.
        let reference = [Some(1.0), Some(3.0), Some(10.0)];
        let mine = [Some(2.0), Some(6.0), Some(20.0)];
        assert_eq!(ratio(&mine, &reference), Some(2.0));
    }

    #[test]
    fn a_round_without_one_of_both_does_not_count() {
        assert_eq!(ratio(&[Some(2.0), None, Some(9.0)], &[Some(1.0), Some(1.0), None]), Some(2.0));
        assert_eq!(ratio(&[Some(2.0)], &[Some(0.0)]), None);
        assert_eq!(ratio(&[None], &[Some(1.0)]), None);
    }
}

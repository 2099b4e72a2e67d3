//! How long work takes on a device that is slower than the host.

use std::time::Duration;

/// Rates of the device; none: as fast as the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Throttle {
    /// 10^12 operations, of which a multiplication with an addition is two, in a second.
    pub tops: Option<f64>,
    /// 10^9 bytes to and from memory in a second.
    pub gbps: Option<f64>,
}

impl Throttle {
    /// The least time for so many operations and bytes, which overlap.
    pub fn time(&self, operations: u64, bytes: u64) -> Duration {
        let seconds = |amount: u64, rate: Option<f64>, unit: f64| match rate {
            Some(rate) if rate > 0.0 => amount as f64 / (rate * unit),
            _ => 0.0,
        };
        let seconds = seconds(operations, self.tops, 1e12).max(seconds(bytes, self.gbps, 1e9));
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_both_counts() {
        let throttle = Throttle { tops: Some(2.0), gbps: Some(10.0) };
        assert_eq!(throttle.time(4_000_000, 10), Duration::from_micros(2));
        assert_eq!(throttle.time(4_000_000, 50_000), Duration::from_micros(5));
        assert_eq!(Throttle::default().time(u64::MAX, u64::MAX), Duration::ZERO);
        assert_eq!(Throttle { tops: Some(1e-300), gbps: None }.time(u64::MAX, 0), Duration::MAX);
    }
}

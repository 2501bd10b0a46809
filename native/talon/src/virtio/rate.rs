//! Token buckets (Firecracker's model): `size` tokens, full again after `refill_time`, and a burst that is given once.

use std::time::{Duration, Instant};

use crate::config::{BucketConfig, RateConfig};

/// One bucket.
#[derive(Debug, Clone)]
struct Bucket {
    config: BucketConfig,
    tokens: u64,
    burst: u64,
    filled: Instant,
}

const NANOSECONDS_PER_MS: u128 = 1_000_000;

impl Bucket {
    fn new(config: BucketConfig, now: Instant) -> Self {
        Self {
            config,
            tokens: config.size,
            burst: config.one_time_burst,
            filled: now,
        }
    }

    fn period_ns(&self) -> u128 {
        u128::from(self.config.refill_time_ms) * NANOSECONDS_PER_MS
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        let gained = elapsed.as_nanos() * u128::from(self.config.size) / self.period_ns();
        if gained == 0 {
            return;
        }
        let gained = u64::try_from(gained).unwrap_or(u64::MAX);
        self.tokens = self.tokens.saturating_add(gained).min(self.config.size);
        if self.tokens == self.config.size {
            self.filled = now;
        } else {
            // Only the time that became tokens is spent, or a fast caller would never be given any.
            let spent = u128::from(gained) * self.period_ns() / u128::from(self.config.size);
            self.filled += Duration::from_nanos(u64::try_from(spent).unwrap_or(u64::MAX));
        }
    }

    /// When `wanted` tokens can be taken. A request larger than the bucket is let through a full one, and the bucket
    /// stays in debt for it by emptying.
    fn ready_at(&mut self, wanted: u64, now: Instant) -> Option<Instant> {
        self.fill(now);
        let needed = wanted.min(self.config.size);
        let have = self.tokens.saturating_add(self.burst);
        if have >= needed {
            return None;
        }
        let missing = u128::from(needed - have);
        let wait = (missing * self.period_ns()).div_ceil(u128::from(self.config.size));
        Some(self.filled + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, wanted: u64) {
        let from_burst = wanted.min(self.burst);
        self.burst -= from_burst;
        self.tokens = self.tokens.saturating_sub(wanted - from_burst);
    }
}

/// The limits of a device.
#[derive(Debug, Clone)]
pub struct Limiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Limiter {
    /// Full buckets.
    #[must_use]
    pub fn new(config: &RateConfig) -> Self {
        let now = Instant::now();
        let bucket = |config: Option<BucketConfig>| config.map(|config| Bucket::new(config, now));
        Self {
            bandwidth: bucket(config.bandwidth),
            ops: bucket(config.ops),
        }
    }

    /// Takes one request of `bytes`, or tells when to try again; then nothing was taken.
    ///
    /// # Errors
    /// With the time at which it would succeed.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let bandwidth = self
            .bandwidth
            .as_mut()
            .and_then(|bucket| bucket.ready_at(bytes, now));
        let ops = self.ops.as_mut().and_then(|bucket| bucket.ready_at(1, now));
        if let Some(at) = bandwidth.max(ops) {
            return Err(at);
        }
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.take(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limiter(size: u64, burst: u64, refill_time_ms: u64) -> Limiter {
        let bandwidth = Some(BucketConfig {
            size,
            one_time_burst: burst,
            refill_time_ms,
        });
        Limiter::new(&RateConfig {
            bandwidth,
            ops: None,
        })
    }

    #[test]
    fn no_limit_is_no_wait() {
        let mut limiter = Limiter::new(&RateConfig::default());

        assert_eq!(limiter.take(u64::MAX, Instant::now()), Ok(()));
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_when_it_is_full() {
        let mut limiter = limiter(10, 0, 1000);
        let now = Instant::now();

        assert_eq!(limiter.take(1000, now), Ok(()));
        assert!(limiter.take(1, now).is_err());
    }

    proptest! {
        #[test]
        fn what_passes_never_exceeds_the_rate(
            size in 1u64..100_000,
            burst in 0u64..10_000,
            refill in 1u64..5_000,
            requests in proptest::collection::vec((1u64..5_000, 0u64..50), 1..200),
        ) {
            let mut limiter = limiter(size, burst, refill);
            let start = Instant::now();
            let (mut now, mut passed) = (start, 0u128);
            for (bytes, pause_ms) in requests {
                let bytes = bytes.min(size);
                now += Duration::from_millis(pause_ms);
                if limiter.take(bytes, now).is_ok() {
                    passed += u128::from(bytes);
                }
                let elapsed = (now - start).as_nanos();
                let allowed = u128::from(size + burst)
                    + elapsed * u128::from(size) / (u128::from(refill) * NANOSECONDS_PER_MS) + 1;
                prop_assert!(passed <= allowed, "{passed} > {allowed}");
            }
        }

        #[test]
        fn the_time_told_is_the_time_it_passes(size in 1u64..100_000, refill in 1u64..5_000, bytes in 1u64..100_000) {
            let mut limiter = limiter(size, 0, refill);
            let now = Instant::now();
            prop_assert!(limiter.take(size, now).is_ok());
            let at = limiter.take(bytes, now).unwrap_err();
            prop_assert!(at > now);
            prop_assert!(limiter.take(bytes, at).is_ok());
        }
    }
}

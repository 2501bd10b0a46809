//! Token buckets (Firecracker's model): `size` tokens, full again after `refill_time`, and a burst that is given once.

use std::sync::{Arc, Mutex, PoisonError};
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

#[derive(Debug, Clone)]
struct Buckets {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    flushes: Option<Bucket>,
}

/// The limits of a device, or of a group of devices that share them.
#[derive(Debug, Clone)]
pub struct Limiter(Option<Arc<Mutex<Buckets>>>);

impl Limiter {
    /// Full buckets.
    #[must_use]
    pub fn new(config: &RateConfig) -> Self {
        if *config == RateConfig::default() {
            return Self(None);
        }
        let now = Instant::now();
        let bucket = |config: Option<BucketConfig>| config.map(|config| Bucket::new(config, now));
        Self(Some(Arc::new(Mutex::new(Buckets {
            bandwidth: bucket(config.bandwidth),
            ops: bucket(config.ops),
            flushes: bucket(config.flushes),
        }))))
    }

    /// Another one that takes from the same buckets.
    #[must_use]
    pub fn share(&self) -> Self {
        self.clone()
    }

    /// Takes one request of `bytes` and with so many flushes, or tells when to try again; then nothing was taken.
    ///
    /// # Errors
    /// With the time at which it would succeed.
    pub fn take(&mut self, bytes: u64, flushes: u64, now: Instant) -> Result<(), Instant> {
        let Some(buckets) = &self.0 else {
            return Ok(());
        };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets {
            bandwidth,
            ops,
            flushes: flush,
        } = &mut *buckets;
        let mut wanted = [(bandwidth, bytes), (ops, 1), (flush, flushes)];
        let at = wanted
            .iter_mut()
            .filter(|(_, tokens)| *tokens > 0)
            .filter_map(|(bucket, tokens)| bucket.as_mut()?.ready_at(*tokens, now))
            .max();
        if let Some(at) = at {
            return Err(at);
        }
        for (bucket, tokens) in &mut wanted {
            if let Some(bucket) = bucket {
                bucket.take(*tokens);
            }
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
            ..RateConfig::default()
        })
    }

    #[test]
    fn no_limit_is_no_wait() {
        let mut limiter = Limiter::new(&RateConfig::default());

        assert_eq!(limiter.take(u64::MAX, 0, Instant::now()), Ok(()));
    }

    #[test]
    fn flushes_have_a_limit_of_their_own() {
        let flushes = Some(BucketConfig {
            size: 2,
            one_time_burst: 0,
            refill_time_ms: 1000,
        });
        let mut limiter = Limiter::new(&RateConfig {
            flushes,
            ..RateConfig::default()
        });
        let now = Instant::now();

        assert_eq!(limiter.take(0, 1, now), Ok(()));
        assert_eq!(limiter.take(0, 1, now), Ok(()));
        assert!(limiter.take(0, 1, now).is_err());
        assert_eq!(limiter.take(1 << 40, 0, now), Ok(()), "data is no flush");
        assert_eq!(limiter.take(0, 1, now + Duration::from_millis(500)), Ok(()));
    }

    #[test]
    fn devices_of_a_group_take_from_the_same_buckets() {
        let mut one = limiter(10, 0, 1000);
        let mut two = one.share();
        let now = Instant::now();

        assert_eq!(one.take(8, 0, now), Ok(()));
        assert!(two.take(8, 0, now).is_err());
        assert_eq!(two.take(2, 0, now), Ok(()));
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_when_it_is_full() {
        let mut limiter = limiter(10, 0, 1000);
        let now = Instant::now();

        assert_eq!(limiter.take(1000, 0, now), Ok(()));
        assert!(limiter.take(1, 0, now).is_err());
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
                if limiter.take(bytes, 0, now).is_ok() {
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
            prop_assert!(limiter.take(size, 0, now).is_ok());
            let at = limiter.take(bytes, 0, now).unwrap_err();
            prop_assert!(at > now);
            prop_assert!(limiter.take(bytes, 0, at).is_ok());
        }
    }
}

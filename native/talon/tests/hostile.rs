//! Every hostile input: the corpus, and mutations of it for a while (`AERIE_FUZZ_SECONDS` for each target, 1 by default).
//! The mutations are the same in every run of the same length; what they find is added to the corpus.

use std::path::Path;
use std::time::{Duration, Instant};

use talon::hostile::{TARGETS, run};

/// xorshift64*, as in Marsaglia's and Vigna's papers: good enough to choose bytes.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or(0) % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[5]
    }
}

fn mutate(seed: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=chance.below(6) {
        let at = chance.below(bytes.len() + 1);
        match chance.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            1 if at < bytes.len() => bytes[at] = chance.byte(),
            2 => bytes.insert(at, chance.byte()),
            3 => bytes.truncate(at),
            _ => {
                let more = (0..chance.below(48))
                    .map(|_| chance.byte())
                    .collect::<Vec<_>>();
                bytes.splice(at..at, more);
            }
        }
    }
    bytes.truncate(4096);
    bytes
}

#[test]
fn no_input_breaks_talon() {
    let seconds = std::env::var("AERIE_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        let mut paths: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "{target} has no corpus");
        let seeds: Vec<_> = paths
            .iter()
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        for seed in &seeds {
            run(target, seed);
        }
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let (until, mut count) = (Instant::now() + Duration::from_secs(seconds), 0u64);
        while Instant::now() < until {
            let input = mutate(&seeds[chance.below(seeds.len())], &mut chance);
            let began = Instant::now();
            // What breaks must be reproducible from the output alone.
            let outcome = std::panic::catch_unwind(|| run(target, &input));
            assert!(outcome.is_ok(), "{target} broke on {input:02x?}");
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{target} hung on {input:02x?}"
            );
            count += 1;
        }
        println!("{target}: {} seeds, {count} mutations", seeds.len());
    }
}

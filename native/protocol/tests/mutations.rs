//! The corpus of golden vectors, mutated with a fixed seed. `scripts/fuzz frames SECONDS` goes on from there, led by coverage.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its vectors has failed"
)]

use aerie_protocol::hostile;
use serde::Deserialize;

const RUNS: u32 = 200_000;

#[derive(Deserialize)]
struct Vector {
    hex: String,
}

fn corpus() -> Vec<Vec<u8>> {
    ["frames.json", "malformed.json"]
        .iter()
        .flat_map(|file| {
            let path = format!("{}/golden/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            serde_json::from_str::<Vec<Vector>>(&text).unwrap()
        })
        .map(|vector| {
            (0..vector.hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&vector.hex[at..at + 2], 16).unwrap())
                .collect()
        })
        .collect()
}

/// xorshift64*: a fixed sequence everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(6) {
            0 if !input.is_empty() => input[at] = random.byte(),
            1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            2 => input.insert(at, random.byte()),
            3 if !input.is_empty() => {
                input.remove(at);
            }
            4 => input.truncate(at),
            _ => input.extend_from_slice(&corpus[random.below(corpus.len())]),
        }
    }
    input
}

#[test]
fn two_hundred_thousand_mutations_neither_panic_nor_cost_memory() {
    let corpus = corpus();
    let mut random = Random(0x5EED_0F1C_0FFE_E001);
    let (mut frames, mut errors) = (0_u32, 0_u32);
    for _ in 0..RUNS {
        let input = mutate(&mut random, &corpus);
        let (first, second) = input.split_at(random.below(input.len() + 1));
        let outcome = hostile::decode([first, second]);
        frames += outcome.frames;
        errors += outcome.errors;
    }
    // Both sides of the decoder were seen, else the mutations were no good.
    assert!(
        frames > RUNS / 10 && errors > RUNS / 10,
        "{frames} frames, {errors} errors"
    );
}

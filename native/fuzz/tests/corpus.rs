//! Every target on its corpus, and on mutations of it: as many and the same ones in every run.

#![allow(
    clippy::unwrap_used,
    reason = "a corpus that cannot be read fails its test"
)]

use aerie_fuzz::mutate::Chance;
use aerie_fuzz::{folder, inputs, run, targets};

const MUTATIONS: u32 = 5_000;

#[test]
fn no_input_breaks_any_target() {
    for target in targets() {
        let corpus = inputs(&folder(target)).unwrap();
        assert!(!corpus.is_empty(), "{target} has no corpus");
        for input in &corpus {
            run(target, input);
        }
        let mut chance = Chance::new(0x9e37_79b9_7f4a_7c15);
        for _ in 0..MUTATIONS {
            let input = chance.mutate(&corpus);
            // What breaks must be reproducible from the output alone.
            let outcome = std::panic::catch_unwind(|| run(target, &input));
            assert!(outcome.is_ok(), "{target} broke on {input:02x?}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_inputs() {
    let corpus = vec![b"abc".to_vec(), vec![0; 100]];
    let (mut one, mut two) = (Chance::new(7), Chance::new(7));

    for _ in 0..1000 {
        assert_eq!(one.mutate(&corpus), two.mutate(&corpus));
    }
}

//! talon's tests on real KVM. They run where KVM can run a guest: in the bed (`test/bed/run`), or on the machine itself.
//!
//! One line a test, then `N passed, N failed`. Without usable KVM nothing is run and nothing is claimed.

mod bench;
mod calls;
mod console;
mod control;
mod counts;
mod devices;
mod harness;
mod jail;
mod machine;
mod snapshot;

use std::process::ExitCode;

use harness::{Suite, usable_kvm};

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if std::env::var_os("AERIE_BED_TALON").is_none() || !usable_kvm() {
        println!("bed: nothing run: needs KVM that runs guests, and test/bed/run");
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|argument| argument == "--bench") {
        bench::run();
        return ExitCode::SUCCESS;
    }
    let mut suite = Suite::new(wanted);
    control::add(&mut suite);
    devices::add(&mut suite);
    console::add(&mut suite);
    snapshot::add(&mut suite);
    jail::add(&mut suite);
    calls::add(&mut suite);
    counts::add(&mut suite);
    suite.finish()
}

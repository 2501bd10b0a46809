//! The one reaper of the test process: a second one would steal statuses, as would `std::process`.

use std::sync::OnceLock;

use crate::reap::Reaper;

pub fn reaper() -> &'static Reaper {
    static REAPER: OnceLock<&'static Reaper> = OnceLock::new();
    REAPER.get_or_init(|| Reaper::start().unwrap())
}

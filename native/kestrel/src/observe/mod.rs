//! What is seen of a guest: its log, its measures, kestrel's own lines.

pub mod console;
pub mod logs;
pub mod metrics;
pub mod ring;

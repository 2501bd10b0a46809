//! Snapshots: how a machine's state is written ([`codec`]), which files hold it ([`files`]), what of a machine goes into
//! them ([`machine`]), and the verbs `vm.snapshot`, `vm.fork` and `vm.restore` ([`verbs`]).

pub mod codec;
pub mod files;
pub mod machine;
mod verbs;

//! What every protocol needs of the loop.

use std::time::Instant;

use super::{control::Control, poll::Poll, state::State};

#[derive(Debug)]
pub struct Context<'a> {
    pub poll: &'a Poll,
    pub state: Option<&'a State>,
    pub control: &'a mut Control,
    pub now: Instant,
    pub scratch: &'a mut [u8],
}

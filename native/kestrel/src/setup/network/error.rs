//! Networks that cannot be what the host says.

use std::io;

/// A network that cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("\"{0}\" is not the address of one network card")]
    Mac(String),
    #[error("\"{text}\" is not {expected}")]
    Address {
        text: String,
        expected: &'static str,
    },
    #[error("an MTU of {0} is not possible")]
    Mtu(u32),
    #[error("a card of the network has {0} routes, more than 256")]
    Routes(usize),
    #[error("there is no network card {0}")]
    NoCard(usize),
    #[error("cannot {step} of {card}")]
    Set {
        step: &'static str,
        card: String,
        #[source]
        source: io::Error,
    },
}

/// Names the step that failed, and the card.
pub fn failed<'a>(
    step: &'static str,
    card: &'a str,
) -> impl FnOnce(io::Error) -> NetworkError + 'a {
    move |source| NetworkError::Set {
        step,
        card: card.to_owned(),
        source,
    }
}

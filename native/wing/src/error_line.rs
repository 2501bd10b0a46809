//! The one JSON line with which a wing command says what went wrong.

use std::error::Error;

use serde::Serialize;

#[derive(Serialize)]
struct Line<'a> {
    code: &'a str,
    message: String,
    chain: Vec<String>,
}

/// The messages of an error's sources, outermost first.
pub fn chain(error: &dyn Error) -> Vec<String> {
    std::iter::successors(error.source(), |&cause| cause.source())
        .map(ToString::to_string)
        .collect()
}

/// `{"code", "message", "chain"}` and a newline; the chain goes from the outermost cause inwards. `code` is stable, for
/// programs.
pub fn error_line(code: &str, error: &dyn Error) -> String {
    let line = Line {
        code,
        message: error.to_string(),
        chain: chain(error),
    };
    // Strings always serialize; the fallback keeps the one-line promise even so.
    let json = serde_json::to_string(&line).unwrap_or_else(|_| format!(r#"{{"code":"{code}"}}"#));
    json + "\n"
}

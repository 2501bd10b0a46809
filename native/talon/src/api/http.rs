//! As much of HTTP/1.1 (RFC 9112) as a client on a Unix socket needs, from bytes that anybody may have written: bounded
//! head, bounded body, no chunks, no pipelining beyond one request after the other.

/// Bytes of request line and headers.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of a body.
pub const BODY_BYTES_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 64;

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, …
    pub method: String,
    /// Path, without query.
    pub path: String,
    /// Query, without `?`.
    pub query: String,
    /// Body.
    pub body: Vec<u8>,
    /// The client goes on using the connection.
    pub keep_alive: bool,
}

/// Why bytes are no request. The connection ends after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not HTTP/1.x.
    #[error("not an HTTP/1.1 request")]
    Malformed,
    /// Head too long.
    #[error("request head is longer than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    /// Body too long.
    #[error("request body is longer than {BODY_BYTES_MAX} bytes")]
    BodyTooLong,
    /// A transfer coding.
    #[error("transfer codings are not supported; send Content-Length")]
    Coding,
}

impl HttpError {
    /// Its status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::HeadTooLong => 431,
            Self::BodyTooLong => 413,
            Self::Coding => 501,
        }
    }
}

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// Not all of a request yet. True when the client waits for `100 Continue`.
    Partial(bool),
    /// A request, and the bytes that it took.
    Whole(Request, usize),
}

fn split_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n")
}

/// Reads one request from the start of `bytes`.
///
/// # Errors
/// When they can never become one.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HttpError> {
    let Some(head_end) = split_head(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]) else {
        return if bytes.len() >= HEAD_BYTES_MAX {
            Err(HttpError::HeadTooLong)
        } else {
            Ok(Parsed::Partial(false))
        };
    };
    let head = std::str::from_utf8(&bytes[..head_end]).map_err(|_| HttpError::Malformed)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HttpError::Malformed);
    };
    let known_method = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if !known_method || !target.starts_with('/') || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(HttpError::Malformed);
    }
    let mut length: Option<usize> = None;
    let (mut keep_alive, mut expects) = (version == "HTTP/1.1", false);
    for (count, line) in lines.enumerate() {
        let (name, value) = line.split_once(':').ok_or(HttpError::Malformed)?;
        if count >= HEADERS_MAX
            || name.is_empty()
            || name.ends_with([' ', '\t'])
            || name.starts_with([' ', '\t'])
        {
            return Err(HttpError::Malformed);
        }
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let number = if digits {
                value.parse().unwrap_or(usize::MAX)
            } else {
                return Err(HttpError::Malformed);
            };
            if length.is_some_and(|known| known != number) {
                return Err(HttpError::Malformed);
            }
            length = Some(number);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::Coding);
        } else if name.eq_ignore_ascii_case("connection") {
            keep_alive = if value.eq_ignore_ascii_case("close") {
                false
            } else {
                keep_alive
            };
        } else if name.eq_ignore_ascii_case("expect") {
            expects = value.eq_ignore_ascii_case("100-continue");
        }
    }
    let length = length.unwrap_or(0);
    if length > BODY_BYTES_MAX {
        return Err(HttpError::BodyTooLong);
    }
    let body_start = head_end + 4;
    let Some(body) = bytes.get(body_start..body_start + length) else {
        return Ok(Parsed::Partial(expects));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body: body.to_vec(),
        keep_alive,
    };
    Ok(Parsed::Whole(request, body_start + length))
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// JSON, or nothing.
    pub body: String,
}

impl Response {
    /// Done, with nothing to say.
    #[must_use]
    pub const fn done() -> Self {
        Self {
            status: 204,
            body: String::new(),
        }
    }

    /// Done, with an answer.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            status: 200,
            body: value.to_string(),
        }
    }

    /// Not done: a stable code for programs, a sentence for people.
    #[must_use]
    pub fn fault(
        status: u16,
        code: &str,
        message: &str,
        chain: &[String],
        path: Option<&str>,
    ) -> Self {
        let mut body = serde_json::json!({ "code": code, "message": message, "chain": chain });
        if let Some(path) = path {
            body["path"] = path.into();
        }
        Self {
            status,
            body: body.to_string(),
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Content Too Large",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            _ => "Internal Server Error",
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut head = format!(
            "HTTP/1.1 {} {reason}\r\nServer: talon\r\nConnection: {connection}\r\n",
            self.status
        );
        if self.status != 204 {
            head += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                self.body.len()
            );
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_whole_only_with_its_body() {
        let bytes = b"PUT /api/v1/vm.create?x=1 HTTP/1.1\r\nHost: l\r\ncontent-length: 4\r\n\r\n{ } trailing";

        for end in 0..bytes.len() - 9 {
            assert_eq!(parse(&bytes[..end]), Ok(Parsed::Partial(false)), "{end}");
        }
        let Ok(Parsed::Whole(request, taken)) = parse(bytes) else {
            panic!("not whole")
        };
        assert_eq!(
            (request.path.as_str(), request.query.as_str()),
            ("/api/v1/vm.create", "x=1")
        );
        assert_eq!(request.body, b"{ } ");
        assert_eq!(&bytes[taken..], b"trailing");
    }

    #[test]
    fn what_can_never_become_a_request_is_refused_at_once() {
        for (bytes, error) in [
            (&b"GET  / HTTP/1.1\r\n\r\n"[..], HttpError::Malformed),
            (b"GET / HTTP/2\r\n\r\n", HttpError::Malformed),
            (b"get / HTTP/1.1\r\n\r\n", HttpError::Malformed),
            (
                b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
                HttpError::Malformed,
            ),
            (
                b"GET / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
                HttpError::Malformed,
            ),
            (
                b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
                HttpError::Coding,
            ),
            (
                b"GET / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
                HttpError::BodyTooLong,
            ),
        ] {
            assert_eq!(
                parse(bytes),
                Err(error),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
        assert_eq!(
            parse(&vec![b'a'; HEAD_BYTES_MAX]),
            Err(HttpError::HeadTooLong)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(Parsed::Whole(_, taken)) = parse(&bytes) {
                prop_assert!(taken <= bytes.len());
            }
        }
    }
}

//! The kinds of conversation, one for each connection.

/// What a connection is for. The numbers are wire values (README, "Kinds").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Session,
    Exec,
    Attach,
    CopyIn,
    CopyOut,
    Stat,
    List,
    Logs,
    Proxy,
    Metrics,
    Identity,
}

impl Kind {
    /// Every kind, in the order of its wire value.
    pub const ALL: [Self; 11] = [
        Self::Session,
        Self::Exec,
        Self::Attach,
        Self::CopyIn,
        Self::CopyOut,
        Self::Stat,
        Self::List,
        Self::Logs,
        Self::Proxy,
        Self::Metrics,
        Self::Identity,
    ];

    /// The wire value.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Session => 1,
            Self::Exec => 2,
            Self::Attach => 3,
            Self::CopyIn => 4,
            Self::CopyOut => 5,
            Self::Stat => 6,
            Self::List => 7,
            Self::Logs => 8,
            Self::Proxy => 9,
            Self::Metrics => 10,
            Self::Identity => 11,
        }
    }

    /// The kind of a wire value; `None` for one that this generation does not know.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.byte() == byte)
    }

    /// The name used in the specification, in golden vectors and in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::CopyIn => "copy-in",
            Self::CopyOut => "copy-out",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Logs => "logs",
            Self::Proxy => "proxy",
            Self::Metrics => "metrics",
            Self::Identity => "identity",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn every_kind_is_found_by_its_byte_and_no_other_byte_is_a_kind() {
        for byte in 0..=u8::MAX {
            assert_eq!(
                Kind::from_byte(byte).map(Kind::byte),
                (1..=11).contains(&byte).then_some(byte)
            );
        }
    }
}

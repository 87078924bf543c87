use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// A secret that clients show. It is kept as its hash: hashes are of one length and are compared in
/// constant time, so an answer's time tells nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    hash: [u8; 32],
    /// Whether it is long enough that nobody guesses it, however many guesses there are.
    is_long: bool,
}

/// Characters of a token that is beyond guessing: 128 bits in hexadecimal.
const LONG: usize = 32;

impl Token {
    /// The token of this secret.
    pub fn new(secret: &str) -> Self {
        Self {
            hash: Sha256::digest(secret.as_bytes()).into(),
            is_long: secret.len() >= LONG,
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.hash.ct_eq(&other.hash).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Who may do what. The default lets everybody read and nobody control.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What reading takes; none: nothing.
    pub read: Option<Token>,
    /// What control takes; it lets its bearer read, too. None: nobody may.
    pub control: Option<Token>,
}

/// What a service lets its callers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Nothing that anybody could not know.
    Public,
    Read,
    Control,
}

/// What the token of a call turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Nothing,
    /// A token that is not known here.
    Unknown,
    Reads {
        is_long: bool,
    },
    Controls {
        is_long: bool,
    },
}

impl Access {
    /// Looks at the token that a call came with.
    pub(crate) fn look(&self, headers: &HeaderMap) -> Shown {
        let header = headers.get("authorization");
        let Some((scheme, secret)) = header
            .and_then(|header| header.to_str().ok())
            .and_then(|header| header.split_once(' '))
        else {
            return Shown::Nothing;
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Shown::Nothing;
        }
        let token = Token::new(secret.trim());
        // Both are compared, whichever fits.
        let reads = self.read.as_ref().filter(|known| known.is(&token));
        let controls = self.control.as_ref().filter(|known| known.is(&token));
        match (reads, controls) {
            (_, Some(known)) => Shown::Controls {
                is_long: known.is_long,
            },
            (Some(known), None) => Shown::Reads {
                is_long: known.is_long,
            },
            (None, None) => Shown::Unknown,
        }
    }

    /// Whether a call within this scope looks at its token at all.
    pub(crate) fn is_needed(&self, scope: Scope) -> bool {
        match scope {
            Scope::Public => false,
            Scope::Read => self.read.is_some(),
            Scope::Control => true,
        }
    }

    /// # Errors
    /// What was shown does not let its bearer do this.
    pub(crate) fn check(&self, scope: Scope, shown: Shown) -> Result<(), Status> {
        match shown {
            _ if !self.is_needed(scope) => Ok(()),
            Shown::Controls { .. } => Ok(()),
            Shown::Reads { .. } if scope == Scope::Read => Ok(()),
            Shown::Reads { .. } => Err(Status::permission_denied(
                "this token may read, not control",
            )),
            Shown::Unknown => Err(Status::unauthenticated("the token is not known here")),
            Shown::Nothing => Err(Status::unauthenticated(
                "no token was given: send `authorization: Bearer TOKEN`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn asked(access: &Access, scope: Scope, header: Option<&str>) -> Code {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("authorization", header.parse().expect("a header"));
        }
        match access.check(scope, access.look(&headers)) {
            Ok(()) => Code::Ok,
            Err(status) => status.code(),
        }
    }

    #[test]
    fn reading_is_free_until_a_token_is_set_and_control_never_is() {
        let open = Access {
            read: None,
            control: Some(Token::new("c")),
        };
        assert_eq!(asked(&open, Scope::Read, None), Code::Ok);
        assert_eq!(asked(&open, Scope::Control, None), Code::Unauthenticated);
        assert_eq!(asked(&open, Scope::Control, Some("Bearer c")), Code::Ok);
        let nobody = Access::default();
        for header in [None, Some("Bearer "), Some("Bearer c")] {
            assert_eq!(
                asked(&nobody, Scope::Control, header),
                Code::Unauthenticated
            );
        }
    }

    #[test]
    fn the_two_tokens_are_told_apart() {
        let access = Access {
            read: Some(Token::new("r")),
            control: Some(Token::new("c")),
        };
        let read = |header| asked(&access, Scope::Read, header);
        let control = |header| asked(&access, Scope::Control, header);
        for header in [
            None,
            Some("r"),
            Some("Basic r"),
            Some("Bearer"),
            Some("Bearer x"),
        ] {
            assert_eq!(read(header), Code::Unauthenticated, "{header:?}");
            assert_eq!(control(header), Code::Unauthenticated, "{header:?}");
        }
        assert_eq!(read(Some("Bearer r")), Code::Ok);
        assert_eq!(read(Some("bearer c")), Code::Ok);
        assert_eq!(control(Some("Bearer r")), Code::PermissionDenied);
        assert_eq!(control(Some("Bearer c")), Code::Ok);
        assert_eq!(asked(&access, Scope::Public, None), Code::Ok);
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(format!("{:?}", Token::new("secret")), "Token(…)");
    }
}

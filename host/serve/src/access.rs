use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

/// A secret that clients send. Only its hash is stored. Hashes all have the same length and are compared in
/// constant time, so that response times reveal nothing about the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    hash: [u8; 32],
    /// Whether the secret is too long to be guessed.
    is_long: bool,
}

/// Minimum length of a token that cannot be guessed: 128 bits in hexadecimal.
const LONG: usize = 32;

impl Token {
    /// Creates a token from a secret.
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

/// The tokens of a server. By default, every client can read and no client can control.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The token for reading. If it is `None`, reading needs no token.
    pub read: Option<Token>,
    /// The token for control, which also permits reading. If it is `None`, no client can control.
    pub control: Option<Token>,
}

/// The permission that the methods of a service need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// No permission, since the methods return only public information.
    Public,
    Read,
    Control,
}

/// What the token of a call permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The call has no token.
    Nothing,
    /// The token is neither the read token nor the control token.
    Unknown,
    Reads {
        is_long: bool,
    },
    Controls {
        is_long: bool,
    },
}

impl Access {
    /// Compares the token of a call with the known tokens.
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
        // Always compares with both tokens, so that the time does not depend on the result.
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

    /// Whether calls of this scope need a token.
    pub(crate) fn is_needed(&self, scope: Scope) -> bool {
        match scope {
            Scope::Public => false,
            Scope::Read => self.read.is_some(),
            Scope::Control => true,
        }
    }

    /// Checks that the token of a call grants the permission that the service needs.
    ///
    /// # Errors
    /// Returns an error if the service needs a token, and the call has no token or an unknown token. Also
    /// returns an error if the service needs the control token, and the call has the read token.
    pub(crate) fn check(&self, scope: Scope, shown: Shown) -> Result<(), Status> {
        match shown {
            _ if !self.is_needed(scope) => Ok(()),
            Shown::Controls { .. } => Ok(()),
            Shown::Reads { .. } if scope == Scope::Read => Ok(()),
            Shown::Reads { .. } => Err(Status::permission_denied(
                "this token permits reading, not control",
            )),
            Shown::Unknown => Err(Status::unauthenticated("unknown token")),
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
    fn reading_needs_a_token_only_if_one_is_set_and_control_always() {
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
    fn the_two_tokens_permit_different_calls() {
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
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", Token::new("secret")), "Token(…)");
    }
}

use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::call::Calls;

/// A secret that clients show. It is kept as its hash: hashes are of one length and are compared in
/// constant time, so an answer's time tells nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The token of this secret.
    pub fn new(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
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

impl Access {
    fn check(&self, scope: Scope, metadata: &MetadataMap) -> Result<(), Status> {
        if scope == Scope::Public || (scope == Scope::Read && self.read.is_none()) {
            return Ok(());
        }
        let missing =
            || Status::unauthenticated("no token was given: send `authorization: Bearer TOKEN`");
        let header = metadata.get("authorization").ok_or_else(missing)?;
        let header = header.to_str().map_err(|_| missing())?;
        let (scheme, secret) = header.split_once(' ').ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        let token = Token::new(secret.trim());
        // Both are compared, whichever fits.
        let reads = self.read.as_ref().is_some_and(|known| known.is(&token));
        let controls = self.control.as_ref().is_some_and(|known| known.is(&token));
        match scope {
            _ if controls => Ok(()),
            Scope::Read if reads => Ok(()),
            Scope::Control if reads => Err(Status::permission_denied(
                "this token may read, not control",
            )),
            _ => Err(Status::unauthenticated("the token is not known here")),
        }
    }
}

/// Stands before a service: counts the calls of each connection and looks at their tokens.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) access: Arc<Access>,
    pub(crate) scope: Scope,
}

impl Interceptor for Gate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(calls) = request.extensions().get::<Arc<Calls>>() {
            let call = Calls::begin(calls)?;
            request.extensions_mut().insert(call);
        }
        self.access.check(self.scope, request.metadata())?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn asked(access: &Access, scope: Scope, header: Option<&str>) -> Code {
        let mut metadata = MetadataMap::new();
        if let Some(header) = header {
            metadata.insert("authorization", header.parse().expect("a header"));
        }
        match access.check(scope, &metadata) {
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

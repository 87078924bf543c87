//! Follows the redirects of a repository that was renamed or transferred to another owner.

use ureq::SendBody;
use ureq::http::Request;

use crate::http::{self, Http};
use crate::limit::Limit;
use crate::network::Network;
use crate::remote::Remote;
use crate::token::Token;
use crate::{Error, Result};

/// The path of git's first request, below the repository's URL.
const FIRST: &str = "/info/refs?service=git-upload-pack";

/// Maximum number of redirects that are followed.
const TIMES: u32 = 5;

/// Follows the server's redirects and sets the remote's URL to the target. Returns whether the URL changed.
/// Git itself does not follow redirects, because it would send the token to any server that a redirect names.
///
/// # Errors
/// Returns an error if a redirect goes to a URL that is not a repository, or if it goes to another server and
/// there is a token, which must not be sent there.
pub(crate) fn follow(
    network: &Network,
    remote: &Remote,
    token: Option<&Token>,
    limit: &Limit<'_>,
) -> Result<bool> {
    let home = http::server(remote.url());
    let mut at = remote.url().to_owned();
    for _ in 0..TIMES {
        let answer = Http::during(network, limit, |http| {
            let mut request = Request::get(format!("{at}{FIRST}"));
            if let Some(token) = token {
                request = request.header("Authorization", token.authorization());
            }
            let request = request
                .body(SendBody::none())
                .map_err(|error| http::bad_request(&at, &error))?;
            http.send(request)
        })?;
        let from = format!("{at}{FIRST}");
        let Some(to) = http::leads(answer.status, &answer.headers, &from) else {
            break;
        };
        let to = to?;
        let Some(there) = to.strip_suffix(FIRST) else {
            let server = http::server(&to);
            let to = to.split('?').next().unwrap_or(&server);
            return Err(Error::Permanent(format!(
                "{home} redirects to a URL that is not a repository ({to}): {}",
                remote.url()
            )));
        };
        if token.is_some() && http::server(there) != home {
            return Err(Error::Permanent(format!(
                "the repository has moved to another server, where the token is not sent: set repo to {there}, if you trust it: {}",
                remote.url()
            )));
        }
        there.clone_into(&mut at);
    }
    if at == remote.url() {
        return Ok(false);
    }
    // Some servers redirect only to add `.git`, which does not need a warning.
    if at != format!("{}.git", remote.url()) {
        limit.warn(&format!("the repository has moved: set repo to {at}"));
    }
    remote.move_to(at);
    Ok(true)
}

//! A repository that its server says is elsewhere: renamed, or given to another owner.

use ureq::SendBody;
use ureq::http::Request;

use crate::http::{self, Http};
use crate::limit::Limit;
use crate::network::Network;
use crate::remote::Remote;
use crate::token::Token;
use crate::{Error, Result};

/// What git asks for first, below a repository's URL.
const FIRST: &str = "/info/refs?service=git-upload-pack";

/// How often a repository may have moved on.
const TIMES: u32 = 5;

/// Looks where the server leads to, and lets the remote be there. Says whether it is elsewhere now. Git
/// itself would take the token along to any server.
///
/// # Errors
/// It leads to another server, where the token is not sent, or to no repository.
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
                "{home} leads to what is not a repository ({to}): {}",
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
    // Some servers want the ending that the address left out.
    if at != format!("{}.git", remote.url()) {
        limit.warn(&format!("the repository has moved: set repo to {at}"));
    }
    remote.move_to(at);
    Ok(true)
}

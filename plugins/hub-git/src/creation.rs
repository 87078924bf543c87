//! Creates the remote repository if the setting `create` is on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::git::Git;
use crate::http::Http;
use crate::limit::Limit;
use crate::network::Network;
use crate::publisher::Publisher;
use crate::refusal;
use crate::remote::{HubName, Kind, Remote};
use crate::token::Token;
use crate::{Config, Error, Result};

/// The Hub's error message if two requests to create a repository arrive at the same time. The message does
/// not indicate whether the repository exists.
const CONFLICT: &str = "another conflicting operation is in progress";

/// Returns an error if `create` or `private` does not work with this kind of remote. Sends no request.
pub(crate) fn check(config: &Config, remote: &Remote) -> Result<()> {
    let refuse = |words: &str| Err(Error::Permanent(format!("{words}: {}", remote.url())));
    if config.private.is_some() && !config.create {
        return refuse("private requires create = true");
    }
    if !config.create {
        return Ok(());
    }
    match remote.kind() {
        Kind::Hub if remote.hub_name().is_none() => {
            refuse("create = true can only create models, which are named USER/NAME")
        }
        Kind::Local if config.private.is_some() => {
            refuse("private works only on the Hub: for a folder, set file permissions")
        }
        Kind::Hub | Kind::Local => Ok(()),
        Kind::Http | Kind::Ssh => refuse(
            "create = true works only on the Hub and for folders: create the repository on its server first",
        ),
    }
}

/// Creates the repository if `create` is set and it does not exist.
///
/// # Errors
/// Returns an error if the repository does not exist and cannot be created. The error contains the message of
/// the Hub or git.
pub(crate) fn ensure(publisher: &Publisher, limit: &Limit<'_>) -> Result<()> {
    let Publisher {
        config,
        remote,
        token,
        git,
        ..
    } = publisher;
    if !config.create {
        return Ok(());
    }
    match (remote.hub_name(), token) {
        (Some(name), Some(token)) => {
            let asked = ask_hub(&name, config.private, token, git.network(), limit)?;
            let Asked::Forbidden(words) = asked else {
                return Ok(());
            };
            // A token for only this repository lacks the permission to create one, but the repository may
            // already exist.
            let look = git.call(["ls-remote", "--quiet", "--", remote.url(), "HEAD"]);
            let look = look
                .authorization(remote.origin(), Some(token))
                .run(limit)?;
            look.success().map(drop).map_err(|stderr| {
                match refusal::judge(&stderr, "reach", remote) {
                    Error::Permanent(_) => Error::Permanent(words),
                    other => other,
                }
            })
        }
        _ => make_folder(git, remote, limit),
    }
}

/// The Hub's response.
enum Asked {
    /// The repository exists: it was created empty, or it already existed and was not changed.
    There,
    /// The token lacks permission to create it.
    Forbidden(String),
}

fn ask_hub(
    name: &HubName<'_>,
    private: Option<bool>,
    token: &Token,
    network: &Network,
    limit: &Limit<'_>,
) -> Result<Asked> {
    let HubName {
        endpoint,
        owner,
        name,
    } = *name;
    let mut body = json!({"name": name, "organization": owner, "type": "model"});
    if let Some(private) = private {
        body["private"] = private.into();
    }
    let header = BTreeMap::from([("Authorization".to_owned(), token.bearer())]);
    let url = format!("{endpoint}/api/repos/create");
    let cannot = |words: &str| format!("cannot create {owner}/{name}: {words}");
    Http::during(network, limit, |http| {
        let answer = http.post(&url, "application/json", &header, &body)?;
        let said = answer.message();
        match answer.status {
            409 if said.contains(CONFLICT) => Err(Error::Temporary(cannot(&said))),
            409 => Ok(Asked::There),
            403 => Ok(Asked::Forbidden(cannot(&format!(
                "the token lacks permission (403): {said}"
            )))),
            _ => match answer.success(endpoint) {
                Ok(_) => Ok(Asked::There),
                Err(error) => Err(error.map(|words| cannot(&words))),
            },
        }
    })
}

fn make_folder(git: &Git, remote: &Remote, limit: &Limit<'_>) -> Result<()> {
    let dir = Path::new(remote.url());
    let holds_something = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io("create repository", dir, &error)),
    };
    if holds_something {
        // If the folder is not a repository, git reports an error later.
        return Ok(());
    }
    let args = ["init", "--quiet", "--bare", "--template="];
    let args = args.into_iter().chain(["--initial-branch=main", "--"]);
    let call = git.call(args.chain([remote.url()]));
    let output = call.env("GIT_DIR", remote.url()).run(limit)?;
    output.success().map(drop).map_err(|stderr| {
        let words = refusal::words(&stderr);
        Error::Temporary(format!("cannot create {}: {words}", remote.url()))
    })
}

//! Making the repository, where the configuration asks for it.

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

/// The Hub's words for two requests at the same moment, which say nothing about whether the
/// repository is there.
const CONFLICT: &str = "another conflicting operation is in progress";

/// Says at once if the repository cannot be made at such a remote, or with such a visibility.
pub(crate) fn check(config: &Config, remote: &Remote) -> Result<()> {
    let refuse = |words: &str| Err(Error::Permanent(format!("{words}: {}", remote.url())));
    if config.private.is_some() && !config.create {
        return refuse("private is for a repository that create = true makes");
    }
    if !config.create {
        return Ok(());
    }
    match remote.kind() {
        Kind::Hub if remote.hub_name().is_none() => {
            refuse("create = true makes models alone, whose names are USER/NAME")
        }
        Kind::Local if config.private.is_some() => {
            refuse("private is for the Hub: who may read a folder is its permissions' matter")
        }
        Kind::Hub | Kind::Local => Ok(()),
        Kind::Http | Kind::Ssh => refuse(
            "create = true works on the Hub and for a folder: make the repository on its server first",
        ),
    }
}

/// Makes sure that the repository exists, if that is asked for.
///
/// # Errors
/// It is not there and cannot be made, in the words of the Hub or of git.
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
            // A token may be good for one repository alone, which somebody else made.
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

/// What the Hub answered.
enum Asked {
    /// It is there: new and empty, or from before and left as it is.
    There,
    /// The token may not make it.
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
                "the token may not (403): {said}"
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
        // Whether that is a repository is seen when git goes there.
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

use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Fetch, Fetched, Result, SinkError};
use host_plugin::{PluginSpec, SearchPath, Secrets};

use super::cache::{Cache, Place};
use crate::config::{HubModel, hub_model::PLUGIN};
use crate::plugins::Plugins;

/// Brings it to this machine's cache; what is there already is not brought again. What it lies in must
/// be held until it was read: where the cache cannot be written, it goes with that. The token is that of the plugin among `specs` which pushes to the same repository, else the Hub's for the Hub.
///
/// # Errors
/// There is no such plugin, repository or revision, or it cannot be reached.
pub(crate) fn fetch(
    model: &HubModel,
    specs: &[PluginSpec],
    (search, secrets): (&SearchPath, &Secrets),
    for_resume: bool,
) -> Result<(Fetched, Place)> {
    let plugins = Plugins::load_alone(model.spec(specs), specs, search, secrets.clone())?;
    let place = Cache::find()?.place(&Path::new("hub").join(folder_name(&model.repo)))?;
    let cannot = |reason: String| {
        let message = format!("cannot fetch {}: {reason}", model.describe());
        Error::new(ErrorKind::Plugin, message)
    };
    let (mut sink, _) = plugins
        .sinks(|_| true)?
        .pop()
        .ok_or_else(|| cannot(format!("plugin {PLUGIN} is no checkpoint sink")))?;
    let port = sink.active().expect("nothing has failed yet");
    let fetched = port.fetch(Fetch {
        revision: model.revision.as_deref(),
        for_resume,
        state_dir: &place.path,
    });
    let fetched = fetched.map_err(|error| match error {
        SinkError::Temporary(reason) => {
            cannot(reason).hint("the same again may go well; what has come whole is kept")
        }
        SinkError::Permanent(reason) => cannot(reason).hint(
            "hub:USER/NAME@BRANCH names another branch; a private repository takes a token: HF_TOKEN, or the token_env of a hub-git with this repo",
        ),
        SinkError::Cancelled => cannot("it was cancelled".to_owned()),
    })?;
    Ok((fetched, place))
}

/// A folder's name, another for each repository.
fn folder_name(repo: &str) -> PathBuf {
    let mut name = String::new();
    for byte in repo.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => name.push(char::from(byte)),
            b'/' => name.push_str("__"),
            _ => name += &format!("_{byte:02x}"),
        }
    }
    Path::new(&format!("repo-{name}")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repository_has_a_folder_of_its_own() {
        let repos = ["a/b", "a__b", "a_b", "a_2fb", "https://x/a"];
        let names: std::collections::BTreeSet<_> = repos.map(folder_name).into_iter().collect();
        assert_eq!(names.len(), repos.len());
    }
}

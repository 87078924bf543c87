use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Fetch, Fetched, Result, SinkError};
use host_plugin::{PluginSpec, SearchPath, Secrets};

use super::cache::{Cache, Place};
use crate::config::{HubModel, hub_model::PLUGIN};
use crate::plugins::Plugins;

/// Fetches a model or checkpoint to the cache. Skips files that are already in the cache. Keep the returned
/// [`Place`] until the files have been read: if the cache is not writable, dropping the `Place` deletes the
/// files. If a plugin of `specs` pushes to the same repository, that plugin's token is used. Otherwise, the
/// Hub's token is used if the repository is on the Hub.
///
/// # Errors
/// Returns an error if the plugin hub-git, the repository or the revision does not exist, or the server
/// cannot be reached.
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
        .ok_or_else(|| cannot(format!("plugin {PLUGIN} is not a checkpoint sink")))?;
    let port = sink.active().expect("nothing has failed yet");
    let fetched = port.fetch(Fetch {
        revision: model.revision.as_deref(),
        for_resume,
        state_dir: &place.path,
    });
    let fetched = fetched.map_err(|error| match error {
        SinkError::Temporary(reason) => {
            cannot(reason).hint("try again; completely fetched files are kept")
        }
        SinkError::Permanent(reason) => cannot(reason).hint(
            "check the name, and write hub:USER/NAME@BRANCH for another branch; for a private repository, set HF_TOKEN, or configure a hub-git plugin with this repo and a token_env",
        ),
        SinkError::Cancelled => cannot("it was cancelled".to_owned()),
    })?;
    Ok((fetched, place))
}

/// Returns a folder name that is unique for the repository.
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
    fn each_repository_has_its_own_folder() {
        let repos = ["a/b", "a__b", "a_b", "a_2fb", "https://x/a"];
        let names: std::collections::BTreeSet<_> = repos.map(folder_name).into_iter().collect();
        assert_eq!(names.len(), repos.len());
    }
}

use std::path::{Path, PathBuf};

use host_plugin_abi::{HOST_FETCH_FOR_RESUME, HostFetch};
use serde_json::{Map, Value};

use crate::{Error, Result, instance, sized};

/// A request to fetch a checkpoint from the sink's destination.
///
/// ```standalone_crate
/// # use host_plugin_sdk::*;
/// # use std::{fs, path::PathBuf};
/// # #[derive(serde::Deserialize)]
/// # struct Config { shelf: PathBuf }
/// # struct Shelf(Config);
/// impl CheckpointSink for Shelf {
/// #     type Config = Config;
/// #     fn create(config: Config, _: Host) -> Result<Self> { Ok(Self(config)) }
/// #     fn publish(&mut self, _: &Checkpoint<'_>, _: &Cancel) -> Result<serde_json::Value> {
/// #         Ok(serde_json::json!({}))
/// #     }
///     // …
///     fn fetch(&mut self, fetch: &Fetch<'_>, cancel: &Cancel) -> Result<Fetched> {
///         let name = fetch.revision().unwrap_or("newest");
///         let (from, to) = (self.0.shelf.join(name), fetch.state_dir().join(name));
///         if !from.is_dir() {
///             return Err(Error::new(format!("there is no {}", from.display())));
///         }
///         if !to.exists() {
///             // An incomplete folder has a different name.
///             let part = to.with_extension("part");
///             fs::create_dir_all(&part)?;
///             let wanted = ["model.safetensors", "trainer.bin"];
///             for file in &wanted[..if fetch.for_resume() { 2 } else { 1 }] {
///                 cancel.check()?;
///                 fs::copy(from.join(file), part.join(file))?;
///             }
///             fs::rename(&part, &to)?;
///         }
///         Ok(Fetched::new(to).with("shelf", name))
///     }
/// }
/// # export_plugin! { description: "Keeps checkpoints on a shelf", checkpoint_sink: Shelf }
/// # fn main() -> std::io::Result<()> {
/// use host_plugin_sdk::fake;
///
/// let scratch = fake::Scratch::new();
/// let shelf = scratch.path().join("shelf");
/// fs::create_dir_all(shelf.join("newest"))?;
/// fs::write(shelf.join("newest/model.safetensors"), "weights")?;
/// fs::write(shelf.join("newest/trainer.bin"), "state")?;
/// let config = serde_json::json!({ "shelf": shelf }).to_string();
/// let mut sink = fake::Plugin::load(&PLUGIN).checkpoint_sink(&config).expect("created");
///
/// let receipt = sink.fetch("", scratch.path()).expect("fetched");
/// let folder = PathBuf::from(receipt["path"].as_str().expect("a path"));
/// assert_eq!(fs::read_to_string(folder.join("model.safetensors"))?, "weights");
/// assert_eq!(receipt["shelf"], "newest");
/// assert!(sink.fetch("oldest", scratch.path()).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Fetch<'a> {
    revision: &'a str,
    state_dir: &'a Path,
    for_resume: bool,
}

impl<'a> Fetch<'a> {
    /// Returns the revision of the checkpoint to fetch, such as a branch or a commit. Its meaning depends on
    /// the destination. `None` means the newest checkpoint.
    pub fn revision(&self) -> Option<&'a str> {
        Some(self.revision).filter(|revision| !revision.is_empty())
    }

    /// Returns the absolute path of the sink's own folder. The folder exists and is kept after the process
    /// ends. Another process can fetch into it at the same time.
    pub fn state_dir(&self) -> &'a Path {
        self.state_dir
    }

    /// Whether to fetch everything that a resume needs, not only the model, its configuration and its
    /// tokenizer.
    pub fn for_resume(&self) -> bool {
        self.for_resume
    }

    /// # Safety
    /// `fetch` is null, or points to data that is valid for `'a`, as the ABI specifies.
    pub(crate) unsafe fn new(fetch: *const HostFetch) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        let raw = unsafe { sized::read(fetch) }?;
        // SAFETY: as above.
        let text = |view, what| unsafe { instance::text(view, what) };
        Ok(Self {
            revision: text(raw.revision, "a revision")?,
            state_dir: Path::new(text(raw.state_dir, "a folder")?),
            for_resume: raw.flags & HOST_FETCH_FOR_RESUME != 0,
        })
    }
}

/// A fetched checkpoint: its folder, and an identifier for users and for later fetches ([`Fetch::revision`]).
///
/// ```
/// use host_plugin_sdk::Fetched;
///
/// let fetched = Fetched::new("/state/9f2c41").with("commit", "9f2c41");
/// assert!(format!("{fetched:?}").contains("9f2c41"));
/// ```
#[derive(Clone, Debug)]
pub struct Fetched {
    path: PathBuf,
    more: Map<String, Value>,
}

impl Fetched {
    /// Creates the result from the absolute path of the folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            more: Map::new(),
        }
    }

    /// Adds a key to the receipt. The host uses the value of `commit` as the revision if it fetches the same
    /// checkpoint again.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.more.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn receipt(self) -> Result<Value> {
        let Self { path, more } = self;
        let path = path.into_os_string().into_string();
        let path = path.map_err(|path| {
            let path = Path::new(&path).display();
            Error::new(format!("the path is not UTF-8: {path}"))
        })?;
        let mut receipt = Map::from_iter([("path".to_owned(), path.into())]);
        receipt.extend(more);
        Ok(receipt.into())
    }
}

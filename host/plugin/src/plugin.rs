use std::path::{Path, PathBuf};
use std::time::Duration;

use host_core::{CheckpointSink, Error, Kind, Metric, Observer, ParamGroups, Result};
use serde_json::{Map, Value};

use crate::checkpoint_sink::PluginCheckpointSink;
use crate::image::Image;
use crate::instance::Maker;
use crate::library::Library;
use crate::metric::PluginMetric;
use crate::observer::PluginObserver;
use crate::param_groups::PluginParamGroups;
use crate::{CallAccount, Found, PluginConfig, PluginKind, PluginManifest};

/// A loaded plugin with its settings. It makes instances; they outlive it.
#[derive(Debug)]
pub struct Plugin {
    path: PathBuf,
    sha256: String,
    library: &'static Library,
    config: Map<String, Value>,
    maker: Maker,
}

impl Plugin {
    /// Reads and hashes the library, looks at those bytes, holds them to the lock, checks the
    /// settings and only then loads the bytes. The same library may be loaded again with other
    /// settings. `[main]`
    ///
    /// # Errors
    /// The library is refused, or is not the one that is locked, or the settings are refused, or it
    /// does not keep what its manifest promises.
    pub fn load(found: &Found, config: &PluginConfig) -> Result<Self> {
        let path = &found.path;
        let image = Image::read(path)?;
        let manifest = crate::inspect(image.bytes(), path)?;
        if manifest.id != found.manifest.id {
            return Err(Error::new(
                Kind::Plugin,
                format!(
                    "plugin {} has become {}: {}",
                    found.manifest.id,
                    manifest.id,
                    path.display()
                ),
            )
            .hint("the file was replaced in this moment; try again"));
        }
        found.check_lock(&manifest, &image)?;
        let config = config.resolve(&manifest)?;
        let library = Library::load(&image, path)?;
        let json = Value::Object(config.clone()).to_string();
        Ok(Self {
            path: path.clone(),
            sha256: image.sha256(),
            library,
            config,
            maker: Maker {
                plugin: manifest.id.into(),
                api: library.api,
                config: json.into(),
                time_limit: None,
                account: CallAccount::default(),
            },
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.library.manifest.id
    }

    /// What it says about itself.
    pub fn manifest(&self) -> &PluginManifest {
        &self.library.manifest
    }

    /// What it can be.
    pub fn kinds(&self) -> &[PluginKind] {
        &self.library.manifest.kinds
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the bytes that were loaded, in lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Its settings with their types, as it sees them.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Lets a call take at most this long, for the instances that are made from now on. In this
    /// process nothing can interrupt a call: one that took longer has failed, and its output comes to
    /// nothing.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Option<Duration>) -> Self {
        self.maker.time_limit = limit;
        self
    }

    /// The account of all calls into the instances made here. `create` and `destroy` are not in it.
    pub fn account(&self) -> &CallAccount {
        &self.maker.account
    }

    /// Makes a grouper. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
    pub fn param_groups(&self) -> Result<Box<dyn ParamGroups>> {
        let functions = self.functions(self.library.param_groups, PluginKind::ParamGroups)?;
        let instance = self.maker.create(PluginKind::ParamGroups, functions.create, functions.destroy)?;
        Ok(Box::new(PluginParamGroups {
            instance,
            functions,
        }))
    }

    /// Makes a metric. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
    pub fn metric(&self) -> Result<Box<dyn Metric>> {
        let functions = self.functions(self.library.metric, PluginKind::Metric)?;
        let instance = self.maker.create(PluginKind::Metric, functions.create, functions.destroy)?;
        let manifest = self.manifest();
        Ok(Box::new(PluginMetric {
            instance,
            functions,
            needs: manifest.needs.clone(),
            reads_cuda: manifest.reads_cuda,
        }))
    }

    /// Makes a sink. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
    pub fn checkpoint_sink(&self) -> Result<Box<dyn CheckpointSink>> {
        let functions = self.functions(self.library.checkpoint_sink, PluginKind::CheckpointSink)?;
        let instance = self.maker.create(PluginKind::CheckpointSink, functions.create, functions.destroy)?;
        Ok(Box::new(PluginCheckpointSink::new(instance, functions)))
    }

    /// Makes an observer. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
    pub fn observer(&self) -> Result<Box<dyn Observer>> {
        let functions = self.functions(self.library.observer, PluginKind::Observer)?;
        let instance = self.maker.create(PluginKind::Observer, functions.create, functions.destroy)?;
        Ok(Box::new(PluginObserver {
            instance,
            functions,
            events: self.manifest().events.clone(),
        }))
    }

    fn functions<F>(&self, functions: Option<F>, kind: PluginKind) -> Result<F> {
        functions.ok_or_else(|| {
            let kinds: Vec<_> = self.kinds().iter().map(|kind| kind.name()).collect();
            Error::new(
                Kind::Config,
                format!(
                    "plugin {} is no {kind} but {}: {}",
                    self.id(),
                    kinds.join(", "),
                    self.path.display()
                ),
            )
            .hint("`host plugin list` shows what each plugin is")
        })
    }
}

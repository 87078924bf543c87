use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host_core::{CheckpointSink, Error, ErrorKind, Metric, Observer, ParamGroups, Result};
use serde_json::{Map, Value};

use crate::checkpoint_sink::PluginCheckpointSink;
use crate::guard::name_of;
use crate::image::Image;
use crate::instance::{Maker, failed, late};
use crate::library::{LOAD, Library};
use crate::metric::PluginMetric;
use crate::observer::PluginObserver;
use crate::param_groups::PluginParamGroups;
use crate::process::{
    Launch, Limits, Remote, RemoteCheckpointSink, RemoteMetric, RemoteObserver, RemoteParamGroups,
};
use crate::secrets::Shares;
use crate::{
    CallAccount, Found, Mode, PluginConfig, PluginKind, PluginManifest, ServeCommand, shell_word,
};

/// A plugin with its settings. It creates instances. Each instance runs in this process or in its own child
/// process. The instances can outlive the `Plugin`.
#[derive(Debug)]
pub struct Plugin {
    path: PathBuf,
    /// The plugin's name in commands: its id or its path.
    name: String,
    sha256: String,
    manifest: PluginManifest,
    config: Map<String, Value>,
    /// The settings as JSON text.
    json: Arc<str>,
    /// `None` if all of the plugin's code runs in child processes.
    library: Option<&'static Library>,
    /// `None` if all of the plugin's code runs in this process.
    isolation: Option<Isolation>,
    time_limit: Option<Duration>,
    account: CallAccount,
}

/// The data for running instances in child processes.
#[derive(Debug)]
struct Isolation {
    /// The mode that the user chose for all kinds; `None` means the default of each kind.
    mode: Option<Mode>,
    serve: ServeCommand,
    shares: Arc<Shares>,
    /// The bytes that were inspected, in a file that can no longer be modified.
    image: Arc<OwnedFd>,
}

/// Where an instance is created.
enum Place {
    Here(&'static Library),
    Child(Launch),
}

impl Plugin {
    /// Reads and hashes the library, and inspects its bytes. Then checks the bytes against the lock, and
    /// checks the settings. Loads the same bytes into this process only after these checks. The same library
    /// can be loaded again with other settings. `[main]`
    ///
    /// # Errors
    /// Returns an error if the library is rejected, differs from its entry in the lock, or violates its
    /// manifest, or if the settings are rejected.
    pub fn load(found: &Found, config: &PluginConfig) -> Result<Self> {
        let (image, manifest, config) = examine(found, config)?;
        let made = Self::make(&image, &found.path, manifest, config, None)?;
        Ok(made.named(found))
    }

    /// Like [`Plugin::load`], but an instance whose mode is `process` runs in its own child process, which
    /// `serve` starts. `mode` applies to all kinds; without it, each kind uses its default. If no kind runs
    /// in this process, nothing is loaded into it. `[main]`
    ///
    /// # Errors
    /// Returns an error in the same cases as [`Plugin::load`]. Some errors are found only by loading the
    /// library. If nothing is loaded into this process, such an error is returned when an instance is
    /// created.
    pub fn load_isolated(
        found: &Found,
        config: &PluginConfig,
        mode: Option<Mode>,
        serve: ServeCommand,
    ) -> Result<Self> {
        let given = config;
        let (image, manifest, config) = examine(found, given)?;
        let image_file = image
            .map(&manifest.id)
            .and_then(|mapped| mapped.into_file(&manifest.id))
            .map_err(|error| Error::io("copy the plugin", &found.path, &error))?;
        let shares = serve.secrets().shares(&manifest, given, &config);
        let isolation = Isolation {
            mode,
            shares: Arc::new(shares),
            serve,
            image: Arc::new(image_file),
        };
        let made = Self::make(&image, &found.path, manifest, config, Some(isolation))?;
        Ok(made.named(found))
    }

    fn named(self, found: &Found) -> Self {
        let name = found.name();
        Self { name, ..self }
    }

    /// Loads a library's inspected bytes into this process, with settings that the host has checked.
    pub(crate) fn load_image(image: &Image, path: &Path, json: &str) -> Result<Self> {
        let manifest = crate::inspect(image.bytes(), path)?;
        let config = serde_json::from_str(json).map_err(|error| {
            let message = format!(
                "the settings of plugin {} are not JSON: {error}",
                manifest.id
            );
            Error::new(ErrorKind::System, message)
        })?;
        Self::make(image, path, manifest, config, None)
    }

    fn make(
        image: &Image,
        path: &Path,
        manifest: PluginManifest,
        config: Map<String, Value>,
        isolation: Option<Isolation>,
    ) -> Result<Self> {
        let runs_here = |kind: &PluginKind| {
            let isolation = isolation.as_ref();
            isolation.is_none_or(|isolation| isolation.mode_of(*kind) == Mode::InProcess)
        };
        let library = match manifest.kinds.iter().any(runs_here) {
            true => Some(Library::load(image, path)?),
            false => None,
        };
        Ok(Self {
            path: path.to_owned(),
            name: manifest.id.clone(),
            sha256: image.sha256(),
            json: Value::Object(config.clone()).to_string().into(),
            manifest,
            config,
            library,
            isolation,
            time_limit: None,
            account: CallAccount::default(),
        })
    }

    /// Returns the id in the plugin's manifest.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// Returns the plugin's name in commands: its path if it was requested by path, otherwise its id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its manifest.
    pub fn manifest(&self) -> &PluginManifest {
        &self.manifest
    }

    /// Returns the kinds that the plugin implements.
    pub fn kinds(&self) -> &[PluginKind] {
        &self.manifest.kinds
    }

    /// Returns the file that the plugin was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the SHA-256 of the bytes that were loaded, in lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns the plugin's settings with their types, as passed to the plugin.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Sets the time limit for each call into the instances that are created later. A call in this process
    /// cannot be interrupted. If it exceeds the limit, it fails after it has returned, and its output is
    /// discarded. A child process that exceeds the limit is killed.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Option<Duration>) -> Self {
        self.time_limit = limit;
        self
    }

    /// Whether any of the plugin's kinds runs in a child process.
    pub fn is_isolated(&self) -> bool {
        let isolation = self.isolation.as_ref();
        isolation.is_some_and(|isolation| {
            let mut kinds = self.kinds().iter();
            kinds.any(|kind| isolation.mode_of(*kind) == Mode::Process)
        })
    }

    /// Returns the statistics of all calls into instances that this plugin created. They do not count calls
    /// of `create` and `destroy`.
    pub fn account(&self) -> &CallAccount {
        &self.account
    }

    /// Creates an instance that assigns parameter groups. `[main]`
    ///
    /// # Errors
    /// Returns an error if the plugin is not of this kind, or if its `create` fails.
    pub fn param_groups(&self) -> Result<Box<dyn ParamGroups>> {
        let kind = PluginKind::ParamGroups;
        let library = match self.place(kind)? {
            Place::Here(library) => library,
            Place::Child(launch) => return Ok(Box::new(RemoteParamGroups(self.start(launch)?))),
        };
        let functions = self.functions(library.param_groups, kind)?;
        let maker = self.maker(library)?;
        let instance = maker.create(kind, functions.create, functions.destroy)?;
        Ok(Box::new(PluginParamGroups {
            instance,
            functions,
        }))
    }

    /// Creates a metric. `[main]`
    ///
    /// # Errors
    /// Returns an error if the plugin is not of this kind, or if its `create` fails.
    pub fn metric(&self) -> Result<Box<dyn Metric>> {
        let kind = PluginKind::Metric;
        let needs = self.manifest.needs.clone();
        let library = match self.place(kind)? {
            Place::Here(library) => library,
            Place::Child(launch) => {
                let remote = self.start(launch)?;
                return Ok(Box::new(RemoteMetric::new(remote, needs)));
            }
        };
        let functions = self.functions(library.metric, kind)?;
        let maker = self.maker(library)?;
        let instance = maker.create(kind, functions.create, functions.destroy)?;
        Ok(Box::new(PluginMetric {
            instance,
            functions,
            needs,
            reads_cuda: self.manifest.reads_cuda,
        }))
    }

    /// Creates a sink. `[main]`
    ///
    /// # Errors
    /// Returns an error if the plugin is not of this kind, or if its `create` fails.
    pub fn checkpoint_sink(&self) -> Result<Box<dyn CheckpointSink>> {
        let kind = PluginKind::CheckpointSink;
        let library = match self.place(kind)? {
            Place::Here(library) => library,
            Place::Child(launch) => {
                return Ok(Box::new(RemoteCheckpointSink::new(self.start(launch)?)));
            }
        };
        let functions = self.functions(library.checkpoint_sink, kind)?;
        let maker = self.maker(library)?;
        let instance = maker.create(kind, functions.create, functions.destroy)?;
        Ok(Box::new(PluginCheckpointSink::new(instance, functions)))
    }

    /// Creates an observer. `[main]`
    ///
    /// # Errors
    /// Returns an error if the plugin is not of this kind, or if its `create` fails.
    pub fn observer(&self) -> Result<Box<dyn Observer>> {
        let kind = PluginKind::Observer;
        let events = self.manifest.events.clone();
        let library = match self.place(kind)? {
            Place::Here(library) => library,
            Place::Child(launch) => {
                let remote = self.start(launch)?;
                return Ok(Box::new(RemoteObserver::new(remote, events)));
            }
        };
        let functions = self.functions(library.observer, kind)?;
        let maker = self.maker(library)?;
        let instance = maker.create(kind, functions.create, functions.destroy)?;
        Ok(Box::new(PluginObserver {
            instance,
            functions,
            events,
        }))
    }

    /// Returns whether instances of this kind are created in this process or in a child process.
    fn place(&self, kind: PluginKind) -> Result<Place> {
        match (&self.isolation, self.library) {
            (Some(isolation), _)
                if self.kinds().contains(&kind) && isolation.mode_of(kind) == Mode::Process =>
            {
                Ok(Place::Child(Launch {
                    serve: isolation.serve.clone(),
                    plugin: self.id().into(),
                    image: Arc::clone(&isolation.image),
                    sha256: self.sha256.as_str().into(),
                    path: self.path.as_path().into(),
                    config: Arc::clone(&self.json),
                    kind,
                    shares: Arc::clone(&isolation.shares),
                }))
            }
            (_, Some(library)) => Ok(Place::Here(library)),
            (_, None) => Err(self.is_no(kind)),
        }
    }

    fn maker(&self, library: &'static Library) -> Result<Maker> {
        // The library was loaded before the limit was set, and loading cannot be interrupted, so its load
        // time is checked afterwards.
        if let Some(limit) = self.time_limit.filter(|limit| library.load_time > *limit) {
            let reason = late(library.load_time, limit);
            return Err(failed(self.id(), LOAD, &reason));
        }
        Ok(Maker {
            plugin: name_of(self.id()),
            api: library.api,
            config: Arc::clone(&self.json),
            time_limit: self.time_limit,
            account: self.account.clone(),
        })
    }

    fn start(&self, launch: Launch) -> Result<Remote> {
        let limits = Limits::new(self.time_limit, launch.kind);
        Remote::start(launch, limits, &self.account)
    }

    fn functions<F>(&self, functions: Option<F>, kind: PluginKind) -> Result<F> {
        functions.ok_or_else(|| self.is_no(kind))
    }

    fn is_no(&self, kind: PluginKind) -> Error {
        let kinds: Vec<_> = self.kinds().iter().map(|kind| kind.name()).collect();
        Error::new(
            ErrorKind::Config,
            format!(
                "plugin {} does not implement {kind}, only {}: {}",
                self.id(),
                kinds.join(", "),
                self.path.display()
            ),
        )
        .hint(format!(
            "`host plugin info {}` lists its kinds",
            shell_word(&self.name)
        ))
    }
}

impl Isolation {
    fn mode_of(&self, kind: PluginKind) -> Mode {
        self.mode.unwrap_or(Mode::default_of(kind))
    }
}

/// Reads and inspects the library, and converts the settings to the types that its manifest declares. Runs
/// none of the library's code.
fn examine(
    found: &Found,
    config: &PluginConfig,
) -> Result<(Image, PluginManifest, Map<String, Value>)> {
    let path = &found.path;
    let image = Image::read(path)?;
    let manifest = crate::inspect(image.bytes(), path)?;
    if manifest.id != found.manifest.id {
        return Err(Error::new(
            ErrorKind::Plugin,
            format!(
                "plugin {} was replaced by {}: {}",
                found.manifest.id,
                manifest.id,
                path.display()
            ),
        )
        .hint("the file changed during the check; try again"));
    }
    found.check_lock(&manifest, &image)?;
    let config = config.resolve_as(&manifest, &found.name())?;
    Ok((image, manifest, config))
}

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

/// A plugin with its settings. It makes instances, in this process or each in a child of it; they
/// outlive it.
#[derive(Debug)]
pub struct Plugin {
    path: PathBuf,
    /// How commands name it: by its id or its path.
    name: String,
    sha256: String,
    manifest: PluginManifest,
    config: Map<String, Value>,
    /// The settings as JSON text.
    json: Arc<str>,
    /// Absent where nothing of it runs in this process.
    library: Option<&'static Library>,
    /// Absent where everything of it does.
    isolation: Option<Isolation>,
    time_limit: Option<Duration>,
    account: CallAccount,
}

/// What it takes to run instances in child processes.
#[derive(Debug)]
struct Isolation {
    /// The user's choice for all kinds.
    mode: Option<Mode>,
    serve: ServeCommand,
    shares: Arc<Shares>,
    /// The bytes that were looked at, which nobody can change any more.
    image: Arc<OwnedFd>,
}

/// Where an instance is made.
enum Place {
    Here(&'static Library),
    Child(Launch),
}

impl Plugin {
    /// Reads and hashes the library, looks at those bytes, holds them to the lock, checks the
    /// settings and only then loads the bytes, into this process. The same library may be loaded
    /// again with other settings. `[main]`
    ///
    /// # Errors
    /// The library is refused, or is not the one that is locked, or the settings are refused, or it
    /// does not keep what its manifest promises.
    pub fn load(found: &Found, config: &PluginConfig) -> Result<Self> {
        let (image, manifest, config) = examine(found, config)?;
        let made = Self::make(&image, &found.path, manifest, config, None)?;
        Ok(made.named(found))
    }

    /// The same, but instances of the kinds that run in a process of their own are made in children
    /// that `serve` starts: all kinds or none as `mode` says, else each as is usual for it. If no
    /// kind runs here, nothing is loaded into this process. `[main]`
    ///
    /// # Errors
    /// As for [`Plugin::load`]. What only a load would show comes when an instance is made.
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

    /// Loads bytes that the host has examined, with settings that it has, into this process.
    pub(crate) fn load_image(image: &Image, path: &Path, json: &str) -> Result<Self> {
        let manifest = crate::inspect(image.bytes(), path)?;
        let config = serde_json::from_str(json).map_err(|error| {
            let message = format!(
                "the settings of plugin {} are no JSON: {error}",
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

    /// Its id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// How a command names it: by its id, or by its path if it was asked for by that.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it says about itself.
    pub fn manifest(&self) -> &PluginManifest {
        &self.manifest
    }

    /// What it can be.
    pub fn kinds(&self) -> &[PluginKind] {
        &self.manifest.kinds
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
    /// nothing. A child process is killed.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Option<Duration>) -> Self {
        self.time_limit = limit;
        self
    }

    /// Whether any of its kinds runs in a process of its own.
    pub fn is_isolated(&self) -> bool {
        let isolation = self.isolation.as_ref();
        isolation.is_some_and(|isolation| {
            let mut kinds = self.kinds().iter();
            kinds.any(|kind| isolation.mode_of(*kind) == Mode::Process)
        })
    }

    /// The account of all calls into the instances made here. `create` and `destroy` are not in it.
    pub fn account(&self) -> &CallAccount {
        &self.account
    }

    /// Makes a grouper. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
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

    /// Makes a metric. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
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

    /// Makes a sink. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
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

    /// Makes an observer. `[main]`
    ///
    /// # Errors
    /// The plugin is none, or fails to make it.
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

    /// Where an instance of this kind is made.
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
        // Nobody knew the limit yet, nor could have ended it.
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
                "plugin {} is no {kind} but {}: {}",
                self.id(),
                kinds.join(", "),
                self.path.display()
            ),
        )
        .hint(format!(
            "`host plugin info {}` shows what it is",
            shell_word(&self.name)
        ))
    }
}

impl Isolation {
    fn mode_of(&self, kind: PluginKind) -> Mode {
        self.mode.unwrap_or(Mode::default_of(kind))
    }
}

/// Reads the library, looks at it, and types its settings. Nothing of it runs.
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
                "plugin {} has become {}: {}",
                found.manifest.id,
                manifest.id,
                path.display()
            ),
        )
        .hint("the file was replaced in this moment; try again"));
    }
    found.check_lock(&manifest, &image)?;
    let config = config.resolve_as(&manifest, &found.name())?;
    Ok((image, manifest, config))
}

//! Finds and loads the plugins of a run and creates their instances, before the run starts.

pub(crate) mod accounts;
pub(crate) mod scaffold;

mod destination;

use std::path::{Path, PathBuf};

use host_core::{
    CheckpointSink, Error, ErrorKind, GroupsRequest, Metric, Observer, ParamGroup, ParamInfo,
    QueuePolicy, Result, Supervised, check_groups,
};
use host_plugin::{
    Found, Level, LogRecord, OnError, Plugin, PluginConfig, PluginKind, PluginSpec, SearchPath,
    Secrets, ServeCommand, Target, guard_process, set_log, shell_word,
};

use crate::plan::Plan;
use crate::plan::run_file::{FoundPlugin, PluginEntry};
use crate::plugins::accounts::PluginAccount;
use crate::show::progress::Progress;
use crate::show::warnings::Warnings;

/// The plugin that decides the parameter groups if the user gives no plugin for them.
pub(crate) const DEFAULT_GROUPS: &str = "weight-decay";

/// The loaded plugins, in the user's order.
pub(crate) struct Plugins {
    loaded: Vec<Loaded>,
    /// Whether the user gave a plugin for the parameter groups.
    groups_chosen: bool,
}

struct Loaded {
    spec: PluginSpec,
    plugin: Plugin,
    /// The plugin's id. If several plugins have the same id, all but the first have a number appended.
    label: String,
    warnings: Vec<String>,
    /// The library of the host's own plugin with the same id, which this plugin replaces. `None` if there is
    /// no such plugin.
    shadows: Option<PathBuf>,
}

/// Parameter groups that contain each parameter exactly once.
#[derive(Clone, Debug)]
pub(crate) struct Grouping {
    /// The id of the plugin that decided the groups.
    pub(crate) by: String,
    /// The model's parameters.
    pub(crate) params: Vec<ParamInfo>,
    /// The groups.
    pub(crate) groups: Vec<ParamGroup>,
    /// Warnings of the plugin.
    pub(crate) warnings: Vec<String>,
}

/// A plugin that was found, but not loaded.
struct Chosen {
    spec: PluginSpec,
    found: Found,
}

impl Plugins {
    /// Loads the plugins of a training run. If none of them decides the parameter groups, also loads the
    /// default plugin for parameter groups.
    ///
    /// # Errors
    /// Returns an error if a plugin is not found or cannot be loaded, or if two plugins conflict.
    pub(crate) fn load(plan: &Plan) -> Result<Self> {
        let (chosen, groups_chosen) = choose(plan)?;
        Ok(Self {
            loaded: Loaded::all(chosen, plan.secrets.clone())?,
            groups_chosen,
        })
    }

    /// Loads the checkpoint sinks among these plugins. Their labels are the same as in a training run.
    ///
    /// # Errors
    /// Returns an error if a plugin is not found, or a sink cannot be loaded.
    pub(crate) fn load_sinks(
        specs: &[PluginSpec],
        search: &SearchPath,
        mut secrets: Secrets,
    ) -> Result<Self> {
        let mut sinks = Vec::new();
        for spec in specs {
            let chosen = Chosen::find(spec.clone(), search)?;
            match chosen.is(PluginKind::CheckpointSink) {
                true => sinks.push(chosen),
                false => secrets.add(Some(&chosen.found.manifest), &spec.config),
            }
        }
        Ok(Self {
            loaded: Loaded::all(sinks, secrets)?,
            groups_chosen: false,
        })
    }

    /// Loads the plugins that a rank other than the lead uses: the parameter groups and the metrics.
    ///
    /// # Errors
    /// See [`Plugins::load`].
    pub(crate) fn load_for_follower(plan: &Plan) -> Result<Self> {
        let (chosen, groups_chosen) = choose(plan)?;
        let mut secrets = plan.secrets.clone();
        let mut used = Vec::new();
        for chosen in chosen {
            match chosen.is(PluginKind::ParamGroups) || chosen.is(PluginKind::Metric) {
                true => used.push(chosen),
                false => secrets.add(Some(&chosen.found.manifest), &chosen.spec.config),
            }
        }
        Ok(Self {
            loaded: Loaded::all(used, secrets)?,
            groups_chosen,
        })
    }

    /// Loads only one plugin of a run. The secrets of the run's other plugins are hidden from it.
    ///
    /// # Errors
    /// Returns an error if the plugin is not found or cannot be loaded.
    pub(crate) fn load_alone(
        spec: PluginSpec,
        others: &[PluginSpec],
        search: &SearchPath,
        mut secrets: Secrets,
    ) -> Result<Self> {
        for other in others {
            // A plugin that is not found is ignored here. When a training loads it, that is an error.
            let found = search.find(&other.target).ok();
            secrets.add(found.as_ref().map(|found| &found.manifest), &other.config);
        }
        Ok(Self {
            loaded: Loaded::all(vec![Chosen::find(spec, search)?], secrets)?,
            groups_chosen: false,
        })
    }

    /// Returns warnings about the plugins. Each warning is about one of these: a library that replaces a
    /// plugin of the host; a library that other users can change; sinks that deliver to the same place.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let of_each = self.loaded.iter().flat_map(|loaded| &loaded.warnings);
        let sinks: Vec<_> = with_kind(&self.loaded, PluginKind::CheckpointSink)
            .map(|sink| (&*sink.label, sink.plugin.manifest(), sink.plugin.config()))
            .collect();
        of_each
            .cloned()
            .chain(destination::shared(&sinks))
            .collect()
    }

    /// Returns the sinks' labels.
    pub(crate) fn sink_labels(&self) -> Vec<String> {
        let sinks = with_kind(&self.loaded, PluginKind::CheckpointSink);
        sinks.map(|sink| sink.label.clone()).collect()
    }

    /// Returns a line for each plugin, and a line if the user gave no sink.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .loaded
            .iter()
            .map(|Loaded { plugin, .. }| {
                let kinds: Vec<_> = plugin.kinds().iter().map(|kind| kind_word(*kind)).collect();
                let version = &plugin.manifest().version;
                let is_default =
                    !self.groups_chosen && plugin.kinds().contains(&PluginKind::ParamGroups);
                let default = if is_default { " (the default)" } else { "" };
                format!(
                    "plugin {} {version}: {}{default}",
                    plugin.id(),
                    kinds.join(", ")
                )
            })
            .collect();
        if with_kind(&self.loaded, PluginKind::CheckpointSink)
            .next()
            .is_none()
        {
            lines.push("no checkpoint sink: checkpoints stay in the run folder".to_owned());
        }
        lines
    }

    /// Groups the parameters.
    ///
    /// # Errors
    /// Returns an error if the plugin fails, or its groups do not contain each parameter exactly once.
    pub(crate) fn group(&self, params: &[ParamInfo], weight_decay: f64) -> Result<Grouping> {
        let grouper = with_kind(&self.loaded, PluginKind::ParamGroups).next();
        let plugin = &grouper.expect("load adds a default").plugin;
        let mut grouper = plugin
            .param_groups()
            .map_err(|error| hinted(error, plugin))?;
        let request = GroupsRequest {
            params,
            weight_decay,
        };
        let (groups, warnings) = grouper
            .group(request)
            .map_err(|error| hinted(error, plugin))?;
        check_groups(grouper.id(), params, &groups)?;
        Ok(Grouping {
            by: grouper.id().to_owned(),
            params: params.to_vec(),
            groups,
            warnings,
        })
    }

    /// Creates the evaluation's metrics.
    ///
    /// # Errors
    /// Returns an error if a plugin fails to create its metric.
    pub(crate) fn metrics(&self) -> Result<Vec<Supervised<dyn Metric>>> {
        self.supervised(PluginKind::Metric, |_| true, Plugin::metric)
    }

    /// Creates the sinks whose label `is_wanted` accepts, each with the policy of its queue.
    ///
    /// # Errors
    /// Returns an error if a plugin fails to create its sink.
    pub(crate) fn sinks(
        &self,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(Supervised<dyn CheckpointSink>, QueuePolicy)>> {
        let kind = PluginKind::CheckpointSink;
        let sinks = self.supervised(kind, &is_wanted, Plugin::checkpoint_sink)?;
        let loaded = with_kind(&self.loaded, kind).filter(|loaded| is_wanted(&loaded.label));
        let policies = loaded.map(|loaded| loaded.spec.policy.queue.unwrap_or_default());
        Ok(sinks.into_iter().zip(policies).collect())
    }

    /// Creates the observers.
    ///
    /// # Errors
    /// Returns an error if a plugin fails to create its observer.
    pub(crate) fn observers(&self) -> Result<Vec<Supervised<dyn Observer>>> {
        self.supervised(PluginKind::Observer, |_| true, Plugin::observer)
    }

    fn supervised<P: ?Sized>(
        &self,
        kind: PluginKind,
        is_wanted: impl Fn(&str) -> bool,
        make: impl Fn(&Plugin) -> Result<Box<P>>,
    ) -> Result<Vec<Supervised<P>>> {
        with_kind(&self.loaded, kind)
            .filter(|loaded| is_wanted(&loaded.label))
            .map(|loaded| {
                let port = make(&loaded.plugin).map_err(|error| hinted(error, &loaded.plugin))?;
                let on_error = loaded.spec.policy.on_error.unwrap_or_default();
                let supervised = Supervised::new(&*loaded.label, on_error, port);
                Ok(supervised.named(shell_word(loaded.plugin.name())))
            })
            .collect()
    }

    /// Removes the plugins whose only kind is checkpoint sink.
    pub(crate) fn without_sinks(mut self) -> Self {
        self.loaded
            .retain(|loaded| loaded.plugin.kinds() != [PluginKind::CheckpointSink]);
        self
    }

    /// Returns the entries for `run.toml`.
    pub(crate) fn entries(&self) -> Vec<PluginEntry> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or(path.to_owned());
        let entry = |Loaded {
                         spec,
                         plugin,
                         shadows,
                         ..
                     }: &Loaded| PluginEntry {
            target: spec.target.clone(),
            policy: spec.policy,
            config: plugin.config().clone(),
            found: FoundPlugin {
                id: plugin.id().to_owned(),
                version: plugin.manifest().version.clone(),
                sha256: plugin.sha256().to_owned(),
                path: absolute(plugin.path()),
                shadows: shadows.as_deref().map(absolute),
            },
        };
        self.loaded.iter().map(entry).collect()
    }

    /// Returns each plugin's account of its calls. The plugin's later calls are added to the same account.
    pub(crate) fn accounts(&self) -> Vec<PluginAccount> {
        let account = |Loaded { plugin, label, .. }: &Loaded| {
            let account = plugin.account().clone();
            PluginAccount::new(label.clone(), account, plugin.kinds(), plugin.is_isolated())
        };
        self.loaded.iter().map(account).collect()
    }
}

impl Chosen {
    fn find(spec: PluginSpec, search: &SearchPath) -> Result<Self> {
        let found = search.find(&spec.target)?;
        check_policy(&spec, &found.manifest.id, &found.manifest.kinds)?;
        Ok(Self { spec, found })
    }

    fn is(&self, kind: PluginKind) -> bool {
        self.found.manifest.kinds.contains(&kind)
    }

    /// Returns the plugin's id, with the path if the user gave a path.
    fn describe(&self) -> String {
        let id = &self.found.manifest.id;
        match &self.spec.target {
            Target::Id(_) => id.clone(),
            Target::Path(path) => format!("{id} of {}", path.display()),
        }
    }
}

impl Loaded {
    /// Loads the plugins in order. Hides all secrets from `/proc` before any of the plugins' code runs.
    fn all(chosen: Vec<Chosen>, mut secrets: Secrets) -> Result<Vec<Self>> {
        guard_process();
        for Chosen { spec, found } in &chosen {
            secrets.add(Some(&found.manifest), &spec.config);
        }
        secrets.conceal();
        let mut all: Vec<Self> = Vec::new();
        for Chosen { spec, found } in chosen {
            let serve = ServeCommand::this_host().with_secrets(secrets.clone());
            let plugin = Plugin::load_isolated(&found, &spec.config, spec.policy.mode, serve)?
                .with_time_limit(spec.policy.time_limit);
            let label = label(plugin.id(), all.iter().map(|other| other.label.as_str()));
            all.push(Self {
                spec,
                plugin,
                label,
                warnings: found.warnings(),
                shadows: found.shadows,
            });
        }
        Ok(all)
    }
}

/// Finds the plugins of a training run, including the default plugin for parameter groups if it is needed. Also
/// returns whether the user gave a plugin for the parameter groups.
///
/// # Errors
/// Returns an error if a plugin is not found, or if two plugins conflict.
fn choose(plan: &Plan) -> Result<(Vec<Chosen>, bool)> {
    let search = plan.search_path();
    let mut chosen = plan
        .plugins
        .iter()
        .map(|spec| Chosen::find(spec.clone(), &search))
        .collect::<Result<Vec<_>>>()?;
    let groups_chosen = check_groupers(&chosen)?;
    if !groups_chosen {
        let spec = PluginSpec::by_id(DEFAULT_GROUPS, PluginConfig::default());
        chosen.push(Chosen::find(spec, &search)?);
    }
    check_metrics(&chosen)?;
    Ok((chosen, groups_chosen))
}

/// Returns the label, the version and the SHA-256 of each plugin of a training run. Loads none of them.
///
/// # Errors
/// Returns an error if a plugin is not found or cannot be read, or if two plugins conflict.
pub(crate) fn found(plan: &Plan) -> Result<Vec<(String, String, String)>> {
    let (chosen, _) = choose(plan)?;
    let mut all: Vec<(String, String, String)> = Vec::new();
    for Chosen { found, .. } in chosen {
        let label = label(
            &found.manifest.id,
            all.iter().map(|(label, ..)| label.as_str()),
        );
        all.push((label, found.manifest.version.clone(), found.sha256()?));
    }
    Ok(all)
}

/// Returns whether a plugin decides the parameter groups.
///
/// # Errors
/// Returns an error if more than one plugin decides the parameter groups.
fn check_groupers(chosen: &[Chosen]) -> Result<bool> {
    let groupers: Vec<String> = chosen
        .iter()
        .filter(|chosen| chosen.is(PluginKind::ParamGroups))
        .map(Chosen::describe)
        .collect();
    match groupers.len() {
        0 | 1 => Ok(!groupers.is_empty()),
        _ => {
            let message = format!(
                "two plugins decide the parameter groups: {}",
                groupers.join(", ")
            );
            Err(Error::new(ErrorKind::Config, message).hint("leave one of them out"))
        }
    }
}

/// Rejects two metrics with the same id, because their values would have the same names.
fn check_metrics(chosen: &[Chosen]) -> Result<()> {
    let metrics: Vec<&Chosen> = chosen
        .iter()
        .filter(|chosen| chosen.is(PluginKind::Metric))
        .collect();
    for (n, metric) in metrics.iter().enumerate() {
        let id = &metric.found.manifest.id;
        let Some(earlier) = metrics[..n].iter().find(|m| m.found.manifest.id == *id) else {
            continue;
        };
        let (first, second) = (earlier.describe(), metric.describe());
        let which = match first == second {
            true => String::new(),
            false => format!(", as {first} and as {second}"),
        };
        let message = format!("the metric {id} is given twice{which}");
        return Err(Error::new(ErrorKind::Config, message)
            .hint("leave one out; their values would have the same names"));
    }
    Ok(())
}

/// Rejects policies that make no sense: a training run cannot continue without parameter groups, and only
/// sinks have queues.
fn check_policy(spec: &PluginSpec, id: &str, kinds: &[PluginKind]) -> Result<()> {
    let is_only_groups = kinds == [PluginKind::ParamGroups];
    match spec.policy.on_error {
        Some(OnError::Warn | OnError::DisableAfter(_)) if is_only_groups => {
            let message = format!(
                "on_error of plugin {id} must be \"fail\": training is not possible without its parameter groups"
            );
            Err(Error::new(ErrorKind::Config, message).hint("leave on_error out"))
        }
        _ if spec.policy.queue.is_some() && !kinds.contains(&PluginKind::CheckpointSink) => {
            let message = format!("plugin {id} has no queue: it is not a checkpoint sink");
            Err(Error::new(ErrorKind::Config, message).hint("leave queue out"))
        }
        _ => Ok(()),
    }
}

/// Returns a warning for each plugin whose library has changed since the run was recorded, or that is no
/// longer part of the run. A new plugin needs no warning: the user added it to `run.toml`.
///
/// # Errors
/// Returns an error if the library of a recorded plugin now contains a different plugin.
pub(crate) fn changes(then: &[FoundPlugin], now: &[PluginEntry]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for then in then {
        if let Some(now) = now.iter().find(|now| now.found.id == then.id) {
            warnings.extend(replaced_by(then, &now.found));
        } else if let Some(now) = now.iter().find(|now| now.found.path == then.path) {
            let now = &now.found;
            return Err(Error::new(
                ErrorKind::Plugin,
                format!(
                    "plugin {} was replaced by {}: {}",
                    then.id,
                    now.id,
                    now.path.display()
                ),
            )
            .hint("restore the library that the run was started with"));
        } else {
            warnings.push(format!("plugin {} is no longer part of the run", then.id));
        }
    }
    Ok(warnings)
}

/// Returns a warning for each of these plugins whose library has changed since the run was recorded.
pub(crate) fn replaced(then: &[FoundPlugin], now: &[PluginEntry]) -> Vec<String> {
    let then_of = |now: &PluginEntry| then.iter().find(|then| then.id == now.found.id);
    now.iter()
        .filter_map(|now| replaced_by(then_of(now)?, &now.found))
        .collect()
}

fn replaced_by(then: &FoundPlugin, now: &FoundPlugin) -> Option<String> {
    (then.sha256 != now.sha256).then(|| {
        format!(
            "the library of plugin {} has changed: version {} before, {} now: {}",
            now.id,
            then.version,
            now.version,
            now.path.display()
        )
    })
}

/// Shows the plugins' log messages. Warnings and errors become warnings of the run.
pub(crate) fn show_logs(progress: &Progress, warnings: &Warnings) {
    let (progress, warnings) = (progress.clone(), warnings.clone());
    set_log(Level::Info, move |record: &LogRecord<'_>| {
        match record.level {
            Level::Error | Level::Warn => warnings.logged(record.plugin, record.message),
            Level::Info | Level::Debug => {
                progress.say(&format!("{}: {}", record.plugin, record.message));
            }
        }
    });
}

/// Returns the user-facing name of a plugin kind.
pub(crate) fn kind_word(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::ParamGroups => "parameter groups",
        PluginKind::Metric => "metric",
        PluginKind::CheckpointSink => "checkpoint sink",
        PluginKind::Observer => "observer",
    }
}

/// Adds a hint to a plugin's error if the error has no hint.
fn hinted(error: Error, plugin: &Plugin) -> Error {
    match error.hint_text() {
        Some(_) => error,
        None => error.hint(format!(
            "`host plugin info {}` shows its settings",
            shell_word(plugin.name())
        )),
    }
}

fn with_kind(loaded: &[Loaded], kind: PluginKind) -> impl Iterator<Item = &Loaded> {
    loaded
        .iter()
        .filter(move |loaded| loaded.plugin.kinds().contains(&kind))
}

fn label<'a>(id: &str, taken: impl Iterator<Item = &'a str>) -> String {
    let taken: Vec<&str> = taken.collect();
    let numbered = (2..).map(|number| format!("{id}-{number}"));
    let mut names = std::iter::once(id.to_owned()).chain(numbered);
    names
        .find(|name| !taken.contains(&name.as_str()))
        .expect("an unused number always exists")
}

#[cfg(test)]
mod tests {
    use host_plugin::Policy;

    use super::*;

    #[test]
    fn a_second_plugin_with_the_same_id_has_a_number() {
        assert_eq!(label("a", [].into_iter()), "a");
        assert_eq!(label("a", ["b", "a"].into_iter()), "a-2");
        assert_eq!(label("a", ["a", "a-2"].into_iter()), "a-3");
    }

    #[test]
    fn parameter_groups_must_fail_on_error() {
        let check = |on_error: &str, kinds: &[PluginKind]| {
            let spec = format!("x:on_error={on_error}").parse().expect("a spec");
            check_policy(&spec, "x", kinds)
        };
        let groups = [PluginKind::ParamGroups];
        for refused in ["warn", "disable_after=3"] {
            let error = check(refused, &groups).expect_err("refused");
            assert!(error.message().contains("must be \"fail\""), "{error}");
            assert!(check(refused, &[PluginKind::ParamGroups, PluginKind::Metric]).is_ok());
        }
        assert!(check("fail", &groups).is_ok());
    }

    fn entry(id: &str, sha256: &str) -> PluginEntry {
        PluginEntry {
            target: Target::Id(id.to_owned()),
            policy: Policy::default(),
            config: serde_json::Map::new(),
            found: FoundPlugin {
                id: id.to_owned(),
                version: "1".to_owned(),
                sha256: sha256.to_owned(),
                path: "/a.so".into(),
                shadows: None,
            },
        }
    }

    #[test]
    fn a_changed_library_is_a_warning_and_a_different_plugin_is_an_error() {
        let then = [entry("a", "1").found];
        let changes = |now: &[PluginEntry]| changes(&then, now);
        assert!(changes(&[entry("a", "1")]).expect("same").is_empty());
        assert_eq!(changes(&[entry("a", "2")]).expect("changed").len(), 1);
        assert!(changes(&[entry("b", "1")]).is_err());
    }

    #[test]
    fn plugins_can_be_added_and_removed_anywhere_in_the_list() {
        let mut new = entry("b", "1");
        new.found.path = "/b.so".into();
        let now = [new, entry("a", "1")];
        let then = [entry("a", "1").found];
        assert!(changes(&then, &now).expect("one more").is_empty());
        let gone = changes(&[now[0].found.clone(), then[0].clone()], &now[1..]);
        assert_eq!(
            gone.expect("one less"),
            ["plugin b is no longer part of the run"]
        );
    }
}

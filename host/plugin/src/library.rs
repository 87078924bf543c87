use std::collections::HashMap;
use std::error::Error as _;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};
use host_plugin_abi::{ENTRY_SYMBOL, HostApi, HostPlugin, HostPluginEntry, HostPluginItem};
use libloading::os::unix as dl;

use crate::checkpoint_sink::CheckpointSinkFunctions;
use crate::guard::{self, Look, name_of};
use crate::host_api::{host_api, take_error};
use crate::image::{Image, Mapped};
use crate::inspect::{Refusal, inspect};
use crate::manifest::check_abi;
use crate::metric::MetricFunctions;
use crate::observer::ObserverFunctions;
use crate::param_groups::ParamGroupsFunctions;
use crate::{PluginKind, PluginManifest, vtable};

/// A loaded library. It is never unloaded, since its threads, thread-local variables and addresses may still
/// be in use.
#[derive(Debug)]
pub struct Library {
    /// The manifest in the library's file.
    pub manifest: PluginManifest,
    /// The host API that was passed to the library.
    pub api: &'static HostApi,
    /// The function table for parameter groups, if the library has a plugin of this kind.
    pub param_groups: Option<ParamGroupsFunctions>,
    /// See `param_groups`.
    pub metric: Option<MetricFunctions>,
    /// See `param_groups`.
    pub checkpoint_sink: Option<CheckpointSinkFunctions>,
    /// See `param_groups`.
    pub observer: Option<ObserverFunctions>,
    /// How long the library's constructors and its entry function took.
    pub load_time: Duration,
}

/// The loaded libraries, by the SHA-256 of their bytes. The same bytes are loaded only once.
static LOADED: Mutex<Option<HashMap<[u8; 32], &'static Library>>> = Mutex::new(None);

/// The name of the call that runs the library's constructors and its entry function.
pub(crate) const LOAD: &str = "load";

/// Maximum number of items in a description.
const MOST_ITEMS: usize = 16;
/// Maximum size of an item in bytes, including fields that a newer ABI appends.
const LARGEST_ITEM: usize = 4096;

impl Library {
    /// Loads the bytes of an image, unless the same bytes are already loaded. `path` is only used in
    /// messages.
    pub fn load(image: &Image, path: &Path) -> Result<&'static Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        if let Some(library) = loaded.get(&image.digest()) {
            return Ok(library);
        }
        let manifest = inspect(image.bytes(), path)?;
        let begun = Instant::now();
        let entry = open(image, &manifest.id, path)?;
        let library = Self::describe(entry, manifest, begun)
            .map_err(|fault| {
                Refusal::new(
                    fault,
                    "the library violates the ABI; its author must correct it",
                )
            })
            .map_err(|refusal| refusal.at(path))?;
        let library: &'static Self = Box::leak(Box::new(library));
        loaded.insert(image.digest(), library);
        Ok(library)
    }

    /// Calls the entry function and checks the plugin's description against its manifest.
    fn describe(
        entry: HostPluginEntry,
        manifest: PluginManifest,
        begun: Instant,
    ) -> Result<Self, String> {
        let id = &manifest.id;
        let api = host_api(id);
        take_error();
        // SAFETY: the symbol's name determines the type of the entry function, and the API lives forever.
        let plugin = guard::enter(name_of(id), LOAD, Look::Close, || unsafe { entry(api) });
        guard::loaded();
        let load_time = begun.elapsed();
        if plugin.is_null() {
            let reason = take_error().unwrap_or_else(|| "it gave no reason".to_owned());
            return Err(format!("plugin {id} rejected this host: {reason}"));
        }
        let says = |fault: String| format!("plugin {id} {fault}");
        // SAFETY: by the ABI the description has the size that its first four bytes declare.
        let plugin = unsafe { description(plugin) }.map_err(says)?;
        check_abi(
            &format!("plugin {id}"),
            plugin.abi_major,
            plugin.min_host_minor,
        )
        .map_err(|refusal| refusal.reason)?;
        for (word, of_code, of_manifest) in [
            ("id", plugin.id, &manifest.id),
            ("version", plugin.version, &manifest.version),
        ] {
            // SAFETY: by the ABI the text is readable forever.
            let bytes = unsafe { crate::host_api::bytes_of(of_code, 256) }.unwrap_or_default();
            if bytes != of_manifest.as_bytes() {
                return Err(says(format!(
                    "has the {word} {of_manifest:?} in its manifest and {:?} in its code",
                    String::from_utf8_lossy(bytes)
                )));
            }
        }
        // SAFETY: by the ABI the items are an array of `n_items`.
        let items = unsafe { items(&plugin) }.map_err(says)?;
        let mut kinds: Vec<u32> = items.iter().map(|item| item.kind).collect();
        let mut promised: Vec<u32> = manifest.kinds.iter().map(|kind| kind.number()).collect();
        kinds.sort_unstable();
        promised.sort_unstable();
        if kinds != promised {
            return Err(says(format!(
                "has the kinds {promised:?} in its manifest and {kinds:?} in its code"
            )));
        }
        let table = |kind: PluginKind| {
            let item = items.iter().find(|item| item.kind == kind.number());
            item.map(|item| item.vtable)
        };
        // SAFETY: by the ABI an item's table matches its kind, has its declared size and stays valid.
        let (param_groups, metric, checkpoint_sink, observer) = unsafe {
            (
                table(PluginKind::ParamGroups)
                    .map(|at| vtable::read(at).and_then(ParamGroupsFunctions::from_table)),
                table(PluginKind::Metric)
                    .map(|at| vtable::read(at).and_then(MetricFunctions::from_table)),
                table(PluginKind::CheckpointSink)
                    .map(|at| vtable::read(at).and_then(CheckpointSinkFunctions::from_table)),
                table(PluginKind::Observer)
                    .map(|at| vtable::read(at).and_then(ObserverFunctions::from_table)),
            )
        };
        Ok(Self {
            param_groups: param_groups.transpose().map_err(says)?,
            metric: metric.transpose().map_err(says)?,
            checkpoint_sink: checkpoint_sink.transpose().map_err(says)?,
            observer: observer.transpose().map_err(says)?,
            api,
            manifest,
            load_time,
        })
    }
}

/// Maps the image into the process permanently and returns its entry function.
pub fn open(image: &Image, id: &str, path: &Path) -> Result<HostPluginEntry> {
    let fail = |reason: &str| {
        Error::new(
            ErrorKind::Plugin,
            format!("plugin {id} cannot be loaded: {reason}: {}", path.display()),
        )
        .hint(
            "`ldd -r` on the library lists the libraries that it links and those that are missing",
        )
    };
    let mapped = image
        .map(id)
        .map_err(|error| Error::io("copy the plugin", path, &error))?;
    let place = mapped.path(id);
    let flags = libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE;
    let name = name_of(id);
    guard::loaded();
    // SAFETY: this call runs the library's constructors. The library has passed the inspection. Beyond that,
    // the user has chosen to trust it.
    let opened = guard::enter(name, LOAD, Look::Close, || unsafe {
        dl::Library::open(Some(&place), flags)
    });
    guard::loaded();
    let library = opened.map_err(|error| {
        let reason = reason(&error);
        // The loader reports the path of the copy in memory, which is meaningless to the user.
        let place = format!("{}: ", place.display());
        fail(reason.strip_prefix(&place).unwrap_or(&reason))
    })?;
    if let Mapped::Sealed(file) = mapped {
        // The file must stay open forever; see `Mapped::Sealed`.
        let _ = ManuallyDrop::new(file);
    }
    let library = ManuallyDrop::new(library);
    // SAFETY: the symbol's name determines the type.
    let entry = unsafe { library.get::<HostPluginEntry>(ENTRY_SYMBOL.as_bytes()) }
        .map_err(|error| fail(&reason(&error)))?;
    guard::remember(name, *entry as *const () as usize);
    Ok(*entry)
}

/// Returns the loader's own message.
fn reason(error: &libloading::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// Copies a plugin's description of itself.
///
/// # Safety
/// `at` must point to a description with the size that its first four bytes declare.
pub unsafe fn description(at: *const HostPlugin) -> Result<HostPlugin, String> {
    // SAFETY: the caller guarantees the declared size.
    let size = unsafe { at.cast::<u32>().read_unaligned() } as usize;
    if size < size_of::<HostPlugin>() {
        return Err(format!(
            "has a description of {size} bytes, fewer than the {} of ABI 1.0",
            size_of::<HostPlugin>()
        ));
    }
    // SAFETY: all fields that this host reads are within the size.
    Ok(unsafe { at.read_unaligned() })
}

/// Copies the items of a description.
///
/// # Safety
/// `plugin.items` must point to `plugin.n_items` items, each with the size that it declares.
unsafe fn items(plugin: &HostPlugin) -> Result<Vec<HostPluginItem>, String> {
    if plugin.n_items > MOST_ITEMS || plugin.items.is_null() {
        return Err(match plugin.n_items {
            0..=MOST_ITEMS => "has a description without items".to_owned(),
            count => format!("has a description with {count} items, more than {MOST_ITEMS}"),
        });
    }
    let mut at = plugin.items.cast::<u8>();
    let mut items = Vec::with_capacity(plugin.n_items);
    for _ in 0..plugin.n_items {
        // SAFETY: the caller guarantees the declared size.
        let size = unsafe { at.cast::<u32>().read_unaligned() } as usize;
        if !(size_of::<HostPluginItem>()..=LARGEST_ITEM).contains(&size) {
            return Err(format!(
                "has a description with an item of {size} bytes, not {} to {LARGEST_ITEM}",
                size_of::<HostPluginItem>()
            ));
        }
        // SAFETY: the fields are within the item, and the next item follows it.
        unsafe {
            items.push(at.cast::<HostPluginItem>().read_unaligned());
            at = at.add(size);
        }
    }
    Ok(items)
}

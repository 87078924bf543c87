//! The look before the load: what can be known of a library without running any of its code.

use std::ops::ControlFlow;
use std::path::Path;

use host_core::{Error, Kind};
use host_plugin_abi::{ENTRY_SYMBOL, HOST_ABI_MAJOR, MANIFEST_SECTION};
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::{NativeEndian, ReadRef};
use serde_json::{Map, Value};

use crate::PluginManifest;
use crate::manifest::{check_abi, read_id};

/// Largest library in bytes that is looked at.
pub(crate) const LARGEST_FILE: u64 = 512 << 20;
/// Largest manifest in bytes.
const LARGEST_MANIFEST: u64 = 1 << 20;
/// What the entry symbols of all major versions begin with.
const ENTRY_PREFIX: &str = "host_plugin_entry_v";
/// Libraries that a plugin must not bring: the host has its own, and two copies of one, or one copy
/// in another version, break both sides.
const HOST_LIBRARIES: [&str; 7] = [
    "libtorch",
    "libc10",
    "libtch",
    "libopenblas",
    "libmkl",
    "libblas",
    "libcblas",
];

type Header = elf::FileHeader64<NativeEndian>;

/// Why a library is not loaded, and the way out. The path is added by [`Refusal::at`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) hint: String,
}

impl Refusal {
    pub(crate) fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            hint: hint.into(),
        }
    }

    /// The error about the library at `path`.
    pub(crate) fn at(self, path: &Path) -> Error {
        Error::new(Kind::Plugin, format!("{}: {}", self.reason, path.display())).hint(self.hint)
    }
}

/// What the look at a library gave.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// The id that the manifest claims, even where the library is refused.
    pub(crate) id: Option<String>,
    /// The manifest, if the library may be loaded.
    pub(crate) outcome: Result<PluginManifest, Refusal>,
}

/// Looks at the bytes of a library and gives its manifest. None of its code runs, and no bytes make
/// this panic.
///
/// # Errors
/// Says why the library cannot be a plugin of this host; `path` is only named.
pub fn inspect(bytes: &[u8], path: &Path) -> host_core::Result<PluginManifest> {
    look(bytes).outcome.map_err(|refusal| refusal.at(path))
}

/// Looks at a library through any reader, which reads no more of it than is needed.
pub(crate) fn look<'data, R: ReadRef<'data>>(data: R) -> Inspection {
    let mut id = None;
    let outcome = check(data, &mut id);
    Inspection { id, outcome }
}

fn check<'data, R: ReadRef<'data>>(
    data: R,
    id: &mut Option<String>,
) -> Result<PluginManifest, Refusal> {
    check_identity(data)?;
    let header = Header::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let sections = header.sections(endian, data).map_err(damaged)?;
    let manifest = read_manifest(endian, data, &sections);
    if let Ok(object) = &manifest {
        *id = read_id(object).map(str::to_owned);
    }
    let subject = id
        .as_ref()
        .map_or_else(|| "plugin".to_owned(), |id| format!("plugin {id}"));
    check_entry(&subject, &exported_entries(endian, data, &sections)?)?;
    let manifest = PluginManifest::from_object(&manifest?)?;
    check_dynamic(&subject, header, endian, data)?;
    Ok(manifest)
}

/// What the first bytes say: ELF, this machine, a shared object.
fn check_identity<'data, R: ReadRef<'data>>(data: R) -> Result<(), Refusal> {
    let no_library = |what: &str| {
        Refusal::new(
            format!("plugin is {what}, not a shared library"),
            "give the .so file; a Rust crate makes one with crate-type = [\"cdylib\"]",
        )
    };
    // The same offsets hold for 32 and 64 bits up to here.
    let Ok(start) = data.read_bytes_at(0, 20) else {
        return Err(no_library("a file of less than 20 bytes"));
    };
    if start[..4] != elf::ELFMAG {
        return Err(no_library("no ELF file"));
    }
    let u16_at = |at: usize| {
        let bytes = [start[at], start[at + 1]];
        match start[5] {
            2 => u16::from_be_bytes(bytes),
            _ => u16::from_le_bytes(bytes),
        }
    };
    let built_for = (start[4], start[5], u16_at(18));
    if built_for != this_machine() {
        return Err(Refusal::new(
            format!(
                "plugin is built for {}, this host runs on {}",
                machine_name(built_for),
                machine_name(this_machine())
            ),
            "build it for this machine",
        ));
    }
    match u16_at(16) {
        3 => Ok(()),
        1 => Err(no_library("an object file")),
        2 => Err(no_library("a program")),
        _ => Err(no_library("another kind of ELF file")),
    }
}

/// ELF class, byte order and machine of what runs here.
fn this_machine() -> (u8, u8, u16) {
    let class = if cfg!(target_pointer_width = "64") {
        2
    } else {
        1
    };
    let order = if cfg!(target_endian = "big") { 2 } else { 1 };
    let machine = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv64" => 243,
        _ => 0,
    };
    (class, order, machine)
}

fn machine_name((class, order, machine): (u8, u8, u16)) -> String {
    let name = match machine {
        3 => "x86",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        _ => return format!("ELF machine {machine}"),
    };
    match (class, order) {
        (1, _) if machine == 62 || machine == 183 => format!("{name} with 32-bit pointers"),
        (_, 2) => format!("{name}, big-endian"),
        _ => name.to_owned(),
    }
}

/// The names of the entry functions that the library exports, of any major version.
fn exported_entries<'data, R: ReadRef<'data>>(
    endian: NativeEndian,
    data: R,
    sections: &SectionTable<'data, Header, R>,
) -> Result<Vec<String>, Refusal> {
    let symbols = sections
        .symbols(endian, data, elf::SHT_DYNSYM)
        .map_err(damaged)?;
    // One read for all names: a lookup for each would be a system call for each.
    let names = match sections.section(symbols.string_section()) {
        Ok(section) => section.data(endian, data).map_err(damaged)?,
        Err(_) => &[],
    };
    Ok(symbols
        .iter()
        .filter(|symbol| !symbol.is_undefined(endian) && !symbol.is_local())
        .filter(|symbol| {
            matches!(
                symbol.st_visibility(),
                elf::STV_DEFAULT | elf::STV_PROTECTED
            )
        })
        .filter_map(|symbol| c_text(names, u64::from(symbol.st_name(endian))))
        .filter(|name| name.starts_with(ENTRY_PREFIX))
        .map(str::to_owned)
        .collect())
}

fn check_entry(subject: &str, entries: &[String]) -> Result<(), Refusal> {
    match entries {
        [] => Err(Refusal::new(
            format!("{subject} exports no function {ENTRY_SYMBOL}"),
            "if it is a plugin, build it with the SDK's macro, or give the function C linkage and default visibility",
        )),
        [entry] if entry == ENTRY_SYMBOL => Ok(()),
        [entry] => match entry[ENTRY_PREFIX.len()..].parse() {
            Ok(major) if major != HOST_ABI_MAJOR => check_abi(subject, major, 0),
            _ => Err(Refusal::new(
                format!("{subject} exports {entry}, not {ENTRY_SYMBOL}"),
                "its author must name the entry function so",
            )),
        },
        several => Err(Refusal::new(
            format!(
                "{subject} exports more than one entry function ({})",
                several.join(", ")
            ),
            "build one library for each version of the ABI",
        )),
    }
}

fn read_manifest<'data, R: ReadRef<'data>>(
    endian: NativeEndian,
    data: R,
    sections: &SectionTable<'data, Header, R>,
) -> Result<Map<String, Value>, Refusal> {
    let Some((_, section)) = sections.section_by_name(endian, MANIFEST_SECTION.as_bytes()) else {
        return Err(Refusal::new(
            format!("plugin has no manifest (the section {MANIFEST_SECTION})"),
            "build it with the SDK's macro, or put the JSON text into that section; in Rust the item needs #[used]",
        ));
    };
    let no_json = |why: String| {
        Refusal::new(
            format!("plugin's manifest is not one JSON object: {why}"),
            "its author must correct the manifest that is embedded at build time",
        )
    };
    if section.sh_size(endian) > LARGEST_MANIFEST {
        return Err(no_json(format!("larger than {LARGEST_MANIFEST} bytes")));
    }
    let bytes = section.data(endian, data).map_err(damaged)?;
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    let text = std::str::from_utf8(&bytes[..end]).map_err(|error| no_json(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| no_json(error.to_string()))
}

/// What the dynamic loader would bring along, read from where it reads: the dynamic segment.
fn check_dynamic<'data, R: ReadRef<'data>>(
    subject: &str,
    header: &Header,
    endian: NativeEndian,
    data: R,
) -> Result<(), Refusal> {
    let segments = header.program_headers(endian, data).map_err(damaged)?;
    let mut dynamic: &[elf::Dyn64<NativeEndian>] = &[];
    for segment in segments {
        if let Some(found) = segment.dynamic(endian, data).map_err(damaged)? {
            dynamic = found;
        }
    }
    let end = dynamic
        .iter()
        .position(|entry| entry.tag(endian) == elf::DT_NULL)
        .unwrap_or(dynamic.len());
    let dynamic = &dynamic[..end];
    let value = |tag| {
        dynamic
            .iter()
            .find(|entry| entry.tag(endian) == tag)
            .map(|entry| entry.val(endian))
    };
    let strings = match (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) {
        (Some(address), Some(size)) => {
            let at = segments
                .iter()
                .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
                .find_map(|segment| {
                    let into = address.checked_sub(segment.p_vaddr(endian))?;
                    (into < segment.p_filesz(endian))
                        .then(|| segment.p_offset(endian).checked_add(into))?
                })
                .ok_or_else(|| damaged("its names lie in no segment"))?;
            data.read_bytes_at(at, size)
                .map_err(|()| damaged("its names lie outside of the file"))?
        }
        _ => return Err(damaged("it has no dynamic segment")),
    };
    let fault = dynamic.iter().try_for_each(|entry| {
        let Some(text) = c_text(strings, entry.val(endian)) else {
            return ControlFlow::Continue(());
        };
        match entry.tag(endian) {
            elf::DT_NEEDED if HOST_LIBRARIES.iter().any(|own| text.starts_with(own)) => {
                ControlFlow::Break(links_host_library(subject, text))
            }
            elf::DT_RPATH | elf::DT_RUNPATH if !text.split(':').all(|dir| dir.starts_with('/')) => {
                ControlFlow::Break(looks_beside_itself(subject, text))
            }
            _ => ControlFlow::Continue(()),
        }
    });
    match fault {
        ControlFlow::Break(refusal) => Err(refusal),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn links_host_library(subject: &str, library: &str) -> Refusal {
    Refusal::new(
        format!("{subject} links {library}, which is the host's alone"),
        "take it from the plugin's dependencies; tensors come to a plugin as DLPack views",
    )
}

/// A library is loaded from memory, so `$ORIGIN` has no meaning; a path that is not absolute would
/// be looked for in the working directory.
fn looks_beside_itself(subject: &str, path: &str) -> Refusal {
    Refusal::new(
        format!("{subject} looks for libraries in {path}, which is not an absolute path"),
        "link those libraries statically, or build it without that rpath",
    )
}

/// The text at `at` in a table of names that end with zero.
fn c_text(names: &[u8], at: u64) -> Option<&str> {
    let rest = names.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

fn damaged(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        format!("plugin is a damaged shared library: {why}"),
        "build or copy it again",
    )
}

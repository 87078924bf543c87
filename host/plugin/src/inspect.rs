//! Inspects a library before it is loaded, without running any of its code.

use std::path::Path;

use host_core::{Error, ErrorKind};
use host_plugin_abi::{ENTRY_SYMBOL, HOST_ABI_MAJOR, MANIFEST_SECTION};
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{NativeEndian, ReadRef, pod};
use serde_json::{Map, Value};

use crate::PluginManifest;
use crate::dynamic::Dynamic;
use crate::manifest::{check_abi, read_id};

/// Maximum size of a library in bytes.
pub(crate) const LARGEST_FILE: u64 = 512 << 20;
/// Maximum size of a manifest in bytes.
const LARGEST_MANIFEST: u64 = 1 << 20;
/// Maximum size in bytes of a table of names or symbols. The library itself declares the sizes of its tables.
/// Without a limit, it could make the inspection read any amount of data into memory.
pub(crate) const LARGEST_TABLE: u64 = 64 << 20;
/// Maximum number of segments, and of sections. Linkers write a few dozen.
const MOST_HEADERS: u32 = 1 << 16;
/// The prefix of an entry symbol. It is the same for all major versions.
const ENTRY_PREFIX: &str = "host_plugin_entry_v";
/// Maximum length of an entry symbol's name in a report. A longer name is shortened.
const LONGEST_ENTRY: usize = 64;
/// Maximum number of entry symbols that are reported.
const MOST_ENTRIES: usize = 4;

pub(crate) type Header = elf::FileHeader64<NativeEndian>;
pub(crate) type Segment = elf::ProgramHeader64<NativeEndian>;
type Section = elf::SectionHeader64<NativeEndian>;

/// Why a library is rejected, and a hint. [`Refusal::at`] adds the path.
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

    /// Returns the error about the library at `path`.
    pub(crate) fn at(self, path: &Path) -> Error {
        Error::new(
            ErrorKind::Plugin,
            format!("{}: {}", self.reason, path.display()),
        )
        .hint(self.hint)
    }
}

/// The result of inspecting a library.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// The id in the manifest, even if the library is rejected.
    pub(crate) id: Option<String>,
    /// The manifest, if the library may be loaded.
    pub(crate) outcome: Result<PluginManifest, Refusal>,
}

/// Inspects the bytes of a library and returns its manifest. Runs none of its code, and does not panic on any
/// input.
///
/// # Errors
/// Returns an error if this host cannot load the library as a plugin. `path` is only used in the message.
pub fn inspect(bytes: &[u8], path: &Path) -> host_core::Result<PluginManifest> {
    look(bytes).outcome.map_err(|refusal| refusal.at(path))
}

/// Inspects a library through any reader. Reads no more than necessary.
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
    let count = header.phnum(endian, data).map_err(damaged)?;
    if count > MOST_HEADERS {
        return Err(damaged(format!(
            "it has {count} segments, more than {MOST_HEADERS}"
        )));
    }
    let segments = header.program_headers(endian, data).map_err(damaged)?;
    let dynamic = Dynamic::read(endian, data, segments);
    if dynamic.as_ref().is_ok_and(Dynamic::is_program) {
        return Err(no_library("a program"));
    }
    let sections = Sections::read(header, endian, data)?;
    let manifest = read_manifest(&sections);
    if let Ok(object) = &manifest {
        *id = read_id(object).map(str::to_owned);
    }
    let subject = id
        .as_ref()
        .map_or_else(|| "plugin".to_owned(), |id| format!("plugin {id}"));
    check_entry(&subject, &sections.entries(segments)?)?;
    let manifest = PluginManifest::from_object(&manifest?)?;
    dynamic?.check(&subject)?;
    check_stack(&subject, endian, segments)?;
    Ok(manifest)
}

/// Returns the error for a file that is not a shared library.
fn no_library(what: &str) -> Refusal {
    Refusal::new(
        format!("plugin is {what}, not a shared library"),
        "pass the .so file; a Rust crate builds one with crate-type = [\"cdylib\"]",
    )
}

/// Checks that the first bytes are those of an ELF shared object for this machine.
fn check_identity<'data, R: ReadRef<'data>>(data: R) -> Result<(), Refusal> {
    if data.len() == Ok(0) {
        return Err(no_library("an empty file"));
    }
    if let Ok(magic) = data.read_bytes_at(0, 4) {
        let other = match magic {
            b"!<ar" | b"!<th" => Some("a static library"),
            b"\xcf\xfa\xed\xfe" | b"\xca\xfe\xba\xbe" => Some("a library for macOS"),
            [b'M', b'Z', ..] => Some("a library for Windows"),
            _ => None,
        };
        if let Some(other) = other {
            return Err(no_library(other));
        }
    }
    // The first 20 bytes have the same layout in 32-bit and 64-bit files.
    let Ok(start) = data.read_bytes_at(0, 20) else {
        return Err(no_library("a file of less than 20 bytes"));
    };
    if start[..4] != elf::ELFMAG {
        return Err(no_library("a file without an ELF header"));
    }
    let u16_at = |at: usize| {
        let bytes = [start[at], start[at + 1]];
        match start[5] {
            2 => u16::from_be_bytes(bytes),
            _ => u16::from_le_bytes(bytes),
        }
    };
    let built_for = (start[4], start[5], u16_at(18));
    if !matches!(built_for, (1 | 2, 1 | 2, _)) {
        return Err(damaged("its header is not valid"));
    }
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

/// Returns the ELF class, the byte order and the machine of this process.
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
        20 => "powerpc",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        _ => &format!("ELF machine {machine}"),
    };
    match (class, order) {
        (1, _) if machine == 62 || machine == 183 => format!("{name} with 32-bit pointers"),
        (_, 2) => format!("{name}, big-endian"),
        _ => name.to_owned(),
    }
}

/// The sections of a library, and their names.
struct Sections<'data, R> {
    endian: NativeEndian,
    data: R,
    headers: &'data [Section],
    names: &'data [u8],
}

/// An entry function that a library exports, of any major version.
struct Entry {
    name: String,
    is_code: bool,
}

impl<'data, R: ReadRef<'data>> Sections<'data, R> {
    fn read(header: &Header, endian: NativeEndian, data: R) -> Result<Self, Refusal> {
        let count = header.shnum(endian, data).map_err(damaged)?;
        if count > MOST_HEADERS {
            return Err(damaged(format!(
                "it has {count} sections, more than {MOST_HEADERS}"
            )));
        }
        let headers = header.section_headers(endian, data).map_err(damaged)?;
        let mut sections = Self {
            endian,
            data,
            headers,
            names: &[],
        };
        if !headers.is_empty() {
            let index = header.shstrndx(endian, data).map_err(damaged)?;
            sections.names = sections.strings(index)?;
        }
        Ok(sections)
    }

    fn at(&self, index: u32) -> Result<&'data Section, Refusal> {
        let section = usize::try_from(index)
            .ok()
            .and_then(|at| self.headers.get(at));
        section.ok_or_else(|| damaged("it refers to a section that does not exist"))
    }

    /// Returns the string table in the section with this index.
    fn strings(&self, index: u32) -> Result<&'data [u8], Refusal> {
        let section = self.at(index)?;
        match section.sh_type(self.endian) {
            elf::SHT_STRTAB => self.bytes(section),
            _ => Err(damaged("its string table is not valid")),
        }
    }

    fn bytes(&self, section: &Section) -> Result<&'data [u8], Refusal> {
        let size = section.sh_size(self.endian);
        if size > LARGEST_TABLE {
            return Err(damaged(table_too_large(size)));
        }
        section.data(self.endian, self.data).map_err(damaged)
    }

    /// Returns the sections with this name. Compares only as many bytes as `name` has, because a name in a
    /// malicious file may have no terminator.
    fn named(&self, name: &str) -> impl Iterator<Item = &'data Section> {
        self.headers.iter().filter(move |section| {
            let its = bytes_at(self.names, u64::from(section.sh_name(self.endian)));
            its.and_then(|its| its.strip_prefix(name.as_bytes()))
                .is_some_and(|rest| rest.first() == Some(&0))
        })
    }

    /// Returns the exported entry functions, at most [`MOST_ENTRIES`].
    fn entries(&self, segments: &[Segment]) -> Result<Vec<Entry>, Refusal> {
        let endian = self.endian;
        let mut entries = Vec::new();
        let mut tables = self.headers.iter();
        let mut next = || tables.find(|section| section.sh_type(endian) == elf::SHT_DYNSYM);
        if let Some(table) = next() {
            // The format allows only one dynamic symbol table. With many tables of the maximum size, the
            // inspection could take very long.
            if next().is_some() {
                return Err(damaged("it has more than one symbol table"));
            }
            let names = self.strings(table.sh_link(endian))?;
            let bytes = self.bytes(table)?;
            let count = bytes.len() / size_of::<elf::Sym64<NativeEndian>>();
            let (symbols, _) = pod::slice_from_bytes::<elf::Sym64<NativeEndian>>(bytes, count)
                .map_err(|()| damaged("its symbol table is not valid"))?;
            for symbol in symbols {
                let is_exported = !symbol.is_undefined(endian)
                    && !symbol.is_local()
                    && matches!(
                        symbol.st_visibility(),
                        elf::STV_DEFAULT | elf::STV_PROTECTED
                    );
                let name = bytes_at(names, u64::from(symbol.st_name(endian)))
                    .filter(|name| is_exported && name.starts_with(ENTRY_PREFIX.as_bytes()));
                let Some(name) = name else { continue };
                let end = name.iter().take(LONGEST_ENTRY).position(|&byte| byte == 0);
                let name = &name[..end.unwrap_or(LONGEST_ENTRY.min(name.len()))];
                entries.push(Entry {
                    name: name.escape_ascii().to_string(),
                    is_code: is_code(endian, symbol, segments),
                });
                if entries.len() == MOST_ENTRIES {
                    return Ok(entries);
                }
            }
        }
        Ok(entries)
    }
}

/// Whether the symbol is a function in executable code.
fn is_code(endian: NativeEndian, symbol: &elf::Sym64<NativeEndian>, segments: &[Segment]) -> bool {
    let is_function = matches!(
        symbol.st_type(),
        elf::STT_FUNC | elf::STT_GNU_IFUNC | elf::STT_NOTYPE
    );
    is_function
        && segments.iter().any(|segment| {
            let into = symbol.st_value(endian).checked_sub(segment.p_vaddr(endian));
            segment.p_type(endian) == elf::PT_LOAD
                && segment.p_flags(endian).contains(elf::PF_X)
                && into.is_some_and(|into| into < segment.p_filesz(endian))
        })
}

/// Rejects a library that requires executable stacks. A library does so by a flag in its PT_GNU_STACK header,
/// or, like old libraries, by the absence of that header. For such a library, the loader makes the stacks of
/// all threads executable, which removes a protection of the whole process. Newer loaders refuse to load it.
fn check_stack(subject: &str, endian: NativeEndian, segments: &[Segment]) -> Result<(), Refusal> {
    let mut stacks = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_GNU_STACK)
        .map(|segment| segment.p_flags(endian))
        .peekable();
    if stacks.peek().is_some() && stacks.all(|flags| !flags.contains(elf::PF_X)) {
        return Ok(());
    }
    Err(Refusal::new(
        format!("{subject} requires an executable stack"),
        "link it with -z noexecstack; an assembly file needs a .note.GNU-stack section",
    ))
}

fn check_entry(subject: &str, entries: &[Entry]) -> Result<(), Refusal> {
    match entries {
        [] => Err(Refusal::new(
            format!("{subject} exports no function {ENTRY_SYMBOL}"),
            "if it is a plugin, build it with the SDK's macro, or give the function C linkage and default visibility",
        )),
        [entry] if entry.name == ENTRY_SYMBOL && entry.is_code => Ok(()),
        [entry] if entry.name == ENTRY_SYMBOL => Err(Refusal::new(
            format!("{subject} exports {ENTRY_SYMBOL} as data, not as a function"),
            "its author must define it as a function",
        )),
        [entry] => match entry.name[ENTRY_PREFIX.len()..].parse() {
            Ok(major) if major != HOST_ABI_MAJOR => check_abi(subject, major, 0),
            _ => Err(Refusal::new(
                format!("{subject} exports {}, not {ENTRY_SYMBOL}", entry.name),
                "its author must rename the entry function",
            )),
        },
        several => Err(Refusal::new(
            format!(
                "{subject} exports more than one entry function ({})",
                several
                    .iter()
                    .map(|entry| entry.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            "build one library for each version of the ABI",
        )),
    }
}

fn read_manifest<'data, R: ReadRef<'data>>(
    sections: &Sections<'data, R>,
) -> Result<Map<String, Value>, Refusal> {
    let mut named = sections.named(MANIFEST_SECTION);
    let Some(section) = named.next() else {
        return Err(Refusal::new(
            format!("plugin has no manifest (the section {MANIFEST_SECTION})"),
            "build it with the SDK's macro, or put the JSON text into that section; in Rust the item needs #[used]",
        ));
    };
    let more = named.count();
    if more > 0 {
        return Err(several_manifests(1 + more));
    }
    let no_json = |why: String| {
        Refusal::new(
            format!("plugin's manifest is not one JSON object: {why}"),
            "its author must correct the manifest that is embedded at build time",
        )
    };
    let size = section.sh_size(sections.endian);
    if size > LARGEST_MANIFEST {
        return Err(no_json(format!(
            "it has {size} bytes, more than {} MiB",
            LARGEST_MANIFEST >> 20
        )));
    }
    let bytes = sections.bytes(section)?;
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    let text = std::str::from_utf8(&bytes[..end]).map_err(|error| no_json(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| match objects_in(text) {
        0 | 1 => no_json(error.to_string()),
        several => several_manifests(several),
    })
}

/// Returns the reason for rejecting a table that is too large.
pub(crate) fn table_too_large(size: u64) -> String {
    let most = LARGEST_TABLE >> 20;
    format!("one of its tables has {size} bytes, more than {most} MiB")
}

/// Counts the JSON objects in a text. If several plugins are linked into one library, the linker puts their
/// manifests one after another.
fn objects_in(text: &str) -> usize {
    let text = text.replace('\0', " ");
    let objects = serde_json::Deserializer::from_str(&text).into_iter::<Map<String, Value>>();
    objects.take_while(Result::is_ok).count()
}

fn several_manifests(count: usize) -> Refusal {
    Refusal::new(
        format!("plugin has {count} manifests, but a library can contain only one plugin"),
        "build one library for each plugin",
    )
}

/// Returns the rest of a string table from this offset.
pub(crate) fn bytes_at(names: &[u8], at: u64) -> Option<&[u8]> {
    names.get(usize::try_from(at).ok()?..)
}

/// Returns the error for a library whose structure is inconsistent.
pub(crate) fn damaged(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        format!("plugin is a damaged shared library: {why}"),
        "build or copy it again",
    )
}

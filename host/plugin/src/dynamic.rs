use object::elf;
use object::read::elf::{Dyn, ProgramHeader};
use object::{NativeEndian, ReadRef, pod};

use crate::inspect::{LARGEST_TABLE, Refusal, Segment, bytes_at, damaged, table_too_large};
use crate::manifest::shortened;

/// Maximum number of entries in a dynamic segment. Linkers write a few dozen, plus one for each library.
const MOST_ENTRIES: usize = 4096;
/// Longest name of a library or of a search path, in bytes.
const LONGEST_NAME: usize = 4096;
/// Libraries that a plugin must not link, because the host contains them. A second copy or another version
/// would break both the host and the plugin.
const HOST_LIBRARIES: [&str; 7] = [
    "libtorch",
    "libc10",
    "libtch",
    "libopenblas",
    "libmkl",
    "libblas",
    "libcblas",
];

/// What a library requires of the dynamic loader. Like the loader, [`Dynamic::read`] uses the dynamic segment
/// and not the sections.
pub(crate) struct Dynamic<'data> {
    endian: NativeEndian,
    entries: &'data [elf::Dyn64<NativeEndian>],
    strings: &'data [u8],
}

impl<'data> Dynamic<'data> {
    pub(crate) fn read<R: ReadRef<'data>>(
        endian: NativeEndian,
        data: R,
        segments: &[Segment],
    ) -> Result<Self, Refusal> {
        // If there are several dynamic segments, the loader uses the last.
        let segment = segments
            .iter()
            .rfind(|segment| segment.p_type(endian) == elf::PT_DYNAMIC)
            .ok_or_else(|| damaged("it has no dynamic segment"))?;
        let at = place(endian, segments, segment.p_vaddr(endian))
            .ok_or_else(|| damaged("its dynamic segment is not in any loaded segment"))?;
        let most = MOST_ENTRIES * size_of::<elf::Dyn64<NativeEndian>>();
        let size = segment.p_filesz(endian).min(most as u64);
        let bytes = data
            .read_bytes_at(at, size)
            .map_err(|()| damaged("its dynamic segment is outside of the file"))?;
        let count = bytes.len() / size_of::<elf::Dyn64<NativeEndian>>();
        let (entries, _) = pod::slice_from_bytes::<elf::Dyn64<NativeEndian>>(bytes, count)
            .map_err(|()| damaged("its dynamic segment is not valid"))?;
        let end = entries
            .iter()
            .position(|entry| entry.tag(endian) == elf::DT_NULL)
            .ok_or_else(|| damaged("its dynamic segment has no end"))?;
        let mut dynamic = Self {
            endian,
            entries: &entries[..end],
            strings: &[],
        };
        let (Some(address), Some(size)) =
            (dynamic.value(elf::DT_STRTAB), dynamic.value(elf::DT_STRSZ))
        else {
            return Err(damaged("its dynamic segment has no string table"));
        };
        let at = place(endian, segments, address)
            .ok_or_else(|| damaged("its string table is not in any loaded segment"))?;
        if size > LARGEST_TABLE {
            return Err(damaged(table_too_large(size)));
        }
        dynamic.strings = data
            .read_bytes_at(at, size)
            .map_err(|()| damaged("its string table is outside of the file"))?;
        Ok(dynamic)
    }

    /// Returns the value of the last entry with this tag, because the loader uses the last entry, too.
    fn value(&self, tag: elf::DynamicTag) -> Option<u64> {
        let entry = self
            .entries
            .iter()
            .rfind(|entry| entry.tag(self.endian) == tag);
        entry.map(|entry| entry.val(self.endian))
    }

    /// Whether the file is a position-independent program, which has the same ELF type as a library.
    pub(crate) fn is_program(&self) -> bool {
        self.value(elf::DT_FLAGS_1)
            .is_some_and(|flags| flags & elf::DF_1_PIE.0 != 0)
    }

    /// Rejects a library that cannot or must not be loaded into the host's process.
    pub(crate) fn check(&self, subject: &str) -> Result<(), Refusal> {
        for entry in self.entries {
            let text = || self.text(entry.val(self.endian));
            match entry.tag(self.endian) {
                elf::DT_NEEDED | elf::DT_AUXILIARY | elf::DT_FILTER => {
                    let library = text()?;
                    let name = library.rsplit('/').next().unwrap_or(library);
                    if HOST_LIBRARIES.iter().any(|own| name.starts_with(own)) {
                        return Err(links_host_library(subject, library));
                    }
                }
                elf::DT_RPATH | elf::DT_RUNPATH => {
                    let path = text()?;
                    if !path.split(':').all(|dir| dir.starts_with('/')) {
                        return Err(looks_beside_itself(subject, path));
                    }
                }
                elf::DT_TEXTREL => return Err(changes_code(subject)),
                elf::DT_FLAGS if entry.val(self.endian) & elf::DF_TEXTREL.0 != 0 => {
                    return Err(changes_code(subject));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn text(&self, at: u64) -> Result<&'data str, Refusal> {
        let name = bytes_at(self.strings, at).and_then(|rest| {
            let end = rest.iter().take(LONGEST_NAME).position(|&byte| byte == 0)?;
            std::str::from_utf8(&rest[..end]).ok()
        });
        name.ok_or_else(|| damaged("the name of a required library cannot be read"))
    }
}

/// Converts an address in the loaded library to an offset in the file.
fn place(endian: NativeEndian, segments: &[Segment], address: u64) -> Option<u64> {
    let loaded = |segment: &&Segment| segment.p_type(endian) == elf::PT_LOAD;
    segments.iter().filter(loaded).find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr(endian))?;
        (into < segment.p_filesz(endian)).then(|| segment.p_offset(endian).checked_add(into))?
    })
}

fn links_host_library(subject: &str, library: &str) -> Refusal {
    let library = shortened(library);
    Refusal::new(
        format!("{subject} links {library}, which only the host may use"),
        "remove it from the plugin's dependencies; the host passes tensors as DLPack views",
    )
}

/// Returns the error for a library search path that is not absolute. `$ORIGIN` has no meaning, because the
/// host loads libraries from memory. A relative path would be resolved against the working directory.
fn looks_beside_itself(subject: &str, path: &str) -> Refusal {
    let path = shortened(path);
    Refusal::new(
        format!("{subject} has the library search path {path}, which is not absolute"),
        "link the libraries in that path statically, or build the plugin without that rpath",
    )
}

/// Returns the error for text relocations. Code with text relocations would have to be writable during
/// loading, and each process would need its own copy in memory. Systems with a strict policy forbid text
/// relocations.
fn changes_code(subject: &str) -> Refusal {
    Refusal::new(
        format!("{subject} has text relocations (code that the loader must modify)"),
        "compile all of it with -fPIC",
    )
}

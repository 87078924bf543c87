use object::elf;
use object::read::elf::{Dyn, ProgramHeader};
use object::{NativeEndian, ReadRef, pod};

use crate::inspect::{LARGEST_TABLE, Refusal, Segment, bytes_at, damaged, table_too_large};
use crate::manifest::shortened;

/// Most entries of a dynamic segment. Linkers make some dozens, and one for each library.
const MOST_ENTRIES: usize = 4096;
/// Longest name of a library or of its places.
const LONGEST_NAME: usize = 4096;
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

/// What a library asks of the dynamic loader, read from where that reads it: the dynamic segment, not
/// the sections.
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
        // Of several the loader takes the last.
        let segment = segments
            .iter()
            .rfind(|segment| segment.p_type(endian) == elf::PT_DYNAMIC)
            .ok_or_else(|| damaged("it has no dynamic segment"))?;
        let at = place(endian, segments, segment.p_vaddr(endian))
            .ok_or_else(|| damaged("its dynamic segment lies in no segment"))?;
        let most = MOST_ENTRIES * size_of::<elf::Dyn64<NativeEndian>>();
        let size = segment.p_filesz(endian).min(most as u64);
        let bytes = data
            .read_bytes_at(at, size)
            .map_err(|()| damaged("its dynamic segment lies outside of the file"))?;
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
            return Err(damaged("its dynamic segment has no names"));
        };
        let at = place(endian, segments, address)
            .ok_or_else(|| damaged("its names lie in no segment"))?;
        if size > LARGEST_TABLE {
            return Err(damaged(table_too_large(size)));
        }
        dynamic.strings = data
            .read_bytes_at(at, size)
            .map_err(|()| damaged("its names lie outside of the file"))?;
        Ok(dynamic)
    }

    /// Of several the loader takes the last.
    fn value(&self, tag: elf::DynamicTag) -> Option<u64> {
        let entry = self
            .entries
            .iter()
            .rfind(|entry| entry.tag(self.endian) == tag);
        entry.map(|entry| entry.val(self.endian))
    }

    /// Whether it is a program that can lie anywhere, which has the same type as a library.
    pub(crate) fn is_program(&self) -> bool {
        self.value(elf::DT_FLAGS_1)
            .is_some_and(|flags| flags & elf::DF_1_PIE.0 != 0)
    }

    /// Refuses what must not come into the host's process, or cannot.
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
        name.ok_or_else(|| damaged("the name of a library that it needs cannot be read"))
    }
}

/// Where in the file an address of the loaded library comes from.
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
        format!("{subject} links {library}, which is the host's alone"),
        "take it from the plugin's dependencies; tensors come to a plugin as DLPack views",
    )
}

/// A library is loaded from memory, so `$ORIGIN` has no meaning; a path that is not absolute would
/// be looked for in the working directory.
fn looks_beside_itself(subject: &str, path: &str) -> Refusal {
    let path = shortened(path);
    Refusal::new(
        format!("{subject} looks for libraries in {path}, which is not an absolute path"),
        "link those libraries statically, or build it without that rpath",
    )
}

/// Its code would have to be writable while it is loaded, and stay in memory once for each process;
/// systems with a strict policy refuse it.
fn changes_code(subject: &str) -> Refusal {
    Refusal::new(
        format!("{subject} has code that must be changed when it is loaded (text relocations)"),
        "compile all of it with -fPIC",
    )
}

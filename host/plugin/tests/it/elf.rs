//! Locates the parts of a 64-bit library, for tests that modify them.

/// A section of a library.
pub(crate) struct Section {
    pub(crate) name: String,
    /// Offset of the section's header in the file.
    pub(crate) header: usize,
    /// Offset of the section's content in the file.
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// Offsets of fields in a section's header.
pub(crate) const SH_NAME: usize = 0;
pub(crate) const SH_OFFSET: usize = 24;
pub(crate) const SH_SIZE: usize = 32;

/// Sizes of headers.
pub(crate) const SECTION_HEADER: usize = 64;
pub(crate) const SYMBOL: usize = 24;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap()))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

/// Returns the sections of a valid library.
pub(crate) fn sections(bytes: &[u8]) -> Vec<Section> {
    let (table, count, names) = (u64_at(bytes, 40), u16_at(bytes, 60), u16_at(bytes, 62));
    let header = |index: usize| table + index * SECTION_HEADER;
    let names = u64_at(bytes, header(names) + SH_OFFSET);
    (0..count)
        .map(|index| {
            let header = header(index);
            let name = bytes[header..header + 4].try_into().unwrap();
            let name = &bytes[names + u32::from_ne_bytes(name) as usize..];
            let end = name.iter().position(|&byte| byte == 0).unwrap();
            Section {
                name: String::from_utf8(name[..end].to_vec()).unwrap(),
                header,
                offset: u64_at(bytes, header + SH_OFFSET),
                size: u64_at(bytes, header + SH_SIZE),
            }
        })
        .collect()
}

pub(crate) fn section(bytes: &[u8], name: &str) -> Section {
    let mut sections = sections(bytes).into_iter();
    sections.find(|section| section.name == name).unwrap()
}

/// Returns the file offset of the entry function's symbol. The symbol is in the dynamic symbol table.
pub(crate) fn entry_symbol(bytes: &[u8]) -> usize {
    let (symbols, names) = (section(bytes, ".dynsym"), section(bytes, ".dynstr"));
    (0..symbols.size / SYMBOL)
        .map(|index| symbols.offset + index * SYMBOL)
        .find(|&at| {
            let name = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[names.offset + name as usize..].starts_with(b"host_plugin_entry_v1\0")
        })
        .unwrap()
}

/// Returns the library with these bytes as its manifest. They are appended to the end of the file.
pub(crate) fn with_manifest(library: &[u8], manifest: &[u8]) -> Vec<u8> {
    let header = section(library, ".host_manifest").header;
    let mut bytes = library.to_vec();
    put_u64(&mut bytes, header + SH_OFFSET, library.len() as u64);
    put_u64(&mut bytes, header + SH_SIZE, manifest.len() as u64);
    bytes.extend_from_slice(manifest);
    bytes
}

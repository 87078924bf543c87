//! Inspects arbitrary bytes, and valid libraries that were damaged.

use std::sync::OnceLock;

use object::{Object, ObjectSection, ObjectSymbol};
use proptest::prelude::*;
use serde_json::Value;

use crate::elf::{self, SECTION_HEADER, SH_SIZE, SYMBOL, section, sections, u16_at, u64_at};
use crate::fixture::{Fixture, dir};
use crate::{look, times};

/// Returns valid libraries, each compiled in a different way.
pub(crate) fn good() -> &'static [Vec<u8>] {
    static GOOD: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = dir();
        let build = |fixture: Fixture| std::fs::read(fixture.build(dir.path())).unwrap();
        vec![
            build(Fixture::metric("plain")),
            build(Fixture::metric("stripped").flag("-s")),
            build(
                Fixture::metric("debug")
                    .flag("-g")
                    .flag("-Wl,-rpath,/opt/lib"),
            ),
            build(Fixture::new("observer.c", "sysv").flag("-Wl,--hash-style=sysv,-z,now")),
        ]
    })
}

/// The first bytes of files of several kinds.
const STARTS: &[&[u8]] = &[b"", b"\x7fELF", b"\x7fELF\x02\x01\x01", b"!<arch>\n"];

/// A change to a library's bytes. A position of type `f64` is a fraction of the length, since libraries have
/// different lengths.
#[derive(Clone, Debug)]
enum Damage {
    Flip(f64, u8),
    Put(f64, Vec<u8>),
    Truncate(f64),
    Insert(f64, Vec<u8>),
    Move { from: f64, to: f64, count: usize },
    FileHeader(usize, u64),
    Segment(usize, usize, u64),
    Section(usize, usize, u64),
    Symbol(usize, usize, u64),
    Dynamic(usize, usize, u64),
}

/// Generates numbers that are too large, too small, or almost right.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        (0u32..64).prop_map(|shift| 1 << shift),
        0u64..20_000,
        any::<u64>(),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    let part = || 0.0..1.0f64;
    let bytes = || prop::collection::vec(any::<u8>(), 1..64);
    prop_oneof![
        (part(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (part(), bytes()).prop_map(|(at, bytes)| Damage::Put(at, bytes)),
        part().prop_map(Damage::Truncate),
        (part(), bytes()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (part(), part(), 1usize..4096).prop_map(|(from, to, count)| Damage::Move {
            from,
            to,
            count
        }),
        (0usize..64, number()).prop_map(|(at, to)| Damage::FileHeader(at, to)),
        (any::<usize>(), 0usize..56, number()).prop_map(|(i, at, to)| Damage::Segment(i, at, to)),
        (any::<usize>(), 0usize..64, number()).prop_map(|(i, at, to)| Damage::Section(i, at, to)),
        (any::<usize>(), 0usize..24, number()).prop_map(|(i, at, to)| Damage::Symbol(i, at, to)),
        (any::<usize>(), 0usize..16, number()).prop_map(|(i, at, to)| Damage::Dynamic(i, at, to)),
    ]
}

impl Damage {
    /// Applies the damage. `good` is the undamaged library, from which the positions of the tables are read.
    fn apply(&self, bytes: &mut Vec<u8>, good: &[u8]) {
        let at = |part: f64, bytes: &[u8]| (part * bytes.len() as f64) as usize;
        let table = |name: &str, record: usize, index: usize, field: usize| {
            let section = section(good, name);
            section.offset + index % (section.size / record) * record + field
        };
        let (place, number) = match self {
            Self::Flip(part, bit) => {
                let at = at(*part, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                return;
            }
            Self::Put(part, new) => {
                let at = at(*part, bytes);
                let end = bytes.len().min(at + new.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
                return;
            }
            Self::Truncate(part) => {
                bytes.truncate(at(*part, bytes));
                return;
            }
            Self::Insert(part, new) => {
                let at = at(*part, bytes);
                bytes.splice(at..at, new.iter().copied());
                return;
            }
            Self::Move { from, to, count } => {
                let (from, to) = (at(*from, bytes), at(*to, bytes));
                let count = (*count).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + count, to);
                return;
            }
            Self::FileHeader(field, to) => (*field, to),
            Self::Segment(index, field, to) => {
                let (table, count) = (u64_at(good, 32), u16_at(good, 56));
                (table + index % count * 56 + field, to)
            }
            Self::Section(index, field, to) => {
                let (table, count) = (u64_at(good, 40), u16_at(good, 60));
                (table + index % count * SECTION_HEADER + field, to)
            }
            Self::Symbol(index, field, to) => (table(".dynsym", SYMBOL, *index, *field), to),
            Self::Dynamic(index, field, to) => (table(".dynamic", 16, *index, *field), to),
        };
        // The number can be longer than its field, so its last bytes may be beyond the end of the file.
        for (offset, byte) in number.to_ne_bytes().into_iter().enumerate() {
            if let Some(place) = bytes.get_mut(place + offset) {
                *place = byte;
            }
        }
    }
}

/// Checks an accepted library with another ELF reader: the library must have exactly one manifest, with this
/// id, and must have the entry function.
fn assert_is_one(bytes: &[u8], id: &str) {
    assert!(
        bytes
            .windows(21)
            .any(|name| name == b"host_plugin_entry_v1\0")
    );
    // This reader can reject a library that was rightly accepted, because it also reads tables that neither
    // the inspection nor the loader reads.
    let Ok(file) = object::read::elf::ElfFile64::<object::NativeEndian>::parse(bytes) else {
        return;
    };
    let mut manifests = file
        .sections()
        .filter(|section| section.name() == Ok(".host_manifest"));
    let text = manifests.next().unwrap().data().unwrap();
    assert!(manifests.next().is_none());
    let end = text.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let manifest: Value = serde_json::from_slice(&text[..end]).unwrap();
    assert_eq!(manifest["id"], id);
    let entries: Vec<_> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition() || !symbol.is_undefined())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.starts_with("host_plugin_entry_v"))
        .collect();
    assert!(entries.contains(&"host_plugin_entry_v1"), "{entries:?}");
}

/// Damage that makes a library unusable as a plugin.
#[derive(Clone, Debug)]
enum Destruction {
    Manifest(Vec<u8>),
    ManifestName,
    ManifestSize(u64),
    EntryName(usize, u8),
    EntryUndefined,
    EntryLocal,
    EntryHidden,
    EntryData,
    EntryElsewhere(u64),
    NoDynamic,
}

fn destruction() -> impl Strategy<Value = Destruction> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..8).prop_map(Destruction::Manifest),
        Just(Destruction::ManifestName),
        prop_oneof![0u64..150, (1u64 << 20) + 1..=u64::MAX].prop_map(Destruction::ManifestSize),
        (0usize..20, 1u8..).prop_map(|(at, by)| Destruction::EntryName(at, by)),
        Just(Destruction::EntryUndefined),
        Just(Destruction::EntryLocal),
        Just(Destruction::EntryHidden),
        Just(Destruction::EntryData),
        number().prop_map(Destruction::EntryElsewhere),
        Just(Destruction::NoDynamic),
    ]
}

impl Destruction {
    /// Applies the damage. Returns false if the library could still be a valid plugin.
    fn apply(&self, bytes: &mut [u8]) -> bool {
        let manifest = section(bytes, ".host_manifest");
        let entry = elf::entry_symbol(bytes);
        match self {
            Self::Manifest(with) => {
                let text = &mut bytes[manifest.offset..manifest.offset + manifest.size];
                for (place, byte) in text.iter_mut().zip(with.iter().cycle()) {
                    *place = *byte;
                }
            }
            Self::ManifestName => bytes[manifest.header..manifest.header + 4].fill(0),
            Self::ManifestSize(size) => elf::put_u64(bytes, manifest.header + SH_SIZE, *size),
            Self::EntryName(at, by) => {
                let name = u32::from_ne_bytes(bytes[entry..entry + 4].try_into().unwrap());
                bytes[section(bytes, ".dynstr").offset + name as usize + at] ^= by;
            }
            Self::EntryUndefined => bytes[entry + 6..entry + 8].fill(0),
            Self::EntryLocal => bytes[entry + 4] &= 0x0f,
            Self::EntryHidden => bytes[entry + 5] = 2,
            Self::EntryData => bytes[entry + 4] = 0x11,
            Self::EntryElsewhere(to) => {
                let text = section(bytes, ".text");
                let code = u64_at(bytes, text.header + 16) as u64;
                // The code segment can be up to one page larger than the code section.
                if to.abs_diff(code) < (text.size as u64) + 8192 {
                    return false;
                }
                elf::put_u64(bytes, entry + 8, *to);
            }
            Self::NoDynamic => {
                let (table, count) = (u64_at(bytes, 32), u16_at(bytes, 56));
                for at in (0..count).map(|index| table + index * 56) {
                    if bytes[at..at + 4] == [2, 0, 0, 0] {
                        bytes[at..at + 4].fill(0);
                    }
                }
            }
        }
        true
    }
}

#[test]
fn valid_libraries_are_accepted() {
    for bytes in good() {
        let manifest = look(bytes).unwrap();
        assert_is_one(bytes, &manifest.id);
        assert!(!sections(bytes).is_empty());
    }
}

proptest! {
    #![proptest_config(times(8))]

    #[test]
    fn bytes_of_all_kinds(
        start in prop::sample::select(STARTS),
        rest in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let bytes = [start, &rest].concat();
        prop_assert!(look(&bytes).is_none());
    }

    /// A header that is almost right, followed by arbitrary bytes.
    #[test]
    fn tables_of_all_kinds(
        library in 0usize..4,
        rest in prop::collection::vec(any::<u8>(), 0..4096),
        damages in prop::collection::vec(damage(), 0..4),
    ) {
        let good = &good()[library];
        let mut bytes = [&good[..64], &rest].concat();
        for damage in damages {
            damage.apply(&mut bytes, good);
        }
        if let Some(manifest) = look(&bytes) {
            assert_is_one(&bytes, &manifest.id);
        }
    }

    #[test]
    fn damaged_libraries(
        library in 0usize..4,
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let good = &good()[library];
        let mut bytes = good.clone();
        for damage in damages {
            damage.apply(&mut bytes, good);
        }
        if let Some(manifest) = look(&bytes) {
            assert_is_one(&bytes, &manifest.id);
        }
    }

    #[test]
    fn destroyed_libraries_are_never_accepted(
        library in 0usize..4,
        destruction in destruction(),
        padding in 0usize..5000,
    ) {
        let mut bytes = good()[library].clone();
        if destruction.apply(&mut bytes) {
            bytes.resize(bytes.len() + padding, 0);
            prop_assert!(look(&bytes).is_none(), "{:?}", destruction);
        }
    }
}

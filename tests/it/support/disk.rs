//! Simulates a disk whose power fails. `tests/fixtures/record_writes.c` records the file operations of a
//! program. From the record, this module computes the possible states of the file system.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file operation of a program.
#[derive(Debug)]
pub(crate) enum Operation {
    Create {
        inode: u64,
        path: String,
        is_folder: bool,
    },
    Write {
        inode: u64,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        inode: u64,
        length: usize,
    },
    Sync {
        inode: u64,
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Remove {
        path: String,
    },
}

/// What happens to data that was written but not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// All of it is lost: names, lengths and bytes.
    Lost,
    /// Some pages and some folders reached the disk; others did not. The number seeds the random choice.
    Torn(u64),
    /// Nothing is lost, as when only the process is killed.
    Kept,
}

/// Reads the operations of a record. Their paths are relative to `root`.
pub(crate) fn read_record(file: &Path, root: &str) -> Vec<Operation> {
    let bytes = fs::read(file).expect("a record");
    let mut rest = bytes.as_slice();
    let mut operations = Vec::new();
    while let Some((&what, after)) = rest.split_first() {
        let (head, mut after) = after.split_at(32);
        let number = |at: usize| {
            let bytes = head[at..at + 8].try_into().expect("8 bytes");
            usize::try_from(u64::from_le_bytes(bytes)).expect("64 bits")
        };
        let mut take = |length: usize| {
            let (taken, left) = after.split_at(length);
            after = left;
            taken.to_vec()
        };
        let (one, two) = (take(number(16)), take(number(24)));
        rest = after;
        let path = |bytes: Vec<u8>| {
            let path = String::from_utf8(bytes).expect("a path in UTF-8");
            let below = path.strip_prefix(root).expect("a path below the root");
            below.trim_matches('/').to_owned()
        };
        let (inode, second) = (number(0) as u64, number(8));
        operations.push(match what {
            b'C' | b'D' => Operation::Create {
                inode,
                path: path(one),
                is_folder: what == b'D',
            },
            b'W' => Operation::Write {
                inode,
                offset: second,
                bytes: one,
            },
            b'T' => Operation::Truncate {
                inode,
                length: second,
            },
            b'S' => Operation::Sync {
                inode,
                path: path(one),
            },
            b'R' => Operation::Rename {
                from: path(one),
                to: path(two),
            },
            b'L' => Operation::Link {
                from: path(one),
                to: path(two),
            },
            b'U' => Operation::Remove { path: path(one) },
            other => panic!("an unknown record: {other}"),
        });
    }
    operations
}

/// The size of a page in the page cache. A page reaches the disk as a whole or not at all.
const PAGE: usize = 4096;

/// The files as programs see them, and the part of their content that is certainly on the disk.
pub(crate) struct Disk {
    nodes: Vec<Node>,
    /// For each inode number, the index in `nodes` of the file that has the number now. A number is reused
    /// after its file is removed.
    by_inode: BTreeMap<u64, usize>,
}

#[derive(Default)]
struct Node {
    is_folder: bool,
    bytes: Versions<Vec<u8>>,
    names: Versions<BTreeMap<String, usize>>,
}

#[derive(Default)]
struct Versions<T> {
    now: T,
    synced: T,
}

impl Disk {
    /// Returns a disk that contains this folder, empty and synced.
    pub(crate) fn new(root: &Path) -> Self {
        let inode = fs::metadata(root).expect("a folder").ino();
        let root = Node {
            is_folder: true,
            ..Node::default()
        };
        Self {
            nodes: vec![root],
            by_inode: BTreeMap::from([(inode, 0)]),
        }
    }

    /// Applies an operation.
    pub(crate) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create {
                inode,
                path,
                is_folder,
            } => {
                let id = self.nodes.len();
                self.nodes.push(Node {
                    is_folder: *is_folder,
                    ..Node::default()
                });
                self.by_inode.insert(*inode, id);
                let (folder, name) = self.place(path);
                self.nodes[folder].names.now.insert(name, id);
            }
            Operation::Write {
                inode,
                offset,
                bytes,
            } => {
                let Some(node) = self.known(*inode) else {
                    return;
                };
                let file = &mut node.bytes.now;
                let end = offset + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*offset..end].copy_from_slice(bytes);
            }
            Operation::Truncate { inode, length } => {
                if let Some(node) = self.known(*inode) {
                    node.bytes.now.resize(*length, 0);
                }
            }
            Operation::Sync { inode, path } => {
                self.renamed_unseen(*inode, path);
                if let Some(node) = self.known(*inode) {
                    node.bytes.synced.clone_from(&node.bytes.now);
                    node.names.synced.clone_from(&node.names.now);
                }
            }
            Operation::Rename { from, to } => {
                let id = self.remove(from);
                let (folder, name) = self.place(to);
                self.nodes[folder].names.now.insert(name, id);
            }
            Operation::Link { from, to } => {
                let (folder, name) = self.place(from);
                let id = self.nodes[folder].names.now[&name];
                let (folder, name) = self.place(to);
                self.nodes[folder].names.now.insert(name, id);
            }
            Operation::Remove { path } => {
                self.remove(path);
            }
        }
    }

    /// Handles a file that is now at `path`. If the simulated disk still has it under another name, its
    /// rename was not recorded, so this function applies the rename.
    fn renamed_unseen(&mut self, inode: u64, path: &str) {
        let Some(&id) = self.by_inode.get(&inode).filter(|_| !path.is_empty()) else {
            return;
        };
        let (folder, name) = self.place(path);
        let names = &mut self.nodes[folder].names.now;
        if names.get(&name) != Some(&id) {
            names.retain(|_, other| *other != id);
            names.insert(name, id);
        }
    }

    /// Returns a node by its inode, or `None` if its creation was not recorded.
    fn known(&mut self, inode: u64) -> Option<&mut Node> {
        let id = *self.by_inode.get(&inode)?;
        Some(&mut self.nodes[id])
    }

    fn place(&self, path: &str) -> (usize, String) {
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut folder = 0;
        for name in folders.split('/').filter(|name| !name.is_empty()) {
            let names = &self.nodes[folder].names.now;
            folder = *names
                .get(name)
                .unwrap_or_else(|| panic!("no folder {name} of {path}"));
        }
        (folder, name.to_owned())
    }

    fn remove(&mut self, path: &str) -> usize {
        let (folder, name) = self.place(path);
        let removed = self.nodes[folder].names.now.remove(&name);
        removed.unwrap_or_else(|| panic!("nothing to remove: {path}"))
    }

    /// Returns true if this path is certain to exist after a power failure at this moment.
    pub(crate) fn keeps(&self, path: &str) -> bool {
        let mut node = 0;
        path.split('/')
            .all(|name| match self.nodes[node].names.synced.get(name) {
                Some(&below) => {
                    node = below;
                    true
                }
                None => false,
            })
    }

    /// Writes the content of the disk to an empty folder.
    pub(crate) fn write_to(&self, folder: &Path, unsynced: Unsynced) {
        let mut chance = Chance(match unsynced {
            Unsynced::Torn(seed) => seed.wrapping_mul(2).wrapping_add(1),
            _ => 1,
        });
        self.write_node(0, folder, unsynced, &mut chance);
    }

    fn write_node(&self, id: usize, path: &Path, unsynced: Unsynced, chance: &mut Chance) {
        let node = &self.nodes[id];
        if !node.is_folder {
            fs::write(path, node.bytes_after(unsynced, chance)).expect("written");
            return;
        }
        if id > 0 {
            fs::create_dir(path).expect("made");
        }
        let names = match unsynced {
            Unsynced::Kept => &node.names.now,
            Unsynced::Torn(_) if chance.is_heads() => &node.names.now,
            Unsynced::Lost | Unsynced::Torn(_) => &node.names.synced,
        };
        for (name, &below) in names {
            self.write_node(below, &path.join(name), unsynced, chance);
        }
    }
}

impl Node {
    fn bytes_after(&self, unsynced: Unsynced, chance: &mut Chance) -> Vec<u8> {
        let Versions { now, synced } = &self.bytes;
        match unsynced {
            Unsynced::Kept => now.clone(),
            Unsynced::Lost => synced.clone(),
            Unsynced::Torn(_) => {
                let length = if chance.is_heads() {
                    now.len()
                } else {
                    synced.len()
                };
                let mut bytes = synced.clone();
                bytes.resize(length, 0);
                for (at, page) in now.chunks(PAGE).enumerate() {
                    let begin = at * PAGE;
                    if begin >= length || !chance.is_heads() {
                        continue;
                    }
                    let end = length.min(begin + page.len());
                    bytes[begin..end].copy_from_slice(&page[..end - begin]);
                }
                bytes
            }
        }
    }
}

/// A coin whose results are the same in every run of the test.
struct Chance(u64);

impl Chance {
    fn is_heads(&mut self) -> bool {
        // Knuth's MMIX generator, whose upper bits are the most random.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 63 == 1
    }
}

//! Reads tensors from files written by `torch.save`, such as `pytorch_model.bin`. Such a file is a zip
//! archive that contains a pickle and the tensors' bytes.
//!
//! A pickle is a program. This module supports only the operations that a table of tensors needs. It cannot
//! call arbitrary functions, and every other operation is an error.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use host_core::{Error, ErrorKind, Result};
use tch::{Kind, Tensor};
use zip::ZipArchive;
use zip::result::ZipError;

use crate::regular_file::{self, SMALL};

/// Whether a file begins like a zip archive. Files written by `torch.save` begin like this.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(crate) fn is_one(file: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    regular_file::open(file)?.take(2).read_to_end(&mut head)?;
    Ok(head == b"PK")
}

/// Reads every tensor of a file and passes each to `take` with its name.
pub(crate) fn read_file(
    file: &Path,
    take: &mut dyn FnMut(&str, Tensor) -> Result<()>,
) -> Result<()> {
    let open =
        regular_file::open(file).map_err(|error| Error::io("read the weights", file, &error))?;
    let bad = |why: String| {
        let path = file.display();
        let message = format!("the weights file cannot be used: {why}: {path}");
        Error::new(ErrorKind::Config, message).hint(
            "convert the model with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)",
        )
    };
    let mut archive = Archive::open(open).map_err(&bad)?;
    let pickle = archive.entry("data.pkl", SMALL).map_err(&bad)?;
    let tensors = Machine::default().run(&pickle).map_err(&bad)?;
    let mut last: Option<(Rc<Storage>, Tensor)> = None;
    for (name, tensor) in tensors {
        // Tensors that share a storage are adjacent, so it is enough to keep the storage of the previous
        // tensor.
        let whole = match &last {
            Some((storage, whole)) if *storage == tensor.storage => whole.shallow_clone(),
            _ => archive.storage(&tensor.storage).map_err(&bad)?,
        };
        last = Some((tensor.storage.clone(), whole.shallow_clone()));
        let part = whole
            .f_as_strided(&tensor.size, &tensor.stride, tensor.offset)
            .map_err(|error| bad(format!("{name}: {error}")))?;
        take(&name, part)?;
    }
    Ok(())
}

/// The zip archive. All entries are in one folder, whose name is the original name of the file.
struct Archive {
    zip: ZipArchive<File>,
    folder: String,
}

impl Archive {
    fn open(file: File) -> Result<Self, String> {
        let zip = ZipArchive::new(file).map_err(|error| match error {
            ZipError::Io(error) => error.to_string(),
            _ => {
                "it is not in the zip format that torch.save has written since torch 1.6".to_owned()
            }
        })?;
        let folder = zip
            .file_names()
            .find_map(|name| name.strip_suffix("/data.pkl"))
            .map(str::to_owned)
            .ok_or("it has no data.pkl")?;
        let mut archive = Self { zip, folder };
        match archive.entry("byteorder", 16) {
            Ok(order) if order != b"little" => Err("its numbers are big-endian".to_owned()),
            _ => Ok(archive),
        }
    }

    fn entry(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let path = format!("{}/{name}", self.folder);
        let read = |zip: &mut ZipArchive<File>| -> io::Result<Vec<u8>> {
            let entry = zip.by_name(&path)?;
            if entry.size() > limit {
                return Err(io::Error::other("it is larger than expected"));
            }
            let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
            entry.take(limit).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read(&mut self.zip).map_err(|error| format!("{name}: {error}"))
    }

    /// Reads a whole storage as a one-dimensional tensor.
    fn storage(&mut self, storage: &Storage) -> Result<Tensor, String> {
        let bytes = storage
            .count
            .checked_mul(storage.kind.elt_size_in_bytes() as i64)
            .and_then(|bytes| u64::try_from(bytes).ok())
            .ok_or("a tensor has an invalid size")?;
        let name = format!("data/{}", storage.key);
        let data = self.entry(&name, bytes)?;
        if data.len() as u64 != bytes {
            return Err(format!("{name} is truncated"));
        }
        Tensor::f_from_data_size(&data, &[storage.count], storage.kind)
            .map_err(|error| format!("{name}: {error}"))
    }
}

/// A storage: the bytes that tensors are views of.
#[derive(Clone, Debug, PartialEq)]
struct Storage {
    kind: Kind,
    key: Rc<str>,
    /// Number of elements.
    count: i64,
}

/// A tensor: a view of a storage.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    storage: Rc<Storage>,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

/// Tensors by name, in the order of the file.
type Tensors = Vec<(Rc<str>, Stored)>;

/// A value on the pickle machine's stack.
#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    Tuple(Rc<[Value]>),
    List,
    Table(Rc<RefCell<Tensors>>),
    /// A global: its module and its name.
    Global(Rc<str>, Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<Stored>),
    Mark,
}

/// An interpreter for pickles that cannot call arbitrary functions.
#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
}

/// Maximum nesting depth of tuples. A tensor needs a depth of 2: the tuple of its arguments contains the
/// tuple of its sizes.
const DEPTH: usize = 8;

impl Machine {
    fn run(mut self, pickle: &[u8]) -> Result<Vec<(String, Stored)>, String> {
        let mut input = Input(pickle);
        loop {
            match input.byte()? {
                0x80 => drop(input.byte()?),
                0x95 => drop(input.take(8)?),
                b'.' => break,
                b'}' => self.stack.push(Value::Table(Rc::default())),
                b']' => self.stack.push(Value::List),
                b')' => self.stack.push(Value::Tuple(Rc::new([]))),
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => {
                    let number = input.byte()?;
                    self.stack.push(Value::Int(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(input.array()?);
                    self.stack.push(Value::Int(number.into()));
                }
                b'J' => {
                    let number = i32::from_le_bytes(input.array()?);
                    self.stack.push(Value::Int(number.into()));
                }
                0x8a => {
                    let length = input.byte()?;
                    let bytes = input.take(length.into())?;
                    if bytes.len() > 8 {
                        return Err("one of its numbers has more than 64 bits".to_owned());
                    }
                    let fill = bytes.last().is_some_and(|last| last & 0x80 != 0);
                    let mut number = [if fill { 0xff } else { 0 }; 8];
                    number[..bytes.len()].copy_from_slice(bytes);
                    self.stack.push(Value::Int(i64::from_le_bytes(number)));
                }
                b'G' => {
                    input.take(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' => {
                    let length = u32::from_le_bytes(input.array()?);
                    self.push_text(input.take(length as usize)?)?;
                }
                0x8c => {
                    let length = input.byte()?;
                    self.push_text(input.take(length.into())?)?;
                }
                b'c' => {
                    let (module, name) = (input.line()?, input.line()?);
                    self.stack.push(Value::Global(module.into(), name.into()));
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => {
                        self.stack.push(Value::Global(module, name));
                    }
                    _ => return Err(MALFORMED.to_owned()),
                },
                b'q' => {
                    let at = input.byte()?;
                    self.keep(at.into())?;
                }
                b'r' => {
                    let at = u32::from_le_bytes(input.array()?);
                    self.keep(at)?;
                }
                0x94 => self.keep(self.memo.len() as u32)?,
                b'h' => {
                    let at = input.byte()?;
                    self.recall(at.into())?;
                }
                b'j' => {
                    let at = u32::from_le_bytes(input.array()?);
                    self.recall(at)?;
                }
                code @ 0x85..=0x87 => {
                    let count = usize::from(code - 0x84);
                    let from = self.stack.len().checked_sub(count).ok_or(MALFORMED)?;
                    self.push_tuple(from)?;
                }
                b't' => {
                    let mark = self.mark()?;
                    self.stack.remove(mark);
                    self.push_tuple(mark)?;
                }
                b'Q' => {
                    let storage = storage(&self.pop()?)?;
                    self.stack.push(Value::Storage(Rc::new(storage)));
                }
                b'R' => {
                    let (arguments, callee) = (self.pop()?, self.pop()?);
                    self.stack.push(made(&callee, &arguments)?);
                }
                // This operation sets attributes of an object, such as the versions of modules. It is
                // ignored.
                b'b' => drop(self.pop()?),
                b's' => {
                    let from = self.stack.len().checked_sub(2).ok_or(MALFORMED)?;
                    self.put(from)?;
                }
                b'u' => {
                    let mark = self.mark()?;
                    self.stack.remove(mark);
                    self.put(mark)?;
                }
                b'a' => drop(self.pop()?),
                b'e' => {
                    let mark = self.mark()?;
                    self.stack.truncate(mark);
                }
                code => {
                    return Err(format!(
                        "it is not a dict of tensors: unsupported pickle opcode {code:#x}"
                    ));
                }
            }
        }
        match self.pop()? {
            Value::Table(table) => {
                let table = table.borrow();
                let tensors = table.iter();
                Ok(tensors
                    .map(|(name, tensor)| (name.to_string(), tensor.clone()))
                    .collect())
            }
            _ => Err("it is not a dict of tensors".to_owned()),
        }
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| MALFORMED.to_owned())
    }

    fn mark(&self) -> Result<usize, String> {
        let mark = self
            .stack
            .iter()
            .rposition(|value| matches!(value, Value::Mark));
        mark.ok_or_else(|| MALFORMED.to_owned())
    }

    fn push_text(&mut self, bytes: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "one of its names is not UTF-8")?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn push_tuple(&mut self, from: usize) -> Result<(), String> {
        let values: Rc<[Value]> = self.stack.drain(from..).collect();
        let tuple = Value::Tuple(values);
        if depth(&tuple) > DEPTH {
            return Err("its tuples are nested too deeply".to_owned());
        }
        self.stack.push(tuple);
        Ok(())
    }

    fn keep(&mut self, at: u32) -> Result<(), String> {
        let value = self.stack.last().ok_or(MALFORMED)?.clone();
        self.memo.insert(at, value);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let value = self.memo.get(&at).ok_or(MALFORMED)?.clone();
        self.stack.push(value);
        Ok(())
    }

    /// Moves keys and values from the stack into the table below them. They start at index `from`.
    fn put(&mut self, from: usize) -> Result<(), String> {
        let pairs: Vec<Value> = self.stack.drain(from..).collect();
        let Some(Value::Table(table)) = self.stack.last() else {
            return Err(MALFORMED.to_owned());
        };
        for pair in pairs.chunks(2) {
            match pair {
                [Value::Text(name), Value::Tensor(tensor)] => {
                    table.borrow_mut().push((name.clone(), (**tensor).clone()));
                }
                // These entries are attributes of an object, and not tensors.
                [Value::Text(name), _] if &**name == "_metadata" || &**name == "version" => {}
                [Value::Text(_), Value::Table(inner)] if inner.borrow().is_empty() => {}
                [Value::Text(name), _] => {
                    return Err(format!("its entry {name} is not a tensor"));
                }
                _ => return Err(MALFORMED.to_owned()),
            }
        }
        Ok(())
    }
}

const MALFORMED: &str = "its pickle is damaged";

fn depth(value: &Value) -> usize {
    match value {
        Value::Tuple(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Returns the storage for a persistent id, such as `("storage", torch.FloatStorage, "0", "cpu", 6)`.
fn storage(id: &Value) -> Result<Storage, String> {
    let Value::Tuple(parts) = id else {
        return Err(MALFORMED.to_owned());
    };
    let [
        Value::Text(what),
        Value::Global(module, class),
        Value::Text(key),
        _,
        Value::Int(count),
    ] = &**parts
    else {
        return Err(MALFORMED.to_owned());
    };
    let kind = match &**class {
        "FloatStorage" => Kind::Float,
        "DoubleStorage" => Kind::Double,
        "HalfStorage" => Kind::Half,
        "BFloat16Storage" => Kind::BFloat16,
        "LongStorage" => Kind::Int64,
        "IntStorage" => Kind::Int,
        "ByteStorage" => Kind::Uint8,
        "BoolStorage" => Kind::Bool,
        _ => return Err(format!("its tensors have the unsupported type {class}")),
    };
    if &**what != "storage" || &**module != "torch" || *count < 0 || key.contains(['/', '\\']) {
        return Err(MALFORMED.to_owned());
    }
    Ok(Storage {
        kind,
        key: key.clone(),
        count: *count,
    })
}

/// Returns the result of a call. Supports only the few calls that tables of tensors need.
fn made(callee: &Value, arguments: &Value) -> Result<Value, String> {
    let (Value::Global(module, name), Value::Tuple(arguments)) = (callee, arguments) else {
        return Err(MALFORMED.to_owned());
    };
    match (&**module, &**name, &**arguments) {
        ("collections", "OrderedDict", []) => Ok(Value::Table(Rc::default())),
        ("torch._utils", "_rebuild_parameter", [Value::Tensor(tensor), ..]) => {
            Ok(Value::Tensor(tensor.clone()))
        }
        (
            "torch._utils",
            "_rebuild_tensor_v2" | "_rebuild_tensor",
            [
                Value::Storage(storage),
                Value::Int(offset),
                Value::Tuple(size),
                Value::Tuple(stride),
                ..,
            ],
        ) => {
            let tensor = Stored {
                storage: storage.clone(),
                offset: *offset,
                size: numbers(size)?,
                stride: numbers(stride)?,
            };
            match tensor.is_inside() {
                true => Ok(Value::Tensor(Rc::new(tensor))),
                false => Err("one of its tensors exceeds its storage".to_owned()),
            }
        }
        _ => Err(format!(
            "it contains {module}.{name}, which is not a tensor"
        )),
    }
}

fn numbers(values: &[Value]) -> Result<Vec<i64>, String> {
    let number = |value: &Value| match value {
        Value::Int(number) if *number >= 0 => Ok(*number),
        _ => Err(MALFORMED.to_owned()),
    };
    values.iter().map(number).collect()
}

impl Stored {
    fn is_inside(&self) -> bool {
        if self.size.len() != self.stride.len() || self.offset < 0 {
            return false;
        }
        if self.size.contains(&0) {
            return true;
        }
        let mut last = Some(self.offset);
        for (&size, &stride) in self.size.iter().zip(&self.stride) {
            let step = (size - 1).checked_mul(stride);
            last = last
                .zip(step)
                .and_then(|(last, step)| last.checked_add(step));
        }
        last.is_some_and(|last| last < self.storage.count)
    }
}

/// The unread rest of a pickle.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| MALFORMED.to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self
            .0
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or(MALFORMED)?;
        let line = self.take(end)?;
        self.byte()?;
        std::str::from_utf8(line).map_err(|_| MALFORMED.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::CompressionMethod;
    use zip::write::{FileOptions, ZipWriter};

    use super::*;

    /// Returns the pickle code of a global: a name in a module.
    fn global(name: &str) -> Vec<u8> {
        let (module, name) = name.rsplit_once('.').expect("a module");
        format!("c{module}\n{name}\n").into_bytes()
    }

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = vec![b'X'];
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    /// Returns the pickle code of a float tensor with these sizes and strides, in the storage `0` of six
    /// floats.
    fn tensor(size: [u8; 2], stride: [u8; 2], offset: u8) -> Vec<u8> {
        [
            &global("torch._utils._rebuild_tensor_v2")[..],
            b"((",
            &text("storage"),
            &global("torch.FloatStorage"),
            &text("0"),
            &text("cpu"),
            &[b'K', 6, b't', b'Q', b'K', offset],
            &[
                b'K', size[0], b'K', size[1], 0x86, b'K', stride[0], b'K', stride[1], 0x86,
            ],
            &[0x89],
            &global("collections.OrderedDict"),
            b")RtR",
        ]
        .concat()
    }

    fn table(entries: &[u8]) -> Vec<u8> {
        let head = [
            b"\x80\x02",
            &global("collections.OrderedDict")[..],
            b")Rq\x00(",
        ]
        .concat();
        [&head[..], entries, b"u.".as_slice()].concat()
    }

    /// A tensor's name, sizes and values.
    type Found = (String, Vec<i64>, Vec<f64>);

    /// Writes an archive that contains this pickle, and reads the archive.
    fn read(pickle: &[u8]) -> Result<Vec<Found>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pytorch_model.bin");
        let mut zip = ZipWriter::new(File::create(&file).expect("made"));
        let options = FileOptions::default().compression_method(CompressionMethod::Stored);
        let data: Vec<u8> = (0..6_u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
        for (name, content) in [
            ("a/data.pkl", pickle),
            ("a/byteorder", b"little"),
            ("a/data/0", &data),
        ] {
            zip.start_file(name, options).expect("begun");
            zip.write_all(content).expect("written");
        }
        zip.finish().expect("finished");
        let mut found = Vec::new();
        read_file(&file, &mut |name, tensor| {
            let values = tensor.reshape([-1]).to_kind(Kind::Double);
            let values = Vec::<f64>::try_from(&values).expect("values");
            found.push((name.to_owned(), tensor.size(), values));
            Ok(())
        })
        .map_err(|error| error.message().to_owned())?;
        Ok(found)
    }

    #[test]
    fn tensors_are_views_of_their_storage() {
        let entries = [
            text("w"),
            tensor([2, 3], [3, 1], 0),
            text("t"),
            tensor([3, 2], [1, 3], 0),
            text("part"),
            tensor([1, 2], [3, 1], 4),
        ]
        .concat();
        let found = read(&table(&entries)).expect("read");
        let expected = [
            ("w", vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            ("t", vec![3, 2], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
            ("part", vec![1, 2], vec![4.0, 5.0]),
        ];
        assert_eq!(
            found,
            expected.map(|(name, size, values)| (name.to_owned(), size, values))
        );
    }

    #[test]
    fn nothing_is_called_and_tensors_stay_within_their_storage() {
        let call = [text("w"), global("os.system"), text("x"), vec![0x85, b'R']].concat();
        for (pickle, why) in [
            (table(&call), "it contains os.system, which is not a tensor"),
            (
                table(&[text("w"), tensor([3, 3], [3, 1], 0)].concat()),
                "exceeds its storage",
            ),
            (
                table(&[text("w"), tensor([2, 3], [3, 1], 1)].concat()),
                "exceeds its storage",
            ),
            (
                table(&[text("w"), tensor([255, 255], [255, 255], 0)].concat()),
                "exceeds its storage",
            ),
            (
                table(&[text("w"), b"K\x01".to_vec()].concat()),
                "its entry w is not a tensor",
            ),
            (b"\x80\x02K\x01.".to_vec(), "not a dict of tensors"),
            (b"\x80\x02u.".to_vec(), "damaged"),
            (b"\x80\x02(X\xff\xff\xff\xff".to_vec(), "damaged"),
            (b"\x80\x02i".to_vec(), "code 0x69"),
            (Vec::new(), "damaged"),
            // Deeply nested tuples.
            (
                [b"\x80\x02)".to_vec(), vec![0x85; 100_000]].concat(),
                "too deep",
            ),
        ] {
            let error = read(&pickle).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
        let whole = table(&[text("w"), tensor([2, 3], [3, 1], 0)].concat());
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn an_older_format_is_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pytorch_model.bin");
        std::fs::write(&file, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").expect("written");
        let error = read_file(&file, &mut |_, _| Ok(())).expect_err("refused");
        assert!(error.message().contains("since torch 1.6"), "{error}");
        assert!(
            error
                .hint_text()
                .expect("a hint")
                .contains("save_pretrained")
        );
    }
}

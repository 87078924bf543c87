//! Reads tensors from files into libtorch, and writes the tensors of snapshots.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use host_core::{Error, ErrorKind, Result};
use safetensors::{Dtype, SafeTensors, View};
use tch::{Kind, Tensor};

use crate::regular_file;
use crate::torch_file;
use crate::torch_shim::HostBuffer;
use crate::weight_files::WeightFiles;

/// Reads the weights in a folder. Passes each tensor and its name to `take`.
pub(crate) fn read(folder: &Path, take: &mut dyn FnMut(&str, Tensor) -> Result<()>) -> Result<()> {
    let weights = WeightFiles::find(folder)?.ok_or_else(|| {
        let message = format!("the folder has no weights: {}", folder.display());
        Error::new(ErrorKind::Config, message)
            .hint("name a folder with model.safetensors, such as a checkpoint")
    })?;
    weights
        .files
        .iter()
        .try_for_each(|file| read_file(file, take))
}

/// Reads a file that safetensors or `torch.save` wrote. Passes each tensor and its name to `take`.
pub(crate) fn read_file(
    file: &Path,
    take: &mut dyn FnMut(&str, Tensor) -> Result<()>,
) -> Result<()> {
    let io = |error: io::Error| Error::io("read the weights", file, &error);
    // The content determines the format, because files are easily renamed.
    if torch_file::is_one(file).map_err(io)? {
        return torch_file::read_file(file, take);
    }
    let bytes = regular_file::read(file, u64::MAX - 1).map_err(io)?;
    let refused = |why: String| {
        let path = file.display();
        Error::new(
            ErrorKind::Config,
            format!("the weights file cannot be used: {why}: {path}"),
        )
    };
    if regular_file::is_lfs_pointer(&bytes) {
        let why = "it is a Git LFS pointer; the file itself was not fetched";
        return Err(refused(why.to_owned())
            .hint("run `git lfs pull` in its repository, or name the model as hub:REPO"));
    }
    let bad = |why: String| {
        refused(why).hint("the file is damaged or not a safetensors file; use another copy")
    };
    let tensors = match SafeTensors::deserialize(&bytes) {
        Ok(tensors) => tensors,
        Err(_) if file.extension().is_some_and(|ending| ending == "bin") => {
            return torch_file::read_file(file, take);
        }
        Err(error) => return Err(bad(error.to_string())),
    };
    for (name, view) in tensors.tensors() {
        let kind = torch_kind(view.dtype()).ok_or_else(|| {
            bad(format!(
                "{name} has the unsupported type {:?}",
                view.dtype()
            ))
        })?;
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)
            .map_err(|error| bad(format!("{name}: {error}")))?;
        take(&name, tensor)?;
    }
    Ok(())
}

/// A tensor's copy in main memory, reused between snapshots.
#[derive(Debug)]
pub(crate) struct CpuTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Copied(HostBuffer),
    /// Integers that were not copied from a tensor.
    Made(Vec<u8>),
}

impl CpuTensor {
    /// Copies `tensor`.
    pub(crate) fn copy_of(name: impl Into<String>, tensor: &Tensor) -> Result<Self> {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::Double => Dtype::F64,
            Kind::Int64 => Dtype::I64,
            Kind::Int => Dtype::I32,
            Kind::Uint8 => Dtype::U8,
            kind => {
                return Err(Error::new(
                    ErrorKind::System,
                    format!("cannot write tensors of {kind:?}"),
                ));
            }
        };
        let mut copy = Self {
            name: name.into(),
            dtype,
            shape: tensor.size().iter().map(|&size| size as usize).collect(),
            data: Data::Copied(HostBuffer::like(tensor)?),
        };
        Self::refresh([(&mut copy, tensor)])?;
        Ok(copy)
    }

    /// Copies the tensors again. All tensors must be on one device, and their types and shapes must be
    /// unchanged.
    pub(crate) fn refresh<'a>(
        copies: impl IntoIterator<Item = (&'a mut Self, &'a Tensor)>,
    ) -> Result<()> {
        HostBuffer::fill(
            copies
                .into_iter()
                .filter_map(|(copy, tensor)| match &mut copy.data {
                    Data::Copied(buffer) => Some((buffer, tensor)),
                    Data::Made(_) => None,
                }),
        )
    }

    /// Stores integers that were not copied from a tensor.
    pub(crate) fn of_u32(name: impl Into<String>, values: &[u32], shape: [usize; 2]) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::U32,
            shape: shape.to_vec(),
            data: Data::Made(
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
            ),
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Copied(buffer) => buffer.bytes(),
            Data::Made(bytes) => bytes,
        }
    }
}

impl View for &CpuTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes())
    }

    fn data_len(&self) -> usize {
        self.bytes().len()
    }
}

/// Writes tensors to a safetensors file in the form that transformers expects.
pub(crate) fn write<'a>(file: &Path, tensors: impl Iterator<Item = &'a CpuTensor>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors.map(|tensor| (tensor.name.as_str(), tensor));
    // The safetensors crate writes a temporary file that only its owner can read, and renames it to `file`.
    // Therefore, this function first creates `file` to learn the default permissions, and sets them at the
    // end.
    let permissions = File::create(file)
        .and_then(|made| made.metadata())
        .map_err(|error| Error::io("write the weights", file, &error))?
        .permissions();
    safetensors::serialize_to_file(named, Some(metadata), file).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => {
            Error::io("write the weights", file, &error)
        }
        error => Error::new(
            ErrorKind::System,
            format!("cannot write the weights: {error}: {}", file.display()),
        ),
    })?;
    fs::set_permissions(file, permissions)
        .map_err(|error| Error::io("write the weights", file, &error))
}

fn torch_kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

/// Reads the tensor `buffer` of a file and returns its rows. The tensor must have the type u32 and the shape
/// (rows, columns).
pub(crate) fn read_u32_rows(file: &Path) -> Result<Vec<Box<[u32]>>> {
    let bytes = regular_file::read(file, u64::MAX - 1)
        .map_err(|error| Error::io("read the shuffle buffer", file, &error))?;
    let bad = |why: &str| {
        Error::new(
            ErrorKind::Config,
            format!(
                "the shuffle buffer cannot be used: {why}: {}",
                file.display()
            ),
        )
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| bad(&error.to_string()))?;
    let view = tensors
        .tensor("buffer")
        .map_err(|error| bad(&error.to_string()))?;
    let &[_, columns] = view.shape() else {
        return Err(bad("it does not have two dimensions"));
    };
    if view.dtype() != Dtype::U32 {
        return Err(bad("it is not of type u32"));
    }
    let values: Vec<u32> = view
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| u32::from_le_bytes(bytes))
        .collect();
    Ok(values.chunks(columns.max(1)).map(Into::into).collect())
}

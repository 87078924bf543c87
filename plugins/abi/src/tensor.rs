use core::ffi::c_void;

use crate::HostStr;

/// DLPack's `DLDevice`: 1 is the CPU, 2 a CUDA device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    /// `DLDeviceType`.
    pub device_type: i32,
    /// Index of the device among those of its type.
    pub device_id: i32,
}

/// DLPack's `DLDataType`: code 0 is int, 1 uint, 2 float, 4 bfloat, 6 bool.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// `DLDataTypeCode`.
    pub code: u8,
    /// Bits of one lane.
    pub bits: u8,
    /// Always 1 here.
    pub lanes: u16,
}

/// `DLTensor` of DLPack 1, the layout that array libraries support.
///
/// The address of element `i` is `data + byte_offset + sum(i[d] * strides[d]) * bits / 8`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DLTensor {
    /// Start of the allocation; null if the tensor is empty.
    pub data: *mut c_void,
    /// Device of the data.
    pub device: DLDevice,
    /// Number of dimensions; 0 for a scalar.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: DLDataType,
    /// `ndim` sizes.
    pub shape: *mut i64,
    /// `ndim` strides in elements, never null if `ndim > 0`.
    pub strides: *mut i64,
    /// Offset of the first element in bytes.
    pub byte_offset: u64,
}

/// A named tensor, borrowed until the call that received it returns.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostTensor {
    /// Size of this struct in the host's build; also the stride of an array of these structs.
    pub struct_size: u32,
    /// `HOST_TENSOR_*`.
    pub flags: u32,
    /// Name of the input, from the manifest's `needs`.
    pub name: HostStr,
    /// The tensor's layout and data.
    pub dl: *const DLTensor,
    /// The CUDA stream on which the data becomes ready. Null if it is ready already.
    pub stream: *mut c_void,
}

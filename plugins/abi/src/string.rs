/// A borrowed UTF-8 text. It contains arbitrary bytes only where the comment of a field or function allows
/// them. `ptr` can be null only if `len` is 0.
///
/// The layout is frozen, so this struct has no `struct_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostStr {
    /// First byte.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: usize,
}

impl HostStr {
    /// Creates a view of `text`, which must outlive every use of the view.
    pub const fn new(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }

    /// Creates a view of `bytes`, which must outlive every use of the view.
    pub const fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
        }
    }

    /// Returns the bytes of the view.
    ///
    /// # Safety
    /// `ptr` and `len` must denote readable bytes that stay unchanged for `'a`.
    pub const unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: the caller promises that the pointer, the length and the lifetime are valid.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// Returns the text of the view, or an error with the position of the first byte that is not UTF-8.
    ///
    /// # Safety
    /// See [`HostStr::as_bytes`].
    pub const unsafe fn as_str<'a>(self) -> Result<&'a str, core::str::Utf8Error> {
        // SAFETY: the caller promises the same as for `as_bytes`.
        core::str::from_utf8(unsafe { self.as_bytes() })
    }
}

// SAFETY: a `HostStr` is a borrowed view; only constants are shared between threads.
unsafe impl Send for HostStr {}
// SAFETY: as for `Send`, and the view gives no write access.
unsafe impl Sync for HostStr {}

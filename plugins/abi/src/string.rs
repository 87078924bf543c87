/// UTF-8 text or, where a comment says so, bytes. Borrowed. `ptr` may be null only if `len` is 0.
///
/// Frozen: the one struct of the ABI without a size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostStr {
    /// First byte.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: usize,
}

impl HostStr {
    /// A view of `text`, which must outlive every use of the view.
    pub const fn new(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }

    /// A view of `bytes`, which must outlive every use of the view.
    pub const fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
        }
    }

    /// The bytes behind the view.
    ///
    /// # Safety
    /// `ptr` and `len` must denote readable bytes that stay unchanged for `'a`.
    pub const unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: the caller vouches for the pointer, the length and the lifetime.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The text behind the view, or the place of the first byte that is not UTF-8.
    ///
    /// # Safety
    /// As for [`HostStr::as_bytes`].
    pub const unsafe fn as_str<'a>(self) -> Result<&'a str, core::str::Utf8Error> {
        // SAFETY: the caller's promise is that of `as_bytes`.
        core::str::from_utf8(unsafe { self.as_bytes() })
    }
}

// SAFETY: a `HostStr` is a borrowed view; those that are shared between threads are constants.
unsafe impl Send for HostStr {}
// SAFETY: as above, and nothing can be changed through it.
unsafe impl Sync for HostStr {}

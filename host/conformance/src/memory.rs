use std::io;
use std::ptr;

/// Bytes of their own pages, which end where a page that cannot be touched begins: who reads beyond
/// them crashes instead of reading something.
#[derive(Debug)]
pub(super) struct Memory {
    base: *mut libc::c_void,
    /// All of the mapping, the last page included.
    mapped: usize,
    at: *mut u8,
    len: usize,
}

impl Memory {
    /// A copy of the bytes, aligned to 8.
    pub(super) fn holding(bytes: &[u8]) -> io::Result<Self> {
        let page = page_size();
        let space = bytes.len().next_multiple_of(8);
        let data = space.next_multiple_of(page);
        let mapped = data + page;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at no address in particular.
        let base = unsafe { libc::mmap(ptr::null_mut(), mapped, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the place lies within the mapping, whose last page is closed; the bytes fit in
        // front of it.
        let at = unsafe {
            libc::mprotect(base.add(data), page, libc::PROT_NONE);
            let at = base.add(data - space).cast::<u8>();
            ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
            at
        };
        Ok(Self {
            base,
            mapped,
            at,
            len: bytes.len(),
        })
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.at
    }

    /// From where to where it cannot be written to after [`protect`](Self::protect).
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.base.addr()..self.base.addr() + self.mapped - page_size()
    }

    /// From now on a write is a SIGSEGV.
    pub(super) fn protect(&self) {
        // SAFETY: the pages are this mapping's, and nobody writes to them any more.
        unsafe { libc::mprotect(self.base, self.mapped - page_size(), libc::PROT_READ) };
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: they were copied there, and whoever was lent the address has returned.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.base, self.mapped) };
    }
}

fn page_size() -> usize {
    // SAFETY: a question without arguments that matter.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

use std::io;
use std::ptr;

/// Bytes in their own pages, followed by an inaccessible page, so that reading beyond their end crashes.
#[derive(Debug)]
pub(super) struct Memory {
    base: *mut libc::c_void,
    /// Size of the whole mapping, including the last page.
    mapped: usize,
    at: *mut u8,
    len: usize,
}

impl Memory {
    /// Copies the bytes to an address that is aligned to 8.
    pub(super) fn holding(bytes: &[u8]) -> io::Result<Self> {
        let page = page_size();
        let space = bytes.len().next_multiple_of(8);
        let data = space.next_multiple_of(page);
        let mapped = data + page;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the call creates a new mapping, at an address that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), mapped, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the pointer is within the mapping, whose last page is inaccessible; the bytes fit before
        // it.
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

    /// Returns the range of addresses that are read-only after [`protect`](Self::protect).
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.base.addr()..self.base.addr() + self.mapped - page_size()
    }

    /// Makes the bytes read-only. Any later write causes a SIGSEGV.
    pub(super) fn protect(&self) {
        // SAFETY: the pages belong to this mapping, and the host no longer writes to them.
        unsafe { libc::mprotect(self.base, self.mapped - page_size(), libc::PROT_READ) };
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes were copied to this address, and all calls that received the address have
        // returned.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value.
        unsafe { libc::munmap(self.base, self.mapped) };
    }
}

fn page_size() -> usize {
    // SAFETY: the call only reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

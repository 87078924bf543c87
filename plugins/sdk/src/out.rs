use host_plugin_abi::{HOST_OK, HostOut, HostStr};

use crate::{Error, Result, sized};

/// Receives the results of a call.
pub(crate) struct Out(HostOut);

impl Out {
    /// # Safety
    /// `out` is null, or valid for as long as the result is used.
    pub(crate) unsafe fn new(out: *const HostOut) -> Result<Self> {
        // SAFETY: guaranteed by the caller.
        Ok(Self(unsafe { sized::read(out) }?))
    }

    pub(crate) fn put_f64(&self, name: &str, value: f64) -> Result<()> {
        let put = self.0.put_f64.ok_or_else(|| missing("put_f64"))?;
        // SAFETY: the caller of `new` guaranteed that the function and `ctx` are valid. The host copies the
        // name.
        match unsafe { put(self.0.ctx, HostStr::new(name), value) } {
            HOST_OK => Ok(()),
            _ => Err(Error::new(format!("the host rejected the value {name:?}"))),
        }
    }

    pub(crate) fn put_bytes(&self, bytes: &[u8]) -> Result<()> {
        let put = self.0.put_bytes.ok_or_else(|| missing("put_bytes"))?;
        // SAFETY: as in `put_f64`.
        match unsafe { put(self.0.ctx, HostStr::from_bytes(bytes)) } {
            HOST_OK => Ok(()),
            _ => Err(Error::new("the host rejected the result")),
        }
    }
}

fn missing(function: &str) -> Error {
    Error::new(format!("the host has no function {function}"))
}

use std::ffi::c_void;
use std::ptr;

use host_plugin_abi::{HOST_ERROR, HOST_OK, HostOut, HostStatus, HostStr};

use crate::host_api::{bytes_of, contained};
use crate::instance::Collector;

/// Maximum length of the name of a value or a group, in bytes.
pub(crate) const LONGEST_NAME: usize = host_core::LONGEST_METRIC_NAME;
/// Maximum number of values that one call may output.
const MOST_VALUES: usize = 1000;
/// Maximum number of bytes that one call may output.
pub(crate) const MOST_BYTES: usize = 64 << 20;

/// The output of a call. Lives on the host's stack during one call.
#[derive(Debug, Default)]
pub struct Output {
    values: Vec<(String, f64)>,
    bytes: Option<Vec<u8>>,
    /// The first fault in the output, if any. A call with a fault fails, even if the plugin ignores the
    /// fault.
    fault: Option<String>,
}

impl Collector for Output {
    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

impl Output {
    /// Returns the callbacks that write to this output. They contain the output's address, so the output must
    /// not be moved or accessed until the call returns.
    pub fn callbacks(&mut self) -> HostOut {
        HostOut {
            struct_size: size_of::<HostOut>() as u32,
            reserved: 0,
            ctx: ptr::from_mut(self).cast(),
            put_f64: Some(put_f64),
            put_bytes: Some(put_bytes),
        }
    }

    /// Returns the named values, or the first fault.
    pub fn into_values(self) -> Result<Vec<(String, f64)>, String> {
        match (self.fault, self.bytes) {
            (Some(fault), _) => Err(fault),
            (None, Some(_)) => Err("it put bytes instead of values".to_owned()),
            (None, None) => Ok(self.values),
        }
    }

    /// Returns the bytes, or the first fault.
    pub fn into_bytes(self) -> Result<Vec<u8>, String> {
        self.into_any_bytes()?
            .ok_or_else(|| "it succeeded but put no output".to_owned())
    }

    /// Returns the bytes, or `None` if the call wrote no bytes. If there was a fault, returns the first
    /// fault.
    pub fn into_any_bytes(self) -> Result<Option<Vec<u8>>, String> {
        match self.fault {
            Some(fault) => Err(fault),
            None if !self.values.is_empty() => Err("it put values instead of bytes".to_owned()),
            None => Ok(self.bytes),
        }
    }

    fn put_value(&mut self, name: &str, value: f64) -> Result<(), String> {
        if self.values.len() == MOST_VALUES {
            return Err(format!("it put more than {MOST_VALUES} values"));
        }
        if self.values.iter().any(|(known, _)| known == name) {
            return Err(format!("it put {name:?} twice"));
        }
        self.values.push((name.to_owned(), value));
        Ok(())
    }
}

/// Checks the name that a plugin gave to a value or a group.
///
/// # Safety
/// `name` must be readable for `'a`.
pub(crate) unsafe fn checked_name<'a>(name: HostStr, of: &str) -> Result<&'a str, String> {
    // SAFETY: the caller guarantees that the name is readable for `'a`.
    let Some(bytes) = (unsafe { bytes_of(name, LONGEST_NAME) }) else {
        return Err(format!(
            "the name of a {of} has {} bytes, more than {LONGEST_NAME}",
            name.len
        ));
    };
    match std::str::from_utf8(bytes) {
        Err(_) => Err(format!(
            "the name of a {of} is not UTF-8: {:?}",
            String::from_utf8_lossy(bytes)
        )),
        Ok("") => Err(format!("a {of} has an empty name")),
        Ok(name) if name.contains(char::is_control) => Err(format!(
            "the name of a {of} contains control characters: {name:?}"
        )),
        Ok(name) => Ok(name),
    }
}

/// Runs a callback's body, records the first fault and returns the status for the plugin.
pub(crate) fn answer(
    fault: &mut Option<String>,
    body: impl FnOnce() -> Result<(), String>,
) -> HostStatus {
    match contained(Err("the host failed in a callback".to_owned()), body) {
        Ok(()) => HOST_OK,
        Err(reason) => {
            fault.get_or_insert(reason);
            HOST_ERROR
        }
    }
}

unsafe extern "C" fn put_f64(ctx: *mut c_void, name: HostStr, value: f64) -> HostStatus {
    // SAFETY: the plugin passes the context of this call, and nothing else accesses its output.
    let Some(output) = (unsafe { ctx.cast::<Output>().as_mut() }) else {
        return HOST_ERROR;
    };
    let mut fault = output.fault.take();
    let status = answer(&mut fault, || {
        // SAFETY: the ABI guarantees that the name is readable until this callback returns.
        let name = unsafe { checked_name(name, "value") }?;
        output.put_value(name, value)
    });
    output.fault = fault;
    status
}

unsafe extern "C" fn put_bytes(ctx: *mut c_void, bytes: HostStr) -> HostStatus {
    // SAFETY: the plugin passes the context of this call, and nothing else accesses its output.
    let Some(output) = (unsafe { ctx.cast::<Output>().as_mut() }) else {
        return HOST_ERROR;
    };
    let mut fault = output.fault.take();
    let status = answer(&mut fault, || {
        // SAFETY: the ABI guarantees that the bytes are readable until this callback returns.
        let Some(put) = (unsafe { bytes_of(bytes, MOST_BYTES) }) else {
            return Err(format!(
                "it put {} bytes, more than {} MiB",
                bytes.len,
                MOST_BYTES >> 20
            ));
        };
        output.bytes = Some(put.to_vec());
        Ok(())
    });
    output.fault = fault;
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(output: &mut Output, name: HostStr) -> HostStatus {
        let out = output.callbacks();
        let put_f64 = out.put_f64.expect("put_f64");
        // SAFETY: the context belongs to the output, and the names below are readable.
        unsafe { put_f64(out.ctx, name, 1.0) }
    }

    #[test]
    fn values_are_kept_in_order() {
        let mut output = Output::default();
        assert_eq!(put(&mut output, HostStr::new("b")), HOST_OK);
        assert_eq!(put(&mut output, HostStr::new("a")), HOST_OK);
        assert_eq!(
            output.into_values(),
            Ok(vec![("b".to_owned(), 1.0), ("a".to_owned(), 1.0)])
        );
    }

    #[test]
    fn an_invalid_name_fails_the_call_even_if_the_plugin_ignores_it() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for (name, fault) in [
            (HostStr::new(""), "a value has an empty name"),
            (
                HostStr::from_bytes(b"\xff"),
                "the name of a value is not UTF-8: \"\u{fffd}\"",
            ),
            (
                HostStr::new("a\nb"),
                "the name of a value contains control characters: \"a\\nb\"",
            ),
            (
                HostStr::new(&long),
                "the name of a value has 201 bytes, more than 200",
            ),
            (HostStr::new("a"), "it put \"a\" twice"),
        ] {
            let mut output = Output::default();
            assert_eq!(put(&mut output, HostStr::new("a")), HOST_OK);
            assert_eq!(put(&mut output, name), HOST_ERROR);
            assert_eq!(put(&mut output, HostStr::new("c")), HOST_OK);
            assert_eq!(output.into_values(), Err(fault.to_owned()));
        }
    }

    #[test]
    fn output_is_bounded() {
        let mut output = Output::default();
        for n in 0..MOST_VALUES {
            assert_eq!(put(&mut output, HostStr::new(&n.to_string())), HOST_OK);
        }
        assert_eq!(put(&mut output, HostStr::new("more")), HOST_ERROR);
        let mut output = Output::default();
        let out = output.callbacks();
        let put_bytes = out.put_bytes.expect("put_bytes");
        let huge = HostStr {
            ptr: [0u8; 1].as_ptr(),
            len: MOST_BYTES + 1,
        };
        // SAFETY: bytes beyond the limit are not read.
        assert_eq!(unsafe { put_bytes(out.ctx, huge) }, HOST_ERROR);
        assert_eq!(
            output.into_bytes(),
            Err("it put 67108865 bytes, more than 64 MiB".to_owned())
        );
    }
}

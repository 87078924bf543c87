//! The JSON manifest, which the host reads from the library's file before it runs any code of the plugin. It
//! is created at compile time as constant data in its own section.

use host_plugin_abi::{HOST_ABI_MAJOR, HOST_ABI_MINOR};

/// The fields of the manifest that differ between plugins. `export_plugin!` sets them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Manifest {
    pub id: &'static str,
    pub version: &'static str,
    pub description: &'static str,
    pub kinds: &'static [&'static str],
    pub needs: &'static [&'static str],
    pub devices: &'static [&'static str],
    /// `None` means all events.
    pub events: Option<&'static [&'static str]>,
    /// The JSON Schema of the settings, as the author wrote it.
    pub config: &'static str,
}

/// The schema of a plugin without settings.
#[doc(hidden)]
pub const NO_CONFIG: &str = r#"{"type":"object","additionalProperties":false}"#;

impl Manifest {
    /// Returns the length of the JSON in bytes.
    pub const fn len(&self) -> usize {
        self.write::<0>().len
    }

    /// Always `false`.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Returns the JSON. `N` must be [`len`](Self::len).
    pub const fn bytes<const N: usize>(&self) -> [u8; N] {
        self.write::<N>().bytes
    }

    const fn write<const N: usize>(&self) -> Json<N> {
        let json = Json::new()
            .raw(r#"{"abi":["#)
            .number(HOST_ABI_MAJOR)
            .raw(",")
            .number(HOST_ABI_MINOR)
            .raw(r#"],"id":"#)
            .text(self.id)
            .raw(r#","version":"#)
            .text(self.version)
            .raw(r#","description":"#)
            .text(self.description)
            .raw(r#","kinds":"#)
            .list(self.kinds)
            .raw(r#","needs":"#)
            .list(self.needs)
            .raw(r#","devices":"#)
            .list(self.devices);
        let json = match self.events {
            Some(events) => json.raw(r#","events":"#).list(events),
            None => json,
        };
        json.raw(r#","panic":"unwind","sdk":"#)
            .text(env!("CARGO_PKG_VERSION"))
            .raw(r#","config":"#)
            .raw(self.config)
            .raw("}")
    }
}

/// A builder for JSON text with capacity `N`. Bytes beyond the capacity are counted but not stored.
struct Json<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Json<N> {
    const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    const fn byte(mut self, byte: u8) -> Self {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
        self
    }

    const fn raw(mut self, text: &str) -> Self {
        if N == 0 {
            self.len += text.len();
            return self;
        }
        let mut at = 0;
        while at < text.len() {
            self = self.byte(text.as_bytes()[at]);
            at += 1;
        }
        self
    }

    const fn text(mut self, text: &str) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self = self.byte(b'"');
        let mut at = 0;
        while at < text.len() {
            let byte = text.as_bytes()[at];
            self = match byte {
                b'"' | b'\\' => self.byte(b'\\').byte(byte),
                0..0x20 => self
                    .raw("\\u00")
                    .byte(HEX[(byte >> 4) as usize])
                    .byte(HEX[(byte & 15) as usize]),
                _ => self.byte(byte),
            };
            at += 1;
        }
        self.byte(b'"')
    }

    const fn list(mut self, items: &[&str]) -> Self {
        self = self.byte(b'[');
        let mut at = 0;
        while at < items.len() {
            if at > 0 {
                self = self.byte(b',');
            }
            self = self.text(items[at]);
            at += 1;
        }
        self.byte(b']')
    }

    const fn number(self, number: u32) -> Self {
        let shorter = if number < 10 {
            self
        } else {
            self.number(number / 10)
        };
        shorter.byte(b'0' + (number % 10) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_json_for_all_texts() {
        const ODD: Manifest = Manifest {
            id: "odd",
            version: "1.20.3",
            description: "says \"so\" \\ in two\nlines, ü",
            kinds: &["metric", "checkpoint_sink"],
            needs: &[],
            devices: &["cpu"],
            events: Some(&["metrics", "warning"]),
            config: NO_CONFIG,
        };
        static BYTES: [u8; ODD.len()] = ODD.bytes();
        let json: serde_json::Value = serde_json::from_slice(&BYTES).expect("JSON");
        assert_eq!(json["description"], ODD.description);
        assert_eq!(json["abi"][0], HOST_ABI_MAJOR);
        assert_eq!(json["kinds"][1], "checkpoint_sink");
        assert_eq!(json["needs"], serde_json::json!([]));
        assert_eq!(json["events"], serde_json::json!(["metrics", "warning"]));
        assert_eq!(json["config"]["additionalProperties"], false);
        assert!(!ODD.is_empty());
    }

    #[test]
    fn numbers_have_all_their_digits() {
        let json = Json::<4>::new().number(1024);
        assert_eq!(&json.bytes, b"1024");
    }
}

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::format::Compression;
use super::left_out::Reason;

/// Bytes of a document with a column of its own at most.
pub(crate) const LONGEST: usize = 64 << 20;

/// The texts of a file with a JSON object a line. Blank lines are none.
pub(crate) struct JsonLines {
    input: BufReader<Box<dyn Read + Send>>,
    column: Arc<str>,
    line: Vec<u8>,
    ended: bool,
}

impl JsonLines {
    pub(crate) fn new(input: Box<dyn Read + Send>, column: Arc<str>) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 16, input),
            column,
            line: Vec::new(),
            ended: false,
        }
    }

    /// The next text, or why a line has none. A read that fails ends the file, and the line that it
    /// fails in does not count.
    pub(crate) fn next(&mut self) -> Option<Result<String, Reason>> {
        while !self.ended {
            self.line.clear();
            self.line.shrink_to(1 << 20);
            match self.read_line() {
                Err(error) => {
                    self.ended = true;
                    return Some(Err(Reason::of(&error)));
                }
                Ok(0) => self.ended = true,
                Ok(_) if self.line.len() > LONGEST => return Some(Err(Reason::TooLong)),
                Ok(_) if self.line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(text_of(&self.line, &self.column)),
            }
        }
        None
    }

    /// Reads a line, or the beginning of one that is too long, whose rest is passed over.
    fn read_line(&mut self) -> io::Result<usize> {
        let longest = LONGEST as u64 + 1;
        let read = (&mut self.input)
            .take(longest)
            .read_until(b'\n', &mut self.line)?;
        if self.line.len() > LONGEST && !self.line.ends_with(b"\n") {
            self.input.skip_until(b'\n')?;
        }
        Ok(read)
    }
}

/// The names of the first object's fields, for a message.
pub(crate) fn first_fields(path: &Path, compression: Compression) -> Vec<String> {
    let first = || {
        let input = compression.open(File::open(path).ok()?).ok()?;
        let mut lines = JsonLines::new(input, "".into());
        lines.read_line().ok()?;
        serde_json::from_slice(&lines.line).ok()
    };
    match first() {
        Some(Value::Object(object)) => object.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

fn text_of(line: &[u8], column: &str) -> Result<String, Reason> {
    let line = std::str::from_utf8(line).map_err(|_| Reason::NotUtf8)?;
    let mut json = serde_json::Deserializer::from_str(line);
    let text = Column(column)
        .deserialize(&mut json)
        .and_then(|text| json.end().map(|()| text))
        .map_err(|_| Reason::NotJson)?;
    text.ok_or(Reason::NoText)
}

/// Reads one field of an object if it is a string, without making anything of the others.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, object: D) -> Result<Self::Value, D::Error> {
        object.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut object: M) -> Result<Self::Value, M::Error> {
        let mut text = None;
        while let Some(name) = object.next_key::<String>()? {
            if name != self.0 {
                object.next_value::<IgnoredAny>()?;
            } else if let Value::String(value) = object.next_value()? {
                text = Some(value);
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: impl Read + Send + 'static) -> Vec<Result<String, Reason>> {
        let mut lines = JsonLines::new(Box::new(input), "content".into());
        std::iter::from_fn(|| lines.next()).collect()
    }

    #[test]
    fn a_line_is_a_text_or_a_reason() {
        let lines = "{\"path\": {\"a\": [1, 2]}, \"content\": \"fn \\u00e9\\n\"}\n\n\
            {\"content\": 3}\n{\"text\": \"a\"}\n{\"content\": \"cut\n[1]\n{\"content\": \"b\"} c\n\
            {\"content\": \"last\"}";
        let text = |text: &str| Ok(text.to_owned());
        assert_eq!(
            read(io::Cursor::new(lines)),
            [
                text("fn é\n"),
                Err(Reason::NoText),
                Err(Reason::NoText),
                Err(Reason::NotJson),
                Err(Reason::NotJson),
                Err(Reason::NotJson),
                text("last"),
            ]
        );
        assert_eq!(
            read(io::Cursor::new(
                b"{\"content\": \"\xff\"}\n{\"content\": \"a\"}"
            )),
            [Err(Reason::NotUtf8), text("a")]
        );
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let endless = io::repeat(b'a').take(2 * LONGEST as u64);
        let lines = endless.chain(io::Cursor::new("\n{\"content\": \"a\"}"));
        assert_eq!(read(lines), [Err(Reason::TooLong), Ok("a".to_owned())]);
    }
}

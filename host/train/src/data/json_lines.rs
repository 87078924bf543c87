use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::format::Compression;
use super::left_out::{Missing, Reason};

/// Maximum bytes of a JSON line, and of a row's text in Parquet.
pub(crate) const LONGEST: usize = 64 << 20;

/// The UTF-8 byte order mark, which Excel and other programs write at the beginning of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the texts of a file with a JSON object on each line. Blank lines are skipped.
pub(crate) struct JsonLines {
    input: BufReader<Box<dyn Read + Send>>,
    column: Arc<str>,
    line: Vec<u8>,
    /// Number of lines read, including blank ones.
    number: u64,
    ended: bool,
}

impl JsonLines {
    pub(crate) fn new(input: Box<dyn Read + Send>, column: Arc<str>) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 16, input),
            column,
            line: Vec::new(),
            number: 0,
            ended: false,
        }
    }

    /// Returns the text of the next line, or why this line has no text. If a read fails, the file ends there,
    /// and the current line is left out.
    pub(crate) fn next(&mut self) -> Option<Result<String, Missing>> {
        while !self.ended {
            let outcome = match self.read_line() {
                Err(error) => {
                    self.ended = true;
                    Err(Missing::from(error))
                }
                Ok(0) => {
                    self.ended = true;
                    return None;
                }
                Ok(_) if self.line.len() > LONGEST => Err(Reason::TooLong.into()),
                Ok(_) if self.number == 1 && is_utf16(&self.line) => {
                    // Line ends are encoded differently in UTF-16, so the file counts as one document without
                    // a text.
                    self.ended = true;
                    Err(Reason::Utf16.into())
                }
                Ok(_) if without_mark(&self.line).trim_ascii().is_empty() => continue,
                Ok(_) => text_of(without_mark(&self.line).trim_ascii_end(), &self.column),
            };
            return Some(outcome.map_err(|missing| missing.in_line(self.number)));
        }
        None
    }

    /// Reads a line. If the line is too long, keeps its beginning and skips the rest.
    fn read_line(&mut self) -> io::Result<usize> {
        self.line.clear();
        self.line.shrink_to(1 << 20);
        self.number += 1;
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

/// Returns the names of the first object's fields, for an error message.
pub(crate) fn first_fields(path: &Path, compression: Compression) -> Vec<String> {
    let first = || {
        let mut lines = lines_of(path, compression)?;
        lines.read_line().ok()?;
        let line = without_mark(&lines.line);
        let line = std::str::from_utf8(line).ok()?;
        serde_json::from_str(line)
            .or_else(|_| serde_json::from_str(&with_null_for_python_numbers(line)))
            .ok()
    };
    match first() {
        Some(Value::Object(object)) => object.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Whether each of the first two non-blank lines is a JSON object.
pub(crate) fn is_lines(path: &Path) -> bool {
    let Some(mut lines) = lines_of(path, Compression::None) else {
        return false;
    };
    let is_object = |lines: &mut JsonLines| loop {
        match lines.read_line() {
            Err(_) | Ok(0) => return false,
            Ok(_) => {}
        }
        let line = without_mark(&lines.line).trim_ascii();
        if !line.is_empty() {
            return line.starts_with(b"{")
                && line.ends_with(b"}")
                && !text_of(line, "").is_err_and(|missing| missing.reason == Reason::NotJson);
        }
    };
    is_object(&mut lines) && is_object(&mut lines)
}

fn lines_of(path: &Path, compression: Compression) -> Option<JsonLines> {
    let input = compression.open(File::open(path).ok()?).ok()?;
    Some(JsonLines::new(input, "".into()))
}

/// Removes a byte order mark. In a file concatenated from several files, any line can begin with such a mark.
fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
}

/// Whether a file that begins with these bytes is in UTF-16 or UTF-32. Such a file has a byte order mark, or
/// a zero byte in each of its first characters.
pub(super) fn is_utf16(begin: &[u8]) -> bool {
    let marks = [&b"\xff\xfe"[..], b"\xfe\xff", b"\0\0\xfe\xff"];
    marks.iter().any(|mark| begin.starts_with(mark))
        || matches!(
            begin,
            [0, 1..=255, 0, 1..=255, ..] | [1..=255, 0, 1..=255, 0, ..]
        )
}

fn text_of(line: &[u8], column: &str) -> Result<String, Missing> {
    let line = std::str::from_utf8(line).map_err(|_| Missing::from(Reason::NotUtf8))?;
    let read = |line: &str| {
        let mut json = serde_json::Deserializer::from_str(line);
        let field = Column(column).deserialize(&mut json);
        field.and_then(|field| json.end().map(|()| field))
    };
    let field = read(line).or_else(|error| {
        // Python's json module writes NaN and Infinity, which are not valid JSON. They are mostly in fields
        // that are not read here.
        if ["NaN", "Infinity"].iter().any(|name| line.contains(name)) {
            read(&with_null_for_python_numbers(line)).map_err(|_| error)
        } else {
            Err(error)
        }
    });
    match field {
        Ok(Field::Text(text)) => Ok(text),
        Ok(Field::Null) => Err(Reason::Null.into()),
        Ok(Field::Absent) => Err(Reason::NoText.into()),
        Ok(Field::Other) => {
            let why = format!("{column:?} is not a string");
            Err(Missing::from(Reason::NoText).because(why))
        }
        Err(error) => Err(Missing::from(Reason::NotJson).because(in_words(&error))),
    }
}

/// Returns the parser's message without its line number, which is always 1.
fn in_words(error: &serde_json::Error) -> String {
    let words = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match (words.strip_suffix(&place), error.column()) {
        (Some(words), 0) => words.to_owned(),
        (Some(words), column) => format!("{words} in column {column}"),
        (None, _) => words,
    }
}

/// Returns the line with `null` in place of each NaN, Infinity and -Infinity outside its strings.
fn with_null_for_python_numbers(line: &str) -> String {
    let mut valid = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(quote) = rest.find('"') {
        let (between, string) = rest.split_at(quote);
        valid.push_str(&numbers_replaced(between));
        let mut escaped = false;
        let end = string.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let (string, after) = string.split_at(end.map_or(string.len(), |end| end + 2));
        valid.push_str(string);
        rest = after;
    }
    valid.push_str(&numbers_replaced(rest));
    valid
}

fn numbers_replaced(between: &str) -> String {
    let replaced = between.replace("-Infinity", "null");
    replaced.replace("Infinity", "null").replace("NaN", "null")
}

/// The value of the object's field that has the column's name.
enum Field {
    Absent,
    Null,
    Text(String),
    Other,
}

/// Reads one field of an object if it is a string; skips all other fields.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, object: D) -> Result<Field, D::Error> {
        object.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut object: M) -> Result<Field, M::Error> {
        let mut field = Field::Absent;
        while let Some(name) = object.next_key::<String>()? {
            if name == self.0 {
                field = object.next_value_seed(Text)?;
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(field)
    }
}

/// Reads a string. Skips any other value without parsing it: a parsed list of numbers would need many times
/// as much memory as its text.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Field, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Field, S::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut object: M) -> Result<Field, M::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: impl Read + Send + 'static) -> Vec<Result<String, Missing>> {
        let mut lines = JsonLines::new(Box::new(input), "content".into());
        std::iter::from_fn(|| lines.next()).collect()
    }

    /// Returns an entry for each line: its text, or its number and the reason why it has no text.
    fn said(lines: &str) -> Vec<String> {
        let said = |line: Result<String, Missing>| match line {
            Ok(text) => text,
            Err(missing) => format!("{} {}", missing.line.expect("a line"), missing.words()),
        };
        let input = io::Cursor::new(lines.to_owned());
        read(input).into_iter().map(said).collect()
    }

    #[test]
    fn each_line_yields_a_text_or_a_reason() {
        let lines = "{\"path\": {\"a\": [1, 2]}, \"content\": \"fn \\u00e9\\n\"}\n\n\
            {\"content\": 3}\n{\"text\": \"a\"}\n{\"content\": \"cut\n[1]\n{\"content\": \"b\"} c\n\
            {\"content\": null}\n{\"content\": [{\"content\": 1}]}\n{'content': 'b'}\n\
            {\"content\": \"\\ud83d\"}\n{\"content\": \"last\"}";
        assert_eq!(
            said(lines),
            [
                "fn é\n",
                "3 without the text column: \"content\" is not a string",
                "4 without the text column",
                "5 not a JSON object: EOF while parsing a string in column 16",
                "6 not a JSON object: invalid type: sequence, expected an object",
                "7 not a JSON object: trailing characters in column 18",
                "8 with null in the text column",
                "9 without the text column: \"content\" is not a string",
                "10 not a JSON object: key must be a string in column 2",
                "11 not a JSON object: unexpected end of hex escape in column 20",
                "last",
            ]
        );
        let not_utf8 = io::Cursor::new(b"{\"content\": \"\xff\"}\n{\"content\": \"a\"}");
        let not_utf8 = read(not_utf8);
        assert_eq!(not_utf8[0], Err(Missing::from(Reason::NotUtf8).in_line(1)));
        assert_eq!(not_utf8[1], Ok("a".to_owned()));
    }

    #[test]
    fn files_written_by_python_and_excel_are_read() {
        let lines = "\u{feff}{\"content\": \"a\", \"score\": NaN}\r\n\
            {\"low\": -Infinity, \"high\": [Infinity, {\"x\": NaN}], \"content\": \"NaN \\\"Infinity\\\\\"}\r\n\r\n\
            \u{feff}{\"content\": \"b\"}\r\n{\"content\": NaN}\n{\"content\": \"c\", \"n\": Nan}\n\
            {\"huge\": 1e999, \"lone\": \"\\ud83d\", \"content\": \"d\"}\n";
        assert_eq!(
            said(lines),
            [
                "a",
                "NaN \"Infinity\\",
                "b",
                "5 with null in the text column",
                "6 not a JSON object: expected value in column 23",
                "d",
            ]
        );
    }

    #[test]
    fn utf16_is_reported() {
        let text = "{\"content\": \"a\"}\n{\"content\": \"b\"}\n";
        let units = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
        let marked = format!("\u{feff}{text}");
        let little: Vec<u8> = units(&marked)
            .iter()
            .flat_map(|c| c.to_le_bytes())
            .collect();
        let big: Vec<u8> = units(&marked)
            .iter()
            .flat_map(|c| c.to_be_bytes())
            .collect();
        let unmarked: Vec<u8> = units(text).iter().flat_map(|c| c.to_le_bytes()).collect();
        for bytes in [little, big, unmarked] {
            let expected = Missing::from(Reason::Utf16).in_line(1);
            assert_eq!(read(io::Cursor::new(bytes)), [Err(expected)]);
        }
    }

    #[test]
    fn an_endless_line_uses_bounded_memory() {
        let endless = io::repeat(b'a').take(2 * LONGEST as u64);
        let lines = endless.chain(io::Cursor::new("\n{\"content\": \"a\"}"));
        let too_long = Missing::from(Reason::TooLong).in_line(1);
        assert_eq!(read(lines), [Err(too_long), Ok("a".to_owned())]);
    }
}

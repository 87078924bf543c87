use std::io::Read;

use super::json_lines::is_utf16;
use super::left_out::{Missing, Reason};
use super::passage::{LIMIT, Passage, cut};

/// A file that is one text, of any length.
///
/// Reading stops before the first passage that cannot be read or is not UTF-8. A short text is one passage,
/// so it is left out as a whole if it is not UTF-8.
pub(crate) struct Text {
    input: Box<dyn Read + Send>,
    /// Bytes that were read but not yet returned.
    ahead: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    Within,
    /// Reading failed after the first passage. The next call returns the empty passage that ends the text.
    Broken,
    End,
}

impl Text {
    pub(crate) fn new(input: Box<dyn Read + Send>) -> Self {
        Self {
            input,
            ahead: Vec::new(),
            state: State::Begin,
        }
    }

    /// Returns the next passage, or why the text ends early.
    pub(crate) fn next(&mut self) -> Option<Result<Passage, Missing>> {
        match self.state {
            State::End => return None,
            State::Broken => {
                self.state = State::End;
                return Some(Ok(Passage::text(String::new(), true)));
            }
            State::Begin | State::Within => {}
        }
        let missing = LIMIT + 1 - self.ahead.len();
        let read = (&mut self.input)
            .take(missing as u64)
            .read_to_end(&mut self.ahead);
        if let Err(error) = read {
            return Some(Err(self.breaks(error.into())));
        }
        if self.ahead.is_empty() {
            return Some(Err(self.breaks(Reason::Empty.into())));
        }
        let is_last = self.ahead.len() <= LIMIT;
        let end = if is_last {
            self.ahead.len()
        } else {
            cut(&self.ahead, LIMIT)
        };
        // ASCII in UTF-16 is also valid UTF-8, with a zero byte for every character.
        let is_utf16 = self.state == State::Begin && is_utf16(&self.ahead);
        let text = std::str::from_utf8(&self.ahead[..end]);
        let text = match text {
            _ if is_utf16 => return Some(Err(self.breaks(Reason::Utf16.into()))),
            Err(_) => return Some(Err(self.breaks(Reason::NotUtf8.into()))),
            Ok(text) => text,
        };
        // A copy of the exact size, because many passages wait in queues.
        let text = text.to_owned();
        self.ahead.drain(..end);
        self.state = if is_last { State::End } else { State::Within };
        Some(Ok(Passage::text(text, is_last)))
    }

    fn breaks(&mut self, missing: Missing) -> Missing {
        self.state = match self.state {
            State::Within => State::Broken,
            _ => State::End,
        };
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: Vec<u8>) -> Vec<Result<(usize, bool), Missing>> {
        let mut text = Text::new(Box::new(std::io::Cursor::new(bytes)));
        std::iter::from_fn(|| text.next())
            .map(|passage| passage.map(|passage| (passage.bytes(), passage.ends_document)))
            .collect()
    }

    #[test]
    fn a_short_text_is_one_passage_or_none() {
        assert_eq!(read(b"fn main".to_vec()), [Ok((7, true))]);
        assert_eq!(read(vec![b'a', 0xff]), [Err(Reason::NotUtf8.into())]);
        let marked: Vec<u8> = "\u{feff}fn"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(read(marked[2..].to_vec()), [Err(Reason::Utf16.into())]);
        assert_eq!(read(marked), [Err(Reason::Utf16.into())]);
        assert_eq!(read(b"\0asm\xff".to_vec()), [Err(Reason::NotUtf8.into())]);
        assert_eq!(read(Vec::new()), [Err(Reason::Empty.into())]);
    }

    #[test]
    fn a_long_text_counts_up_to_the_faulty_passage() {
        let mut long = b"line\n".repeat(LIMIT / 5 + 10);
        let length = long.len();
        let passages = read(long.clone());
        assert_eq!(passages.len(), 2);
        let good = |at: usize| passages[at].clone().expect("good");
        let (first, second) = (good(0), good(1));
        assert_eq!(first.0 + second.0, length);
        assert_eq!((first.1, second.1), (false, true));
        long.push(0xff);
        assert_eq!(
            read(long),
            [Ok(first), Err(Reason::NotUtf8.into()), Ok((0, true))]
        );
    }
}

/// What is tokenised at once: a document, or a part of one that is longer than 256 KiB. Of a token
/// file it is some documents or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) content: Content,
    /// Whether a document ends here.
    pub(crate) ends_document: bool,
}

/// What a passage is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    /// Of a token file, the end-of-text tokens included.
    Ids(Vec<u32>),
}

/// Bytes of text in a passage at most. Tokenising takes more than a hundred times the memory.
pub(crate) const LIMIT: usize = 1 << 18;

impl Passage {
    pub(crate) fn text(text: String, ends_document: bool) -> Self {
        Self {
            content: Content::Text(text),
            ends_document,
        }
    }

    /// How much it weighs in a queue.
    pub(crate) fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Ids(ids) => size_of_val(&ids[..]),
        }
    }
}

/// Where a text of more than `limit` bytes is cut: before the last end of a line that follows a
/// visible character. There GPT-2's pattern begins a new word whatever stands around it, so the
/// tokens are those of the uncut text. A text without such a place is cut between two characters.
pub(crate) fn cut(text: &[u8], limit: usize) -> usize {
    let line_end = (1..=limit)
        .rev()
        .find(|&i| text[i] == b'\n' && text[i - 1].is_ascii_graphic());
    line_end.unwrap_or_else(|| {
        // A character has at most four bytes; what is longer is no UTF-8 anyway.
        let begins = |&i: &usize| text[i] & 0xc0 != 0x80;
        (limit.saturating_sub(3).max(1)..=limit)
            .rev()
            .find(begins)
            .unwrap_or(limit)
    })
}

/// A document that is longer than a passage, of which some passages were taken.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    text: String,
    taken: usize,
}

impl Rest {
    pub(crate) fn new(text: String) -> Self {
        Self { text, taken: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.text.len()
    }

    /// Takes a passage off the front. It has memory of its own: many wait in queues, while the document
    /// is freed with its last.
    pub(crate) fn take(&mut self) -> Passage {
        let rest = &self.text[self.taken..];
        if rest.len() > LIMIT {
            let end = cut(rest.as_bytes(), LIMIT);
            self.taken += end;
            return Passage::text(rest[..end].to_owned(), false);
        }
        let last = if self.taken == 0 {
            std::mem::take(&mut self.text)
                .into_boxed_str()
                .into_string()
        } else {
            rest.to_owned()
        };
        *self = Self::default();
        Passage::text(last, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_before_a_line_end_or_between_characters() {
        assert_eq!(cut(b"ab\ncd\nef", 6), 5);
        // Neither white space before the line end nor one at the very front will do.
        assert_eq!(cut(b"ab\n\n \nef", 6), 2);
        assert_eq!(cut(b"\nabcdefgh", 6), 6);
        assert_eq!(cut("aaéé".as_bytes(), 3), 2);
        assert_eq!(cut(&[0x80; 9], 6), 6);
    }

    #[test]
    fn the_passages_of_a_text_are_the_text() {
        let line = "fn main() { }\n    \n";
        let whole = line.repeat(2 * LIMIT / line.len() + 1000);
        let mut text = String::with_capacity(10 * whole.len());
        text.push_str(&whole);
        let mut rest = Rest::new(text);
        let mut joined = String::new();
        while !rest.is_empty() {
            let passage = rest.take();
            let Content::Text(part) = &passage.content else {
                unreachable!("a text has no ids");
            };
            assert!(part.len() <= LIMIT);
            assert_eq!(part.capacity(), part.len(), "memory of its own");
            joined += part;
            assert_eq!(passage.ends_document, rest.is_empty());
        }
        assert!(joined == whole);
    }

    #[test]
    fn a_short_document_keeps_no_room_for_more() {
        let mut text = String::with_capacity(1 << 20);
        text.push_str("fn main");
        let passage = Rest::new(text).take();
        let Content::Text(text) = passage.content else {
            unreachable!("a text has no ids");
        };
        assert_eq!((text.capacity(), &*text), (7, "fn main"));
    }
}

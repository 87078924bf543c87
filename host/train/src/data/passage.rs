/// A unit of tokenization. In a text file, it is a whole document or, if the document is longer than 256 KiB,
/// a part of it. In a token file, it is several documents, or a part of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) content: Content,
    /// Whether a document ends here.
    pub(crate) ends_document: bool,
}

/// The content of a passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    /// Ids from a token file, including the end-of-text tokens.
    Ids(Vec<u32>),
}

/// Maximum bytes of text in a passage. Tokenizing a text uses more than a hundred times the text's size in
/// memory.
pub(crate) const LIMIT: usize = 1 << 18;

impl Passage {
    pub(crate) fn text(text: String, ends_document: bool) -> Self {
        Self {
            content: Content::Text(text),
            ends_document,
        }
    }

    /// Returns the size in bytes, which counts towards a queue's limit.
    pub(crate) fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Ids(ids) => size_of_val(&ids[..]),
        }
    }
}

/// Returns where to cut a text of more than `limit` bytes. The cut is directly before a line end that follows
/// a visible character. Of these line ends, the last one at `limit` or earlier is used. GPT-2's pattern
/// always begins a new word there, so the tokens are those of the uncut text. A text without such a line end
/// is cut between two characters.
pub(crate) fn cut(text: &[u8], limit: usize) -> usize {
    let line_end = (1..=limit)
        .rev()
        .find(|&i| text[i] == b'\n' && text[i - 1].is_ascii_graphic());
    line_end.unwrap_or_else(|| {
        // A UTF-8 character has at most four bytes. If none begins at the last four positions, the text is
        // not UTF-8.
        let begins = |&i: &usize| text[i] & 0xc0 != 0x80;
        (limit.saturating_sub(3).max(1)..=limit)
            .rev()
            .find(begins)
            .unwrap_or(limit)
    })
}

/// The rest of a document from which passages were already taken.
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

    /// Takes the next passage from the document. Returns it without spare capacity, since many passages wait
    /// in queues. The document is freed when its last passage is taken.
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
        // No cut is made before a line end that follows white space or begins the text.
        assert_eq!(cut(b"ab\n\n \nef", 6), 2);
        assert_eq!(cut(b"\nabcdefgh", 6), 6);
        assert_eq!(cut("aaéé".as_bytes(), 3), 2);
        assert_eq!(cut(&[0x80; 9], 6), 6);
    }

    #[test]
    fn the_passages_add_up_to_the_text() {
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
    fn a_short_document_has_no_spare_capacity() {
        let mut text = String::with_capacity(1 << 20);
        text.push_str("fn main");
        let passage = Rest::new(text).take();
        let Content::Text(text) = passage.content else {
            unreachable!("a text has no ids");
        };
        assert_eq!((text.capacity(), &*text), (7, "fn main"));
    }
}

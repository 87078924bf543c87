//! Checks the value counts of Parquet pages before the decoder allocates memory for them. This is necessary
//! because a damaged page can declare more values than fit into memory, and a failed allocation aborts the
//! process.
//!
//! Source of the encodings: Encodings.md of apache/parquet-format.

use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Maximum number of values in a page. Writers create pages of roughly ten thousand values.
const MOST_VALUES: u64 = 1 << 26;

/// The pages of a column that has at most one byte string for each row.
pub(super) struct CheckedPages {
    pages: Box<dyn PageReader>,
    /// The column's maximum definition level.
    most_defined: i16,
}

impl CheckedPages {
    pub(super) fn new(pages: Box<dyn PageReader>, most_defined: i16) -> Self {
        Self {
            pages,
            most_defined,
        }
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            check(page, self.most_defined)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}

/// Returns an error if the page is truncated or declares too many values. The header of a dictionary page
/// must not declare more values than fit into the page. In any other page, the data must declare neither more
/// values than the page's header nor more than [`MOST_VALUES`].
fn check(page: &Page, most_defined: i16) -> Result<()> {
    let values = u64::from(page.num_values());
    let announced = match page {
        // Each value begins with its length in four bytes.
        Page::DictionaryPage { buf, .. } if values > buf.len() as u64 / 4 => Some(values),
        Page::DictionaryPage { .. } => None,
        _ => {
            let (encoding, data) = (page.encoding(), encoded(page, most_defined));
            let announced = data.map_or(Announced::TooShort, |data| lengths(encoding, data));
            match announced {
                Announced::Nothing => None,
                Announced::Most(count) => (count > values.min(MOST_VALUES)).then_some(count),
                Announced::TooShort => {
                    return Err(ParquetError::General("a page is truncated".to_owned()));
                }
            }
        }
    };
    match announced {
        Some(count) => Err(ParquetError::General(format!(
            "a page declares {count} values, which is too many (its header declares {values})"
        ))),
        None => Ok(()),
    }
}

/// Returns the encoded values of a data page, which follow its definition levels. `None` if the page is
/// truncated.
fn encoded(page: &Page, most_defined: i16) -> Option<&[u8]> {
    match page {
        Page::DataPageV2 {
            buf,
            def_levels_byte_len,
            rep_levels_byte_len,
            ..
        } => buf.get((*def_levels_byte_len as usize).checked_add(*rep_levels_byte_len as usize)?..),
        _ if most_defined == 0 => Some(page.buffer()),
        Page::DataPage {
            buf,
            def_level_encoding: Encoding::RLE,
            ..
        } => {
            let (length, rest) = buf.split_first_chunk()?;
            rest.get(u32::from_le_bytes(*length) as usize..)
        }
        // Bit-packed: each level has as many bits as the maximum level needs.
        page => {
            let bits = u64::from(most_defined.unsigned_abs().ilog2() + 1);
            let bytes = (u64::from(page.num_values()) * bits).div_ceil(8);
            page.buffer().get(usize::try_from(bytes).ok()?..)
        }
    }
}

/// The number of values that a page's encoded data declares.
#[derive(Debug, PartialEq, Eq)]
enum Announced {
    /// The encoding does not contain the number of values.
    Nothing,
    /// The data contains one or two lists, each of which declares a number of values. This is the largest of
    /// these numbers.
    Most(u64),
    TooShort,
}

/// Returns how many lengths the encoded data declares.
fn lengths(encoding: Encoding, data: &[u8]) -> Announced {
    let most = match encoding {
        // The data contains the lengths, then the bytes of all values.
        Encoding::DELTA_LENGTH_BYTE_ARRAY => Packed::new(data).map(|lengths| lengths.count),
        // A value's prefix is the part that it shares with the previous value. The data contains the lengths
        // of the prefixes, then the suffixes. The suffixes are encoded as `DELTA_LENGTH_BYTE_ARRAY`.
        Encoding::DELTA_BYTE_ARRAY => Packed::new(data).and_then(|prefixes| {
            let count = prefixes.count;
            // A list that declares too many values is not read to its end.
            if count > MOST_VALUES {
                return Some(count);
            }
            let suffixes = Packed::new(prefixes.end()?)?;
            Some(count.max(suffixes.count))
        }),
        _ => return Announced::Nothing,
    };
    most.map_or(Announced::TooShort, Announced::Most)
}

/// A list of numbers in the encoding `DELTA_BINARY_PACKED`.
struct Packed<'a> {
    /// How many numbers the list declares.
    count: u64,
    /// Numbers per miniblock, and miniblocks per block.
    numbers: u64,
    miniblocks: usize,
    blocks: &'a [u8],
}

impl<'a> Packed<'a> {
    fn new(mut data: &'a [u8]) -> Option<Self> {
        let block = varint(&mut data)?;
        let miniblocks = varint(&mut data)?;
        let count = varint(&mut data)?;
        varint(&mut data)?;
        Some(Self {
            count,
            numbers: block.checked_div(miniblocks)?,
            miniblocks: usize::try_from(miniblocks).ok()?,
            blocks: data,
        })
    }

    /// Returns the data after the list. `None` if the list is truncated.
    fn end(self) -> Option<&'a [u8]> {
        let mut rest = self.blocks;
        // The header contains the first number.
        let mut left = self.count.saturating_sub(1);
        while left > 0 {
            varint(&mut rest)?;
            let (widths, mut numbers) = rest.split_at_checked(self.miniblocks)?;
            for &bits in widths {
                // If no numbers are left for a miniblock, the data contains its width, but no bytes for its
                // numbers.
                if left == 0 {
                    break;
                }
                let bytes = u64::from(bits).checked_mul(self.numbers)? / 8;
                numbers = numbers.get(usize::try_from(bytes).ok()?..)?;
                left = left.saturating_sub(self.numbers.max(1));
            }
            rest = numbers;
        }
        Some(rest)
    }
}

/// Reads a number from the front of `data`: seven bits per byte, low bits first.
fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_seven_bits_a_byte() {
        let mut data = &[0x7f, 0x80, 0x01, 0xff][..];
        assert_eq!(varint(&mut data), Some(127));
        assert_eq!(varint(&mut data), Some(128));
        assert_eq!(varint(&mut data), None);
        assert_eq!(varint(&mut &[0xff; 11][..]), None);
    }

    #[test]
    fn a_packed_list_ends_after_the_last_miniblock_with_numbers() {
        // The header says: the list has 34 numbers; a block has 4 miniblocks, 128 numbers in all.
        // The first number is in the header; the other 33 are in the first two miniblocks.
        let header = [0x80, 0x01, 4, 34, 0];
        let block = [&[0, 3, 1, 77, 77][..], &[9; 12], &[9; 4]].concat();
        let data = [&header[..], &block, b"behind"].concat();
        let packed = Packed::new(&data).expect("a header");
        assert_eq!(packed.count, 34);
        assert_eq!(packed.end(), Some(&b"behind"[..]));
        let cut = &data[..header.len() + 9];
        assert_eq!(Packed::new(cut).expect("a header").end(), None);
    }

    #[test]
    fn a_list_that_declares_more_values_than_its_page_is_detected() {
        let huge = [0x80, 0x01, 4, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
        let packed = [0x80, 0x01, 4, 1, 0];
        let both = [&packed[..], &huge].concat();
        for (encoding, data) in [
            (Encoding::DELTA_LENGTH_BYTE_ARRAY, &huge[..]),
            (Encoding::DELTA_BYTE_ARRAY, &huge),
            (Encoding::DELTA_BYTE_ARRAY, &both),
        ] {
            let Announced::Most(count) = lengths(encoding, data) else {
                panic!("{encoding:?}");
            };
            assert!(count > MOST_VALUES, "{encoding:?}: {count}");
        }
        assert_eq!(lengths(Encoding::PLAIN, &huge), Announced::Nothing);
        let short = lengths(Encoding::DELTA_BYTE_ARRAY, &packed[..3]);
        assert_eq!(short, Announced::TooShort);
    }
}

//! The encoding of chunks. An axis has three numbers for each row: how much seq, step and time differ from
//! the previous row. They are zigzag varints. A column has a tag and then the values. The values are
//! little-endian floats, and the tag sets their width.

/// The position of a metric event: everything except its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) step: u64,
    pub(crate) time_us: i64,
}

/// The bytes are not a valid encoding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Values are f64.
const WIDE: u8 = 0;
/// Values are f32. Used if every value is exact in f32, as the losses of an f32 model are.
const NARROW: u8 = 1;

pub(crate) fn encode_axis(places: &[Place]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(places.len() * 6);
    let mut before = Place::default();
    for &place in places {
        put(&mut bytes, place.seq.wrapping_sub(before.seq));
        put(&mut bytes, place.step.wrapping_sub(before.step));
        put(
            &mut bytes,
            place.time_us.wrapping_sub(before.time_us).cast_unsigned(),
        );
        before = place;
    }
    bytes
}

/// Decodes an axis that has this number of rows. Appends the decoded places to `into`.
pub(crate) fn decode_axis(
    mut bytes: &[u8],
    rows: usize,
    into: &mut Vec<Place>,
) -> Result<(), Malformed> {
    let mut place = Place::default();
    for _ in 0..rows {
        place.seq = place.seq.wrapping_add(take(&mut bytes)?);
        place.step = place.step.wrapping_add(take(&mut bytes)?);
        place.time_us = place.time_us.wrapping_add(take(&mut bytes)?.cast_signed());
        into.push(place);
    }
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(Malformed)
    }
}

pub(crate) fn encode_column(values: &[f64]) -> Vec<u8> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`exact` checks that narrowing loses nothing"
    )]
    let narrow = |value: f64| value as f32;
    let exact = |&value: &f64| f64::from(narrow(value)).to_bits() == value.to_bits();
    if values.iter().all(exact) {
        let mut bytes = vec![NARROW];
        bytes.extend(values.iter().flat_map(|&v| narrow(v).to_le_bytes()));
        bytes
    } else {
        let mut bytes = vec![WIDE];
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    }
}

/// A column that is read directly from its bytes, without a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column<'a> {
    Wide(&'a [[u8; 8]]),
    Narrow(&'a [[u8; 4]]),
}

impl<'a> Column<'a> {
    pub(crate) fn new(bytes: &'a [u8], rows: usize) -> Result<Self, Malformed> {
        let (&tag, data) = bytes.split_first().ok_or(Malformed)?;
        let column = match tag {
            WIDE => Self::Wide(whole(data)?),
            NARROW => Self::Narrow(whole(data)?),
            _ => return Err(Malformed),
        };
        let len = match column {
            Self::Wide(values) => values.len(),
            Self::Narrow(values) => values.len(),
        };
        if len == rows {
            Ok(column)
        } else {
            Err(Malformed)
        }
    }

    /// Returns the value of the row with this index, which must be less than the number of rows.
    pub(crate) fn get(&self, row: usize) -> f64 {
        match self {
            Self::Wide(values) => f64::from_le_bytes(values[row]),
            Self::Narrow(values) => f32::from_le_bytes(values[row]).into(),
        }
    }
}

/// Encodes the values of an event that is not folded into a chunk.
pub(crate) fn encode_row(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(f64::to_le_bytes).collect()
}

/// The reverse of [`encode_row`].
pub(crate) fn decode_row(bytes: &[u8]) -> Result<impl ExactSizeIterator<Item = f64>, Malformed> {
    Ok(whole(bytes)?.iter().map(|&v| f64::from_le_bytes(v)))
}

fn whole<const N: usize>(bytes: &[u8]) -> Result<&[[u8; N]], Malformed> {
    match bytes.as_chunks() {
        (values, []) => Ok(values),
        _ => Err(Malformed),
    }
}

/// Appends a difference as a zigzag varint: seven bits per byte, low bits first. Most differences are small,
/// and some are negative.
fn put(bytes: &mut Vec<u8>, difference: u64) {
    let signed = difference.cast_signed();
    let mut rest = (signed << 1 ^ signed >> 63).cast_unsigned();
    while rest >= 0x80 {
        bytes.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    bytes.push(rest.to_le_bytes()[0]);
}

fn take(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut zigzag = 0;
    for (place, &byte) in bytes.iter().enumerate().take(10) {
        zigzag |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            *bytes = &bytes[place + 1..];
            return Ok(zigzag >> 1 ^ (zigzag & 1).wrapping_neg());
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_round_trips_for_any_numbers() {
        let places: Vec<Place> = [
            (1, 0, 0),
            (2, 0, 1_700_000_000_000_000),
            (900, u64::MAX, i64::MIN),
            (901, 3, i64::MAX),
            (u64::MAX, 2, -1),
        ]
        .map(|(seq, step, time_us)| Place { seq, step, time_us })
        .to_vec();
        let bytes = encode_axis(&places);
        let mut back = Vec::new();
        decode_axis(&bytes, places.len(), &mut back).expect("whole");
        assert_eq!(back, places);
    }

    #[test]
    fn a_truncated_or_too_long_axis_is_malformed() {
        let bytes = encode_axis(&[Place::default(), Place::default()]);
        let decode = |bytes: &[u8], rows| decode_axis(bytes, rows, &mut Vec::new());
        assert_eq!(decode(&bytes[1..], 2), Err(Malformed));
        assert_eq!(decode(&bytes, 1), Err(Malformed));
        assert_eq!(decode(&[0xff; 30], 1), Err(Malformed));
    }

    #[test]
    fn a_column_round_trips_bit_for_bit_and_is_narrow_if_that_is_exact() {
        let odd_nan = f64::from_bits(0x7ff8_dead_beef_0001);
        for (values, width) in [
            (vec![], 4),
            (vec![0.5, -0.0, f64::INFINITY, 16_777_216.0], 4),
            (vec![0.1], 8),
            (vec![odd_nan, 1.0], 8),
            (vec![f64::MIN_POSITIVE, f64::MAX], 8),
        ] {
            let bytes = encode_column(&values);
            assert_eq!(bytes.len(), 1 + width * values.len());
            let column = Column::new(&bytes, values.len()).expect("whole");
            let back: Vec<u64> = (0..values.len()).map(|i| column.get(i).to_bits()).collect();
            assert_eq!(back, values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
        assert!(Column::new(&encode_column(&[0.1]), 2).is_err());
        assert!(Column::new(&[], 0).is_err());
        assert!(Column::new(&[9], 0).is_err());
    }
}

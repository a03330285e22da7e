//! Text that is made in memory and handed on in large pieces: dumps of a large pool are hundreds of MB of short lines of
//! numbers, and the general machinery for formatting takes longer for them than reading the metadata does.

use std::io::{self, Write};

/// Bytes handed on at a time.
const PIECE_BYTES: usize = 128 * 1024;
/// Digits of the largest number.
const MAX_DIGITS: usize = 20;

/// All numbers of two digits.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut rest = pairs.as_mut_slice();
    let mut number = 0u8;
    while let Some((pair, tail)) = rest.split_first_mut() {
        *pair = [b'0' + number / 10, b'0' + number % 10];
        number += 1;
        rest = tail;
    }
    pairs
};

/// Writes text and numbers. [`end`](TextWriter::end) must be called, or the last piece is lost.
pub(crate) struct TextWriter<'a> {
    out: &'a mut dyn Write,
    piece: Vec<u8>,
}

impl<'a> TextWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, piece: Vec::new() }
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.piece.extend_from_slice(text.as_bytes());
        self
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        let mut digits = [0; MAX_DIGITS];
        let mut rest = number;
        let mut begin = MAX_DIGITS;
        for place in digits.as_chunks_mut::<2>().0.iter_mut().rev() {
            if rest == 0 && begin < MAX_DIGITS {
                break;
            }
            *place = PAIRS.get((rest % 100) as usize).copied().unwrap_or_default();
            rest /= 100;
            begin -= 2;
        }
        // The first pair of a number with an odd count of digits has a zero too many.
        let shown = digits.get(begin..).unwrap_or_default();
        let shown = shown.strip_prefix(b"0").filter(|shown| !shown.is_empty()).unwrap_or(shown);
        self.piece.extend_from_slice(shown);
        self
    }

    /// Fields as attributes of an element, each with a space before it.
    pub(crate) fn xml_attributes(&mut self, fields: &[(&str, u64)]) -> &mut Self {
        for (name, value) in fields {
            self.text(" ").text(name).text("=\"").number(*value).text("\"");
        }
        self
    }

    /// Fields as members of an object, without its braces.
    pub(crate) fn json_members(&mut self, fields: &[(&str, u64)]) -> &mut Self {
        for (index, (name, value)) in fields.iter().enumerate() {
            self.separator(index).text("\"").text(name).text("\":").number(*value);
        }
        self
    }

    /// What goes before the element of a list in JSON.
    pub(crate) fn separator(&mut self, index: usize) -> &mut Self {
        self.text(if index == 0 { "" } else { "," })
    }

    /// A place where the text may be cut.
    ///
    /// # Errors
    /// When what the text goes to fails.
    pub(crate) fn pause(&mut self) -> io::Result<()> {
        if self.piece.len() >= PIECE_BYTES { self.end() } else { Ok(()) }
    }

    /// Hands on all that is left.
    ///
    /// # Errors
    /// As [`pause`](TextWriter::pause).
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.out.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::TextWriter;

    #[test]
    fn numbers_are_written_as_the_standard_library_writes_them() {
        let mut numbers = vec![0, 1, 9, 10, 11, 99, 100, 101, 999, 1000, 65535, u64::MAX, u64::MAX - 1];
        numbers.extend((0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]));
        numbers.extend((0..20).flat_map(|power| [10u64.pow(power) - 1, 10u64.pow(power)]));
        for number in numbers {
            let mut out = Vec::new();
            let mut writer = TextWriter::new(&mut out);
            writer.text("<").number(number).text(">").end().unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), format!("<{number}>"));
        }
    }

    #[test]
    fn pieces_are_handed_on_at_pauses_and_at_the_end() {
        let mut out = Vec::new();
        let mut writer = TextWriter::new(&mut out);
        for number in 0..100_000 {
            writer.number(number).text("\n").pause().unwrap();
        }
        writer.end().unwrap();
        let expected: String = (0..100_000).map(|number| format!("{number}\n")).collect();
        assert!(out == expected.as_bytes());
    }
}

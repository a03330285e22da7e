//! A line of the journal: `CCCCCCCC LLLLLLLL JSON\n`, where C is the CRC-32C of what follows it up to the end of the
//! JSON and L the length of the JSON, both in eight hexadecimal digits.
//!
//! The length is what tells a line that was not finished (a crash while it was appended) from a finished line that
//! was damaged later: only the former may be dropped.

use super::RegistryError;

/// Bytes before the JSON: checksum, space, length, space.
const HEAD_BYTES: usize = 18;
/// Checksum and the space behind it, which the checksum does not cover.
const CHECKSUM_BYTES: usize = 9;

/// Appends one line that holds `json`, which must not contain a newline (JSON without pretty-printing never does).
pub(super) fn encode(json: &[u8], out: &mut Vec<u8>) {
    let mut covered = format!("{:08x} ", json.len()).into_bytes();
    covered.extend_from_slice(json);
    out.extend_from_slice(format!("{:08x} ", crc32c::crc32c(&covered)).as_bytes());
    out.extend_from_slice(&covered);
    out.push(b'\n');
}

/// What follows in a journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A verified line, and what comes after it.
    Line {
        /// The text inside.
        json: &'a [u8],
        /// The rest of the journal.
        rest: &'a [u8],
    },
    /// The last line, of which only a part was written.
    Unfinished,
    /// Nothing.
    End,
}

/// Takes the first line off `journal`. `number` counts from 1 and is for the error.
pub(super) fn take(journal: &[u8], number: u64) -> Result<Next<'_>, RegistryError> {
    if journal.is_empty() {
        return Ok(Next::End);
    }
    let damaged = |reason| RegistryError::Damaged { line: number, reason };
    let Some(end) = journal.iter().position(|&byte| byte == b'\n') else {
        return unfinished(journal).map_err(damaged);
    };
    let (line, rest) = journal.split_at_checked(end).ok_or(damaged("cut in the middle"))?;
    let rest = rest.get(1..).unwrap_or_default();
    let (length, json) = split(line).ok_or(damaged("not a journal line"))?;
    if length != json.len() as u64 {
        return Err(damaged("wrong length"));
    }
    Ok(Next::Line { json: verified(line, json).ok_or(damaged("wrong checksum"))?, rest })
}

/// A tail without its newline: unfinished, unless the announced length says that all of it was once there.
fn unfinished(tail: &[u8]) -> Result<Next<'_>, &'static str> {
    match split(tail) {
        Some((length, json)) if (json.len() as u64) > length => Err("the end of the line is missing"),
        _ => Ok(Next::Unfinished),
    }
}

/// The announced length and the text behind it.
fn split(line: &[u8]) -> Option<(u64, &[u8])> {
    let (head, json) = line.split_at_checked(HEAD_BYTES)?;
    let digits = std::str::from_utf8(head.get(CHECKSUM_BYTES..HEAD_BYTES - 1)?).ok()?;
    Some((u64::from_str_radix(digits, 16).ok()?, json))
}

/// The text, when the checksum at the head of the line is that of the rest.
fn verified<'a>(line: &[u8], json: &'a [u8]) -> Option<&'a [u8]> {
    let (head, covered) = line.split_at_checked(CHECKSUM_BYTES)?;
    let expected = format!("{:08x} ", crc32c::crc32c(covered));
    (head == expected.as_bytes()).then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(json.as_bytes(), &mut out);
        out
    }

    #[test]
    fn a_line_comes_back() {
        let mut journal = line("{\"a\":1}");
        journal.extend(line("{}"));
        let Next::Line { json, rest } = take(&journal, 1).unwrap() else { panic!("no line") };
        assert_eq!(json, b"{\"a\":1}");
        let Next::Line { json, rest } = take(rest, 2).unwrap() else { panic!("no line") };
        assert_eq!((json, rest), (&b"{}"[..], &b""[..]));
        assert_eq!(take(rest, 3).unwrap(), Next::End);
    }

    #[test]
    fn every_proper_prefix_is_unfinished() {
        let whole = line("{\"name\":\"a rather longer text\"}");
        for length in 1..whole.len() {
            assert_eq!(take(&whole[..length], 1).unwrap(), Next::Unfinished, "{length}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_finished_line_is_damage() {
        let whole = line("{\"name\":\"x\"}");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(take(&flipped, 7), Err(RegistryError::Damaged { line: 7, .. })),
                "bit {bit}: {:?}",
                String::from_utf8_lossy(&flipped)
            );
        }
    }
}

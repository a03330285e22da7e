//! How 32 bytes are written in JSON: as 64 lower-case hexadecimal digits.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&digits)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let digits = String::deserialize(deserializer)?;
    parse(digits.as_bytes()).ok_or_else(|| D::Error::custom("not 64 hexadecimal digits"))
}

fn parse(digits: &[u8]) -> Option<[u8; 32]> {
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        if !pair.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_64_digits_are_taken() {
        assert_eq!(super::parse("0f".repeat(32).as_bytes()), Some([15; 32]));
        assert_eq!(super::parse("0f".repeat(31).as_bytes()), None);
        assert_eq!(super::parse(format!("{}+f", "0f".repeat(31)).as_bytes()), None);
        assert_eq!(super::parse(format!("{}f", "0f".repeat(32)).as_bytes()), None);
    }
}

//! Ids of stored objects: BLAKE3 of their plain content, in a namespace per kind, so that no
//! chunk's content can pass for a map node or a manifest.

use std::fmt;

/// Length of every id in bytes.
pub const ID_LEN: usize = 32;

/// Bytes that are no id: wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id has {ID_LEN} bytes, not {0}")]
pub struct InvalidId(pub usize);

macro_rules! id {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_LEN]);

        impl $name {
            /// Wraps bytes that were computed or stored earlier.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; ID_LEN]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; ID_LEN] {
                &self.0
            }

            /// The bytes, for a protobuf field.
            #[must_use]
            pub fn to_bytes(&self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                <[u8; ID_LEN]>::try_from(bytes).map(Self).map_err(|_| InvalidId(bytes.len()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

id!(ChunkId, "Id of a chunk: BLAKE3 of its plain bytes.");
id!(NodeId, "Id of a map node: BLAKE3 of its encoding, in derive-key mode.");
id!(ManifestId, "Id of a manifest or tombstone: BLAKE3 of its encoding, in derive-key mode.");

impl ChunkId {
    /// The id of `plain`.
    #[must_use]
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

impl NodeId {
    /// The id of an encoded node.
    #[must_use]
    pub fn of(encoded: &[u8]) -> Self {
        Self(blake3::derive_key("thinbak format 1 map node", encoded))
    }
}

impl ManifestId {
    /// The id of an encoded manifest or tombstone.
    #[must_use]
    pub fn of(encoded: &[u8]) -> Self {
        Self(blake3::derive_key("thinbak format 1 manifest", encoded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_have_different_ids_as_chunk_node_and_manifest() {
        let bytes = b"one content, three kinds";
        assert_ne!(ChunkId::of(bytes).as_bytes(), NodeId::of(bytes).as_bytes());
        assert_ne!(NodeId::of(bytes).as_bytes(), ManifestId::of(bytes).as_bytes());
    }

    #[test]
    fn a_chunk_id_is_plain_blake3() {
        // Published test vector: BLAKE3 of nothing.
        assert_eq!(
            ChunkId::of(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn bytes_of_a_wrong_length_are_refused() {
        assert_eq!(ChunkId::try_from(&[0u8; 31][..]), Err(InvalidId(31)));
    }
}

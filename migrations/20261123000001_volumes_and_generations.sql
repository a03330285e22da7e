-- The catalogue of a repository: what is visible. Derived from the manifests and tombstones in the packs.
-- Integers hold what fits in 63 bits; times are unix times in milliseconds; uuids are in hyphenated lower case.

CREATE TABLE volumes (
    uuid        TEXT NOT NULL PRIMARY KEY CHECK (length(uuid) = 36),
    name        TEXT NOT NULL UNIQUE CHECK (name <> ''),   -- HOST/POOL/VOLUME
    next_number INTEGER NOT NULL CHECK (next_number >= 1)  -- of the next generation; numbers are never reused
) STRICT;

CREATE TABLE generations (
    volume_uuid    TEXT NOT NULL REFERENCES volumes (uuid),
    number         INTEGER NOT NULL CHECK (number >= 1),
    created_at_ms  INTEGER NOT NULL,
    size_bytes     INTEGER NOT NULL CHECK (size_bytes >= 0),
    chunk_bytes    INTEGER NOT NULL CHECK (chunk_bytes > 0),
    levels         INTEGER NOT NULL CHECK (levels BETWEEN 1 AND 9),
    root           BLOB NOT NULL CHECK (length(root) = 32),
    parent         INTEGER NOT NULL,                       -- 0: none
    point          BLOB,                                   -- encoded thinbak.v1.Point
    protected      INTEGER NOT NULL CHECK (protected IN (0, 1)),
    group_uuid     TEXT NOT NULL,                          -- '': none
    mapped_bytes   INTEGER NOT NULL,
    changed_bytes  INTEGER NOT NULL,
    new_bytes      INTEGER NOT NULL,
    stored_bytes   INTEGER NOT NULL,
    revision       INTEGER NOT NULL CHECK (revision >= 1), -- of the manifest
    manifest       BLOB NOT NULL CHECK (length(manifest) = 32),
    deleted_at_ms  INTEGER,                                -- NULL: alive
    tombstone      BLOB CHECK (length(tombstone) = 32),
    PRIMARY KEY (volume_uuid, number),
    CHECK ((deleted_at_ms IS NULL) = (tombstone IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX generations_alive ON generations (volume_uuid, created_at_ms) WHERE deleted_at_ms IS NULL;

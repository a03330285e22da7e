-- Damage that was found, and what was found good. Times are unix times in milliseconds.

-- Records that could not be read back. Such a place counts as not stored: a backup that has the content stores it
-- anew, and from then on the chunk index names the new place. The row stays until the pack is removed, so that an
-- index made anew from the packs does not name the damaged place again.
CREATE TABLE quarantine (
    pack          INTEGER NOT NULL CHECK (pack BETWEEN 0 AND 4294967295),
    offset_bytes  INTEGER NOT NULL CHECK (offset_bytes BETWEEN 0 AND 4294967295), -- of the record's header in the pack
    id            BLOB NOT NULL CHECK (length(id) = 32),
    kind          INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 4),                  -- as in the record header
    reason        TEXT NOT NULL,                                                  -- for people
    found_at_ms   INTEGER NOT NULL,
    healed_at_ms  INTEGER,                                                        -- NULL: not stored anew yet
    PRIMARY KEY (pack, offset_bytes)
) STRICT, WITHOUT ROWID;

CREATE INDEX quarantine_unhealed ON quarantine (found_at_ms) WHERE healed_at_ms IS NULL;

-- When all records of a pack were last read back and found good.
CREATE TABLE pack_verifications (
    pack           INTEGER NOT NULL PRIMARY KEY CHECK (pack BETWEEN 0 AND 4294967295),
    verified_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Whose catalogue this is, so that a copy is not brought back into another repository. One row, written when the
-- repository is first opened with this schema.

CREATE TABLE repository (
    one  INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    uuid TEXT NOT NULL CHECK (length(uuid) = 36)            -- as in the file thinbak-repository
) STRICT;

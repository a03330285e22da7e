-- Listing, deletion with a grace period, and schedules. Times are unix times in milliseconds.

-- Serves lists, counts and sums of what is visible without touching the rows.
DROP INDEX generations_alive;
CREATE INDEX generations_alive ON generations (volume_uuid, number, created_at_ms, mapped_bytes)
    WHERE deleted_at_ms IS NULL;

-- Finds what was deleted without passing over what is visible.
CREATE INDEX generations_deleted ON generations (volume_uuid, number, deleted_at_ms)
    WHERE deleted_at_ms IS NOT NULL;

-- What holds for the repository as a whole: one row.
CREATE TABLE settings (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    grace_ms INTEGER NOT NULL CHECK (grace_ms >= 0)   -- how long a deletion can be undone
) STRICT;
INSERT INTO settings (id, grace_ms) VALUES (1, 604800000);

-- What the server does by itself, and when it last began to.
CREATE TABLE schedules (
    job             TEXT NOT NULL PRIMARY KEY CHECK (job <> ''),
    counted_from_ms INTEGER NOT NULL   -- the next run is due at the schedule's first moment after this one
) STRICT;

-- Counts and sums of what is visible, without touching the rows. deleted_at_ms is NULL in all of the index, but where
-- it is not part of it SQLite looks for it in the rows.
DROP INDEX generations_alive;
CREATE INDEX generations_alive ON generations (volume_uuid, number, created_at_ms, mapped_bytes, deleted_at_ms)
    WHERE deleted_at_ms IS NULL;

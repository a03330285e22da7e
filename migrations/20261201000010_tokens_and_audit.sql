-- Who may do what, and who did what. Times are unix times in milliseconds.

CREATE TABLE tokens (
    id            TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 16),   -- the public part
    name          TEXT NOT NULL UNIQUE CHECK (name <> ''),
    scope         INTEGER NOT NULL CHECK (scope BETWEEN 1 AND 4),      -- as thinbak.v1.Scope
    volumes       TEXT NOT NULL CHECK (volumes <> ''),                 -- patterns, one a line
    secret_hash   BLOB NOT NULL CHECK (length(secret_hash) = 32),      -- SHA-256 of the secret part
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,                                             -- NULL: never
    revoked_at_ms INTEGER                                              -- NULL: not
) STRICT, WITHOUT ROWID;

CREATE TRIGGER tokens_are_not_deleted BEFORE DELETE ON tokens
BEGIN SELECT RAISE(ABORT, 'tokens are revoked, not deleted'); END;
CREATE TRIGGER tokens_stay_revoked BEFORE UPDATE ON tokens
WHEN OLD.revoked_at_ms IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a revoked token stays as it is'); END;

CREATE TABLE audit (
    number  INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL,
    token   TEXT NOT NULL,   -- its name; '': nobody had to show one
    peer    TEXT NOT NULL,   -- address; '': in the server's own process
    call    TEXT NOT NULL,   -- SERVICE/METHOD
    volume  TEXT NOT NULL,   -- '': of no one volume
    outcome TEXT NOT NULL
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;

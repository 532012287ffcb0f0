-- Who the session's client last authenticated as; empty for nobody known.
ALTER TABLE session ADD COLUMN user TEXT NOT NULL DEFAULT '';

-- Who the will's client authenticated as; empty for nobody.
ALTER TABLE will ADD COLUMN user TEXT NOT NULL DEFAULT '';

CREATE TABLE snapshots (
  id TEXT NOT NULL PRIMARY KEY,
  source_uid TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

-- Clones that slept shared one file under one folder name: they refer to one snapshot now.
INSERT INTO snapshots (id, source_uid, created_at)
  SELECT 'snap_' || substr(saved, 7), min(uid), min(coalesce(stopped_at, updated_at)) FROM vms WHERE saved IS NOT NULL GROUP BY saved;

ALTER TABLE vms ADD COLUMN snapshot TEXT REFERENCES snapshots (id);
UPDATE vms SET snapshot = 'snap_' || substr(saved, 7) WHERE saved IS NOT NULL;
ALTER TABLE vms DROP COLUMN saved;

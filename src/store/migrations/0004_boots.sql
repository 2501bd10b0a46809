CREATE TABLE boots (
  vm_uid TEXT NOT NULL PRIMARY KEY REFERENCES vms (uid) ON DELETE CASCADE,
  machine TEXT,
  session_secret TEXT,
  acked_seq INTEGER NOT NULL DEFAULT 0,
  identity_due INTEGER NOT NULL DEFAULT 0,
  boot_ms INTEGER,
  exit_code INTEGER,
  exit_signal INTEGER,
  exit_message TEXT,
  started_at INTEGER,
  stopped_at INTEGER
) STRICT;

INSERT INTO boots
  SELECT uid, machine, session_secret, acked_seq, identity_due, boot_ms, exit_code, exit_signal, exit_message, started_at, stopped_at FROM vms;

ALTER TABLE vms DROP COLUMN machine;
ALTER TABLE vms DROP COLUMN session_secret;
ALTER TABLE vms DROP COLUMN acked_seq;
ALTER TABLE vms DROP COLUMN identity_due;
ALTER TABLE vms DROP COLUMN boot_ms;
ALTER TABLE vms DROP COLUMN exit_code;
ALTER TABLE vms DROP COLUMN exit_signal;
ALTER TABLE vms DROP COLUMN exit_message;
ALTER TABLE vms DROP COLUMN started_at;
ALTER TABLE vms DROP COLUMN stopped_at;

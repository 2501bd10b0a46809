-- How often a guest has rebooted soon after its start, in a row: a daemon that starts anew takes it up from there.
ALTER TABLE vms ADD COLUMN quick_reboots INTEGER NOT NULL DEFAULT 0;

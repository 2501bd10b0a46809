CREATE TABLE ports (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  protocol TEXT NOT NULL,
  address TEXT NOT NULL,
  port INTEGER NOT NULL,
  guest_port INTEGER NOT NULL,
  vm_uid TEXT NOT NULL REFERENCES vms (uid)
) STRICT;
CREATE UNIQUE INDEX ports_place ON ports (protocol, address, port);
CREATE INDEX ports_vm ON ports (vm_uid);

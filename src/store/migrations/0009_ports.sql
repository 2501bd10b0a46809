CREATE TABLE ports (
  protocol TEXT NOT NULL,
  address TEXT NOT NULL,
  port INTEGER NOT NULL,
  guest_port INTEGER NOT NULL,
  vm_uid TEXT NOT NULL REFERENCES vms (uid),
  PRIMARY KEY (protocol, address, port)
) STRICT;
CREATE INDEX ports_vm ON ports (vm_uid);

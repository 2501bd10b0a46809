CREATE TABLE networks (
  uid TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  type TEXT NOT NULL,
  is_default INTEGER NOT NULL DEFAULT 0,
  bridge TEXT UNIQUE,
  subnet TEXT,
  gateway TEXT,
  subnet6 TEXT,
  mac TEXT NOT NULL,
  mtu INTEGER NOT NULL,
  spec TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX networks_default ON networks (is_default) WHERE is_default = 1;

-- What has a card in a network: a vm or a container, or the name of one that was deleted a moment ago.
CREATE TABLE leases (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  network_uid TEXT NOT NULL REFERENCES networks (uid),
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  vm_uid TEXT REFERENCES vms (uid),
  nic INTEGER NOT NULL,
  mode TEXT NOT NULL,
  link TEXT NOT NULL UNIQUE,
  mac TEXT NOT NULL UNIQUE,
  address INTEGER,
  address6 TEXT,
  egress TEXT,
  released_at INTEGER,
  created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX leases_address ON leases (network_uid, address);
CREATE UNIQUE INDEX leases_nic ON leases (vm_uid, nic);

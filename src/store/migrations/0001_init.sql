CREATE TABLE kernels (
  digest TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  version TEXT NOT NULL,
  format TEXT NOT NULL,
  modules TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  is_default INTEGER NOT NULL DEFAULT 0,
  created_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX kernels_default ON kernels (is_default) WHERE is_default = 1;

CREATE TABLE images (
  digest TEXT PRIMARY KEY,
  format TEXT NOT NULL,
  erofs_digest TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  config TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE image_names (
  name TEXT PRIMARY KEY,
  digest TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE
) STRICT;

CREATE INDEX image_names_digest ON image_names (digest);

CREATE TABLE vms (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  uid TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL,
  gen INTEGER NOT NULL DEFAULT 1,
  spec TEXT NOT NULL,
  runtime TEXT NOT NULL,
  plugin TEXT,
  hypervisor TEXT NOT NULL,
  image_digest TEXT NOT NULL REFERENCES images (digest),
  kernel_digest TEXT NOT NULL REFERENCES kernels (digest),
  cpu_cores INTEGER NOT NULL CHECK (cpu_cores > 0),
  memory_mb INTEGER NOT NULL CHECK (memory_mb > 0),
  cid INTEGER NOT NULL UNIQUE CHECK (cid >= 3),
  mac TEXT NOT NULL UNIQUE,
  ip TEXT NOT NULL DEFAULT '',
  machine_id TEXT NOT NULL,
  machine TEXT,
  session_secret TEXT,
  acked_seq INTEGER NOT NULL DEFAULT 0,
  was_ready INTEGER NOT NULL DEFAULT 0,
  status_message TEXT,
  exit_code INTEGER,
  exit_signal INTEGER,
  exit_message TEXT,
  boot_ms INTEGER,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  started_at INTEGER,
  stopped_at INTEGER
) STRICT;

CREATE INDEX vms_state ON vms (state);
CREATE INDEX vms_image ON vms (image_digest);
CREATE INDEX vms_kernel ON vms (kernel_digest);

CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  type TEXT NOT NULL,
  name TEXT NOT NULL,
  uid TEXT,
  status TEXT NOT NULL,
  ip_address TEXT NOT NULL,
  mac_address TEXT NOT NULL,
  pid INTEGER,
  message TEXT NOT NULL,
  at INTEGER NOT NULL
) STRICT;

CREATE TABLE idempotency (
  key TEXT PRIMARY KEY,
  request_hash TEXT NOT NULL,
  vm_uid TEXT NOT NULL,
  fault TEXT,
  at INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
  name TEXT PRIMARY KEY,
  prefix TEXT NOT NULL,
  hash TEXT NOT NULL UNIQUE,
  scope TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER,
  last_used_at INTEGER
) STRICT;

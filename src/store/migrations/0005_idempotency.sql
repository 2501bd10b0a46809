-- Any operation may have a key, and what it made is any resource: until now the one vm of a create.
ALTER TABLE idempotency RENAME TO idempotency_of_vms;

CREATE TABLE idempotency (
  key TEXT PRIMARY KEY,
  operation TEXT NOT NULL,
  request_hash TEXT NOT NULL,
  made TEXT NOT NULL,
  fault TEXT,
  at INTEGER NOT NULL
) STRICT;

INSERT INTO idempotency (key, operation, request_hash, made, fault, at)
  SELECT
    key,
    'vm.create',
    request_hash,
    json_array(json_object('uid', vm_uid, 'name', coalesce((SELECT name FROM vms WHERE uid = vm_uid), ''))),
    fault,
    at
  FROM idempotency_of_vms;

DROP TABLE idempotency_of_vms;

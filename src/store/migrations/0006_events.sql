-- An event says what its noun has to say, as JSON: until now every event had the columns of a vm.
CREATE TABLE events_of_nouns (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  noun TEXT NOT NULL,
  type TEXT NOT NULL,
  name TEXT NOT NULL,
  uid TEXT,
  data TEXT NOT NULL,
  message TEXT NOT NULL,
  at INTEGER NOT NULL
) STRICT;

INSERT INTO events_of_nouns (seq, noun, type, name, uid, data, message, at)
  SELECT
    seq,
    lower(substr(type, 1, instr(type, '_') - 1)),
    type,
    name,
    uid,
    CASE WHEN substr(type, 1, 3) = 'VM_'
      THEN json_object('status', status, 'ip_address', ip_address, 'mac_address', mac_address, 'pid', pid)
      ELSE json_object('digest', message)
    END,
    message,
    at
  FROM events;

DROP TABLE events;
ALTER TABLE events_of_nouns RENAME TO events;

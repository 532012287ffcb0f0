-- Times: received is wall time in microseconds since 1970 (UTC). Sequence
-- numbers and queue ids are never given twice. Columns named received, topic,
-- payload and properties mean the same in every table.

CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for each start of the gateway. opened is the wall time of the start,
-- clock the store's own clock then (it grows by the time lived, and by the
-- time off where wall clocks could be trusted); last is that clock when the
-- store was last known to be open, last_wall the wall time then.
CREATE TABLE run (
	number    INTEGER PRIMARY KEY,
	first_seq INTEGER NOT NULL,
	opened    INTEGER NOT NULL,
	clock     INTEGER NOT NULL,
	last      INTEGER NOT NULL,
	last_wall INTEGER NOT NULL,
	synced    INTEGER NOT NULL
) STRICT;

CREATE TABLE session (
	queue     INTEGER PRIMARY KEY,
	client_id TEXT NOT NULL UNIQUE,
	expiry    INTEGER NOT NULL,
	offline   INTEGER -- store clock when the connection ended; NULL while connected
) STRICT;

CREATE TABLE uplink (
	queue INTEGER PRIMARY KEY,
	name  TEXT NOT NULL UNIQUE,
	state TEXT NOT NULL
) STRICT;

CREATE TABLE subscription (
	queue               INTEGER NOT NULL,
	filter              TEXT NOT NULL,
	qos                 INTEGER NOT NULL,
	no_local            INTEGER NOT NULL,
	retain_as_published INTEGER NOT NULL,
	retain_handling     INTEGER NOT NULL,
	subscription_id     INTEGER NOT NULL,
	PRIMARY KEY (queue, filter)
) STRICT, WITHOUT ROWID;

-- Every delivery of the stream up to the cursor is finished.
CREATE TABLE stream (
	queue  INTEGER NOT NULL,
	qos    INTEGER NOT NULL,
	cursor INTEGER NOT NULL,
	PRIMARY KEY (queue, qos)
) STRICT, WITHOUT ROWID;

-- Who must get the messages of a claim set. Messages share them.
CREATE TABLE claim (
	claimset         INTEGER NOT NULL,
	queue            INTEGER NOT NULL,
	qos              INTEGER NOT NULL,
	retain           INTEGER NOT NULL,
	subscription_ids TEXT NOT NULL, -- decimal, separated by commas
	PRIMARY KEY (claimset, queue)
) STRICT, WITHOUT ROWID;

CREATE INDEX claim_by_stream ON claim (queue, qos, claimset);

CREATE TABLE message (
	seq        INTEGER PRIMARY KEY,
	claimset   INTEGER NOT NULL,
	topic      TEXT NOT NULL,
	payload    BLOB NOT NULL,
	properties BLOB,             -- MQTT 5.0 properties in wire form
	qos        INTEGER NOT NULL, -- the publisher's
	retain     INTEGER NOT NULL, -- the publisher's
	expiry     INTEGER,          -- seconds after received
	received   INTEGER NOT NULL,
	source     TEXT NOT NULL     -- client id of the publisher
) STRICT;

-- The state of a QoS 2 delivery that has a packet id: 1 sent, 2 released
-- (PUBREC came), 3 done (PUBCOMP came; kept until the cursor has passed it).
CREATE TABLE delivery2 (
	queue     INTEGER NOT NULL,
	seq       INTEGER NOT NULL,
	packet_id INTEGER NOT NULL,
	state     INTEGER NOT NULL,
	PRIMARY KEY (queue, seq)
) STRICT, WITHOUT ROWID;

-- Inbound QoS 2 packet ids whose PUBREL has not come.
CREATE TABLE inbound (
	queue     INTEGER NOT NULL,
	packet_id INTEGER NOT NULL,
	seq       INTEGER NOT NULL,
	PRIMARY KEY (queue, packet_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE retained (
	topic      TEXT PRIMARY KEY,
	seq        INTEGER NOT NULL,
	payload    BLOB NOT NULL,
	properties BLOB,
	qos        INTEGER NOT NULL,
	expiry     INTEGER,
	received   INTEGER NOT NULL,
	source     TEXT NOT NULL
) STRICT;

CREATE TABLE will (
	client_id  TEXT PRIMARY KEY,
	delay      INTEGER NOT NULL, -- seconds
	topic      TEXT NOT NULL,
	payload    BLOB NOT NULL,
	properties BLOB,
	qos        INTEGER NOT NULL,
	retain     INTEGER NOT NULL,
	expiry     INTEGER
) STRICT;

-- Messages that a peer has refused for good.
CREATE TABLE dead_letter (
	queue      INTEGER NOT NULL,
	seq        INTEGER NOT NULL,
	code       INTEGER NOT NULL, -- MQTT 5.0 reason code
	refused    INTEGER NOT NULL, -- wall time
	topic      TEXT NOT NULL,
	payload    BLOB NOT NULL,
	properties BLOB,
	qos        INTEGER NOT NULL,
	received   INTEGER NOT NULL,
	source     TEXT NOT NULL,
	PRIMARY KEY (queue, seq)
) STRICT;

INSERT INTO meta (key, value) VALUES ('seq_mark', 0), ('next_queue', 1);

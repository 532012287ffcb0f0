-- The queues that an uplink has for its lanes, besides its first one (that of the
-- default lane, which also has the state of the session).
CREATE TABLE lane (
	queue  INTEGER PRIMARY KEY,
	uplink INTEGER NOT NULL, -- its first queue
	lane   INTEGER NOT NULL, -- 0 to 7; 7 goes first
	latest INTEGER NOT NULL, -- keeps the newest message of each topic
	UNIQUE (uplink, lane, latest)
) STRICT;

-- Which lane the topics of an uplink take, as JSON: [{"filter", "lane", "latest"}],
-- the first that matches. upto is 0 for what holds now; others held for messages
-- up to that sequence number, and stay until those are finished.
CREATE TABLE lane_routes (
	uplink INTEGER NOT NULL,
	upto   INTEGER NOT NULL,
	routes TEXT NOT NULL,
	PRIMARY KEY (uplink, upto)
) STRICT, WITHOUT ROWID;

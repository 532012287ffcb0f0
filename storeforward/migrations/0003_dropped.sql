-- How many messages a queue has not been given by licence of the operator or the
-- publisher, by reason.
CREATE TABLE dropped (
	queue  INTEGER NOT NULL,
	reason TEXT NOT NULL,
	count  INTEGER NOT NULL,
	PRIMARY KEY (queue, reason)
) STRICT, WITHOUT ROWID;

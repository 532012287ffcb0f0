package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// QueueInfo is one queue of a database, as listed without its daemon.
type QueueInfo struct {
	ID          durable.QueueID `json:"id"`
	Kind        string          `json:"kind"`
	Name        string          `json:"name"`
	Messages    int64           `json:"messages"`
	Bytes       int64           `json:"bytes"`
	DeadLetters int64           `json:"dead_letters"`
	Oldest      time.Time       `json:"oldest,omitzero"` // wall time of arrival
}

// QueuedMessage is one message waiting in a queue.
type QueuedMessage struct {
	Seq      durable.Seq `json:"seq"`
	QoS      byte        `json:"qos"`    // of the delivery
	Retain   bool        `json:"retain"` // of the delivery
	Received time.Time   `json:"received"`
	// State of a QoS 2 delivery: "", "sent" or "released".
	State   string           `json:"state,omitempty"`
	Message *message.Message `json:"-"`
}

// DeadLetter is a message that the peer of an uplink has refused.
type DeadLetter struct {
	Seq     durable.Seq
	Code    byte // MQTT 5.0 reason code
	Refused time.Time
	Message *message.Message
}

// readOnly lends a connection that cannot write, to the database of a running
// or a stopped daemon.
func readOnly(path string, fn func(*db) error) error {
	d, err := openDB(path, url.Values{"mode": {"ro"}, "_mutex": {"no"}, "_busy_timeout": {"5000"}})
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	app, err := d.queryInt("PRAGMA application_id")
	if err == nil && app != applicationID {
		err = fmt.Errorf("open %s: %w", path, errForeign)
	}
	if err == nil {
		err = fn(d)
	}
	return errors.Join(err, d.close())
}

// queuesCTE names the queues of both kinds.
const queuesCTE = `WITH q (id, kind, name) AS (
	SELECT queue, 'session', client_id FROM session UNION ALL SELECT queue, 'uplink', name FROM uplink) `

// pending joins queues with the messages they have not finished, as far as is
// durable.
const pending = `FROM q JOIN claim c ON c.queue = q.id JOIN stream s ON s.queue = q.id AND s.qos = c.qos
	JOIN message m ON m.claimset = c.claimset AND m.seq > s.cursor
	LEFT JOIN delivery2 d ON d.queue = q.id AND d.seq = m.seq WHERE coalesce(d.state, 0) <> 3 `

// ListQueues lists the queues of a database file, also while a daemon uses it.
func ListQueues(ctx context.Context, path string) ([]QueueInfo, error) {
	var list []QueueInfo
	err := readOnly(path, func(d *db) error {
		return d.query(ctx, func(row []driver.Value) error {
			x := QueueInfo{
				ID: durable.QueueID(integer(row[0])), Kind: text(row[1]), Name: text(row[2]),
				Messages: integer(row[3]), Bytes: integer(row[4]), DeadLetters: integer(row[6]),
			}
			if at := integer(row[5]); at != 0 {
				x.Oldest = time.UnixMicro(at)
			}
			list = append(list, x)
			return nil
		}, queuesCTE+`, held (id, n, bytes, oldest) AS (
				SELECT q.id, count(*), sum(length(CAST(m.topic AS BLOB)) + length(m.payload) + coalesce(length(m.properties), 0)), min(m.received) `+pending+` GROUP BY q.id)
			SELECT q.id, q.kind, q.name, coalesce(n, 0), coalesce(bytes, 0), oldest, (SELECT count(*) FROM dead_letter l WHERE l.queue = q.id)
			FROM q LEFT JOIN held ON held.id = q.id ORDER BY q.kind DESC, q.name`)
	})
	return list, err
}

// ShowQueue calls fn with up to limit messages of a queue after the sequence
// number given, oldest first.
func ShowQueue(ctx context.Context, path string, q durable.QueueID, after durable.Seq, limit int, fn func(QueuedMessage) error) error {
	return readOnly(path, func(d *db) error {
		return d.query(ctx, func(row []driver.Value) error {
			x := QueuedMessage{
				Seq: durable.Seq(integer(row[0])), QoS: byte(integer(row[1])), Received: time.UnixMicro(integer(row[2])),
				Retain: integer(row[11]) != 0,
				State:  map[int64]string{stateSent: "sent", stateReleased: "released"}[integer(row[3])],
				Message: &message.Message{
					Topic: text(row[4]), Payload: blob(row[5]), Properties: blob(row[6]), QoS: byte(integer(row[7])),
					Retain: integer(row[8]) != 0, Received: time.UnixMicro(integer(row[2])), From: text(row[10]),
				},
			}
			setExpiry(x.Message, row[9])
			return fn(x)
		}, queuesCTE+`SELECT m.seq, c.qos, m.received, d.state, m.topic, m.payload, m.properties, m.qos, m.retain, m.expiry, m.source, c.retain `+
			pending+`AND q.id = ? AND m.seq > ? ORDER BY m.seq LIMIT ?`, int64(q), int64(after), int64(limit))
	})
}

// ShowDeadLetters calls fn with the refused messages of a queue, oldest first.
func ShowDeadLetters(ctx context.Context, path string, q durable.QueueID, fn func(DeadLetter) error) error {
	return readOnly(path, func(d *db) error { return deadLetters(ctx, d, nil, int64(q), fn) })
}

// deadLetters reads the refused messages of a queue; without a clock their times
// of arrival are plain wall time.
func deadLetters(ctx context.Context, d *db, clock *storeClock, q int64, fn func(DeadLetter) error) error {
	return d.query(ctx, func(row []driver.Value) error {
		x := DeadLetter{
			Seq: durable.Seq(integer(row[0])), Code: byte(integer(row[1])), Refused: time.UnixMicro(integer(row[2])),
			Message: &message.Message{
				Topic: text(row[3]), Payload: blob(row[4]), Properties: blob(row[5]), QoS: byte(integer(row[6])),
				Received: time.UnixMicro(integer(row[7])), From: text(row[8]),
			},
		}
		if clock != nil {
			x.Message.Received = clock.received(x.Seq, integer(row[7]))
		}
		return fn(x)
	}, "SELECT seq, code, refused, topic, payload, properties, qos, received, source FROM dead_letter WHERE queue = ? ORDER BY seq", q)
}

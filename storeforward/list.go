package storeforward

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// QueueInfo is one queue of a database, as listed without its daemon.
type QueueInfo struct {
	ID          durable.QueueID `json:"id"`
	Kind        string          `json:"kind"` // "uplink", "session" or "group"
	Name        string          `json:"name"` // uplink name, client id or $share/GROUP/FILTER
	Messages    int64           `json:"messages"`
	Bytes       int64           `json:"bytes"`
	DeadLetters int64           `json:"dead_letters"`
	Oldest      time.Time       `json:"oldest,omitzero"` // wall time of arrival
	// Lanes are those of an uplink that has some, the first that goes first; the
	// numbers above are of all together.
	Lanes []LaneInfo `json:"lanes,omitempty"`
	// Only are the queues meant when it is not all of them.
	Only []durable.QueueID `json:"-"`
}

// String is the name that tells it from all others: uplink/NAME,
// session/CLIENT_ID or $share/GROUP/FILTER.
func (x *QueueInfo) String() string {
	if x.Kind == "group" {
		return x.Name
	}
	return x.Kind + "/" + x.Name
}

// LaneInfo is one lane of an uplink.
type LaneInfo struct {
	ID       durable.QueueID `json:"id"`
	Lane     string          `json:"lane"` // such as "3" or "7-latest"
	Messages int64           `json:"messages"`
	Bytes    int64           `json:"bytes"`
	Oldest   time.Time       `json:"oldest,omitzero"`
}

// Queues are all that belong to it.
func (x *QueueInfo) Queues() []durable.QueueID {
	if x.Only != nil {
		return x.Only
	}
	if len(x.Lanes) == 0 {
		return []durable.QueueID{x.ID}
	}
	ids := make([]durable.QueueID, len(x.Lanes))
	for i, l := range x.Lanes {
		ids[i] = l.ID
	}
	return ids
}

// add counts a lane in.
func (x *QueueInfo) add(l LaneInfo) {
	x.Lanes = append(x.Lanes, l)
	x.Messages += l.Messages
	x.Bytes += l.Bytes
	if x.Oldest.IsZero() || !l.Oldest.IsZero() && l.Oldest.Before(x.Oldest) {
		x.Oldest = l.Oldest
	}
}

// QueuedMessage is one message waiting in a queue.
type QueuedMessage struct {
	Seq      durable.Seq `json:"seq"`
	QoS      byte        `json:"qos"`    // of the delivery
	Retain   bool        `json:"retain"` // of the delivery
	Received time.Time   `json:"received"`
	// Lane of an uplink's message, such as "3" or "7-latest".
	Lane string `json:"lane,omitempty"`
	// State of a QoS 2 delivery: "", "sent" or "released".
	State   string           `json:"state,omitempty"`
	Message *message.Message `json:"-"`
}

// DeadLetter is a message that the peer of an uplink has refused.
type DeadLetter struct {
	Seq     durable.Seq
	Code    byte // MQTT 5.0 reason code, or CodeQuarantined
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

// queuesCTE names the queues of both kinds, the lanes of uplinks after their first.
const queuesCTE = `WITH q (id, kind, name, owner, lane, latest) AS (
	SELECT queue, 'session', client_id, queue, 0, 0 FROM session UNION ALL SELECT queue, 'uplink', name, queue, 3, 0 FROM uplink
	UNION ALL SELECT l.queue, 'uplink', u.name, u.queue, l.lane, l.latest FROM lane l JOIN uplink u ON u.queue = l.uplink) `

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
			lane := durable.Lane{Number: byte(integer(row[8])), Latest: integer(row[9]) != 0}
			l := LaneInfo{ID: durable.QueueID(integer(row[0])), Lane: lane.String(), Messages: integer(row[3]), Bytes: integer(row[4])}
			if at := integer(row[5]); at != 0 {
				l.Oldest = time.UnixMicro(at)
			}
			owner := durable.QueueID(integer(row[7]))
			if n := len(list); n == 0 || list[n-1].ID != owner {
				kind, name := text(row[1]), text(row[2])
				if kind == "session" {
					kind, name = sessionLabel(name)
				}
				list = append(list, QueueInfo{ID: owner, Kind: kind, Name: name})
			}
			x := &list[len(list)-1]
			x.DeadLetters += integer(row[6])
			x.add(l)
			return nil
		}, queuesCTE+`, held (id, n, bytes, oldest) AS (
				SELECT q.id, count(*), sum(length(CAST(m.topic AS BLOB)) + length(m.payload) + coalesce(length(m.properties), 0)), min(m.received) `+pending+` GROUP BY q.id)
			SELECT q.id, q.kind, q.name, coalesce(n, 0), coalesce(bytes, 0), oldest, (SELECT count(*) FROM dead_letter l WHERE l.queue = q.id),
				q.owner, q.lane, q.latest
			FROM q LEFT JOIN held ON held.id = q.id ORDER BY q.kind DESC, q.name, q.owner, q.lane DESC, q.latest DESC`)
	})
	for i := range list {
		if len(list[i].Lanes) == 1 { // the queue itself
			list[i].Lanes = nil
		}
	}
	return list, err
}

// ShowQueue calls fn with up to limit messages of queues after the sequence number
// given, oldest first.
func ShowQueue(ctx context.Context, path string, queues []durable.QueueID, after durable.Seq, limit int, fn func(QueuedMessage) error) error {
	ids := make([]string, len(queues))
	for i, q := range queues {
		ids[i] = strconv.FormatInt(int64(q), 10)
	}
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
			if text(row[14]) == "uplink" {
				x.Lane = durable.Lane{Number: byte(integer(row[12])), Latest: integer(row[13]) != 0}.String()
			}
			setExpiry(x.Message, row[9])
			return fn(x)
		}, queuesCTE+`SELECT m.seq, c.qos, m.received, d.state, m.topic, m.payload, m.properties, m.qos, m.retain, m.expiry, m.source, c.retain, q.lane, q.latest, q.kind `+
			pending+`AND q.id IN (`+strings.Join(ids, ",")+`) AND m.seq > ? ORDER BY m.seq LIMIT ?`, int64(after), int64(limit))
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

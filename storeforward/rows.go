package storeforward

/*
#include <stdint.h>
#include <string.h>

// What is needed of SQLite, which the driver brings; its header is not in reach.
typedef struct sqlite3 sqlite3;
typedef struct sqlite3_context sqlite3_context;
typedef struct sqlite3_value sqlite3_value;
typedef void (*sqlite3_function)(sqlite3_context *, int, sqlite3_value **);
int sqlite3_auto_extension(void (*)(void));
int sqlite3_create_function_v2(sqlite3 *, const char *, int, int, void *,
	sqlite3_function, sqlite3_function, void (*)(sqlite3_context *), void (*)(void *));
void *sqlite3_user_data(sqlite3_context *);
void *sqlite3_aggregate_context(sqlite3_context *, int);
int sqlite3_value_type(sqlite3_value *);
int sqlite3_value_bytes(sqlite3_value *);
int64_t sqlite3_value_int64(sqlite3_value *);
const void *sqlite3_value_blob(sqlite3_value *);
void sqlite3_result_int64(sqlite3_context *, int64_t);
void sqlite3_result_blob64(sqlite3_context *, const void *, uint64_t, void (*)(void *));
void sqlite3_result_error_code(sqlite3_context *, int);
void sqlite3_result_error_nomem(sqlite3_context *);
void *sqlite3_malloc64(uint64_t);
void *sqlite3_realloc64(void *, uint64_t);
void sqlite3_free(void *);

enum { NOMEM = 7, ABORT = 4, UTF8 = 1, DIRECTONLY = 0x80000, INTEGER = 1, TEXT = 3, BLOB = 4 };

// row is followed by the bytes of topic, payload, properties and source.
typedef struct {
	int64_t seq, claimset, received, expiry;
	uint32_t topic, payload, properties, source;
	uint8_t qos, retain, expires, unused[5];
} row;

// row_size is what counting needs of a row.
typedef struct {
	int64_t seq, claimset, size;
} row_size;

// pack is the buffer of a connection: rows that wait to be taken.
typedef struct {
	unsigned char *p;
	uint64_t n, cap;
	int64_t rows, bytes;
} pack;

enum { KEEP = 1 << 20 }; // a larger buffer is given back

static void clear(pack *k) {
	if (k->cap > KEEP) {
		sqlite3_free(k->p);
		k->p = 0;
		k->cap = 0;
	}
	k->n = 0;
	k->rows = k->bytes = 0;
}

static void drop(void *p) {
	sqlite3_free(((pack *)p)->p);
	sqlite3_free(p);
}

static int64_t integer(sqlite3_value *v) {
	return sqlite3_value_type(v) == INTEGER ? sqlite3_value_int64(v) : 0;
}

// bytes of a text or a blob. The pointer is asked for first, as it must be.
static const void *bytes(sqlite3_value *v, uint32_t *n) {
	int type = sqlite3_value_type(v);
	const void *p = type == TEXT || type == BLOB ? sqlite3_value_blob(v) : 0;
	*n = p ? sqlite3_value_bytes(v) : 0;
	return p;
}

// begin empties the buffer for the first row of a statement.
static int begin(sqlite3_context *c, pack *k) {
	int *begun = sqlite3_aggregate_context(c, sizeof *begun);
	if (!begun) {
		sqlite3_result_error_nomem(c);
		return 0;
	}
	if (!*begun) {
		*begun = 1;
		clear(k);
	}
	return 1;
}

// grow returns where n more bytes are to go, 0 when there is no memory.
static unsigned char *grow(sqlite3_context *c, pack *k, uint64_t n) {
	uint64_t need = k->n + n;
	if (need > k->cap) {
		uint64_t cap = k->cap ? 2 * k->cap : 64 << 10;
		if (cap < need)
			cap = need;
		void *p = sqlite3_realloc64(k->p, cap);
		if (!p) {
			sqlite3_result_error_nomem(c);
			return 0;
		}
		k->p = p;
		k->cap = cap;
	}
	unsigned char *p = k->p + k->n;
	k->n = need;
	return p;
}

// holdfast_pack(rows, bytes, seq, claimset, topic, payload, properties, qos, retain,
// expiry, received, source) is an aggregate function: it keeps rows until they are
// that many or their messages have that many bytes, then it aborts the statement.
static void pack_step(sqlite3_context *c, int n, sqlite3_value **v) {
	pack *k = sqlite3_user_data(c);
	if (!begin(c, k))
		return;
	row r = {
		.seq = integer(v[2]), .claimset = integer(v[3]), .received = integer(v[10]), .expiry = integer(v[9]),
		.qos = integer(v[7]), .retain = integer(v[8]) != 0, .expires = sqlite3_value_type(v[9]) == INTEGER,
	};
	const void *topic = bytes(v[4], &r.topic), *payload = bytes(v[5], &r.payload);
	const void *properties = bytes(v[6], &r.properties), *source = bytes(v[11], &r.source);
	int64_t size = (int64_t)r.topic + r.payload + r.properties;
	unsigned char *p = grow(c, k, sizeof r + size + r.source);
	if (!p)
		return;
	memcpy(p, &r, sizeof r);
	p += sizeof r;
	if (r.topic) memcpy(p, topic, r.topic);
	p += r.topic;
	if (r.payload) memcpy(p, payload, r.payload);
	p += r.payload;
	if (r.properties) memcpy(p, properties, r.properties);
	p += r.properties;
	if (r.source) memcpy(p, source, r.source);
	k->rows++;
	k->bytes += size;
	if (k->rows >= sqlite3_value_int64(v[0]) || k->bytes >= sqlite3_value_int64(v[1]))
		sqlite3_result_error_code(c, ABORT);
}

// holdfast_pack_size(rows, seq, claimset, size) is holdfast_pack for rows whose
// content is of no interest.
static void pack_size_step(sqlite3_context *c, int n, sqlite3_value **v) {
	pack *k = sqlite3_user_data(c);
	if (!begin(c, k))
		return;
	row_size r = { .seq = integer(v[1]), .claimset = integer(v[2]), .size = integer(v[3]) };
	unsigned char *p = grow(c, k, sizeof r);
	if (!p)
		return;
	memcpy(p, &r, sizeof r);
	if (++k->rows >= sqlite3_value_int64(v[0]))
		sqlite3_result_error_code(c, ABORT);
}

static void pack_final(sqlite3_context *c) {
	pack *k = sqlite3_user_data(c);
	if (!sqlite3_aggregate_context(c, 0))
		clear(k); // there was no row
	sqlite3_result_int64(c, k->rows);
}

// holdfast_packed() is what the latest of these has kept. It belongs to the
// connection: the next one overwrites it.
static void packed(sqlite3_context *c, int n, sqlite3_value **v) {
	pack *k = sqlite3_user_data(c);
	sqlite3_result_blob64(c, k->p ? k->p : (unsigned char *)"", k->n, 0);
}

static int extend(sqlite3 *db, char **err, const void *api) {
	pack *k = sqlite3_malloc64(sizeof *k);
	if (!k)
		return NOMEM;
	memset(k, 0, sizeof *k);
	int rc = sqlite3_create_function_v2(db, "holdfast_pack", 12, UTF8 | DIRECTONLY, k, 0, pack_step, pack_final, drop);
	if (rc)
		return rc; // k has been dropped
	rc = sqlite3_create_function_v2(db, "holdfast_pack_size", 4, UTF8 | DIRECTONLY, k, 0, pack_size_step, pack_final, 0);
	if (rc)
		return rc;
	return sqlite3_create_function_v2(db, "holdfast_packed", 0, UTF8 | DIRECTONLY, k, packed, 0, 0, 0);
}

static int extend_all(void) { return sqlite3_auto_extension((void (*)(void))extend); }
*/
import "C"

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/mattn/go-sqlite3"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/broker/topic"
)

// The driver makes two calls into C and ten values of Go of each row. Reading a
// backlog that costs more than all the rest of SQLite, so the rows of a query are
// put into one blob where they are: half the time, and hardly any garbage.

// extendSQLite gives connections that are opened from now on the functions
// holdfast_pack, holdfast_pack_size and holdfast_packed.
var extendSQLite = sync.OnceValue(func() error {
	if rc := C.extend_all(); rc != 0 {
		return fmt.Errorf("extend SQLite: %w", sqlite3.ErrNo(rc))
	}
	return nil
})

// packedRow is how long the head of a row is; see struct row.
const packedRow = C.sizeof_row

// errPacked means that a blob of rows is not what pack_step makes.
var errPacked = errors.New("rows are not as they were packed")

// packed runs a query that selects holdfast_pack or holdfast_pack_size. all says that
// there are no more rows.
func (d *db) packed(ctx context.Context, query string, args ...driver.Value) (blob []byte, all bool, err error) {
	nothing := func([]driver.Value) error { return nil }
	err = d.query(ctx, nothing, query, args...)
	if code, ok := sqliteCode(err); ok && code == sqlite3.ErrAbort {
		err = nil // enough
	} else {
		all = true
	}
	if err != nil {
		return nil, false, err
	}
	err = d.query(ctx, func(row []driver.Value) error {
		blob, _ = row[0].([]byte)
		return nil
	}, "SELECT holdfast_packed()")
	return blob, all, err
}

// packedSize is how long a row is of which only the size is packed; see struct
// row_size.
const packedSize = C.sizeof_row_size

// countPortion is how many rows are packed at once to be counted: 192 kB.
const countPortion = 8 << 10

// rowSizes calls fn with each row of the table of messages, in order, and with how
// long topic, payload and properties are together. Contents beyond a row's first
// page are not read.
func (d *db) rowSizes(ctx context.Context, fn func(seq durable.Seq, setID, size int64)) error {
	order := binary.NativeEndian
	after := int64(math.MinInt64)
	for {
		b, all, err := d.packed(ctx, `SELECT holdfast_pack_size(?, seq, claimset, octet_length(topic) + octet_length(payload) + coalesce(octet_length(properties), 0))
			FROM message WHERE seq > ?`, int64(countPortion), after)
		if err != nil {
			return err
		}
		for ; len(b) >= packedSize; b = b[packedSize:] {
			seq := int64(order.Uint64(b))
			if seq <= after { // a table whose rows are not in order is damaged
				return fmt.Errorf("%w: %w", errPacked, sqlite3.Error{Code: sqlite3.ErrCorrupt})
			}
			after = seq
			fn(durable.Seq(seq), int64(order.Uint64(b[8:])), int64(order.Uint64(b[16:])))
		}
		switch {
		case len(b) > 0:
			return errPacked
		case all:
			return nil
		}
	}
}

// unpackRows returns the rows of a blob, which becomes theirs.
func unpackRows(clock *storeClock, b []byte) ([]storedMessage, error) {
	var rows []storedMessage
	var last message.Message
	lastErr := topic.ValidName(last.Topic)
	order := binary.NativeEndian
	for len(b) > 0 {
		if len(b) < packedRow {
			return nil, errPacked
		}
		head := b[:packedRow]
		b = b[packedRow:]
		var parts [4][]byte
		for i := range parts {
			n := order.Uint32(head[32+4*i:])
			if uint64(n) > uint64(len(b)) {
				return nil, errPacked
			}
			if parts[i], b = b[:n:n], b[n:]; n == 0 {
				parts[i] = nil
			}
		}
		r := storedMessage{
			seq: durable.Seq(order.Uint64(head)), setID: int64(order.Uint64(head[8:])), received: int64(order.Uint64(head[16:])),
		}
		if len(rows) > 0 && r.seq <= rows[len(rows)-1].seq {
			return nil, errPacked
		}
		if string(parts[0]) != last.Topic { // one after the other they are mostly the same
			last.Topic = string(parts[0])
			lastErr = topic.ValidName(last.Topic)
		}
		if string(parts[3]) != last.From {
			last.From = string(parts[3])
		}
		r.m = &message.Message{
			Topic: last.Topic, Payload: parts[1], Properties: parts[2], From: last.From,
			QoS: head[48], Retain: head[49] != 0, Received: clock.received(r.seq, r.received),
		}
		if head[50] != 0 {
			r.m.HasExpiry, r.m.Expiry = true, uint32(order.Uint64(head[24:]))
		}
		r.damaged = lastErr != nil || r.m.QoS > 2
		if len(parts[2]) > 0 && !bytes.Equal(parts[2], last.Properties) {
			if soundProperties(parts[2]) == nil {
				last.Properties = parts[2]
			} else {
				r.damaged = true
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

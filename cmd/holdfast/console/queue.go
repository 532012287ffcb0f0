package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/broker/durable"
	"holdfast/storeforward"
)

// ErrNoQueue means that a name fits no queue, or more than one.
var ErrNoQueue = errors.New("no such queue")

// Shown is a text as it can be printed: what others have chosen moves no cursor and
// begins no line.
func Shown(s string) string {
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// FindQueue finds the queue that a person means: "uplink/NAME", "session/NAME",
// "$share/GROUP/FILTER", or the name alone when that is enough; "uplink/NAME/LANE"
// is one lane. A name may be written as it is [Shown].
func FindQueue(list []storeforward.QueueInfo, name string) (storeforward.QueueInfo, error) {
	var found, all []string
	var q storeforward.QueueInfo
	for _, x := range list {
		if x.String() == name {
			return x, nil
		}
	}
	for _, x := range list {
		full := Shown(x.String())
		if full == name {
			return x, nil
		}
		for _, l := range x.Lanes {
			if full+"/"+l.Lane == name {
				return storeforward.QueueInfo{
					ID: x.ID, Kind: x.Kind, Name: x.Name + "/" + l.Lane, Messages: l.Messages, Bytes: l.Bytes, Oldest: l.Oldest,
					Only: []durable.QueueID{l.ID},
				}, nil
			}
		}
		if x.Name == name || Shown(x.Name) == name {
			found, q = append(found, full), x
		}
		all = append(all, full)
	}
	const most = 20
	switch {
	case len(found) == 1:
		return q, nil
	case len(found) > 1:
		return q, fmt.Errorf("queue %q: %w: it can be %s", name, ErrNoQueue, strings.Join(found, " or "))
	case len(all) == 0:
		return q, fmt.Errorf("queue %q: %w: there is none at all", name, ErrNoQueue)
	case len(all) > most:
		return q, fmt.Errorf("queue %q: %w among %d (see 'holdfast queue list')", name, ErrNoQueue, len(all))
	default:
		return q, fmt.Errorf("queue %q: %w: there is %s", name, ErrNoQueue, strings.Join(all, ", "))
	}
}

// pageBytes and pageRows bound what is read of a queue in one go: a read that
// took long would keep the log of the database from being emptied.
const (
	pageRows  = 1000
	pageBytes = 4 << 20
)

var errPage = errors.New("page is full")

// EachMessage calls fn with up to limit messages (0 is all) of a queue of the
// database at path, with all its lanes, after the sequence number given.
func EachMessage(ctx context.Context, path string, q storeforward.QueueInfo, after durable.Seq, limit int, fn func(*Record) error) error {
	if limit == 0 {
		limit = math.MaxInt
	}
	for limit > 0 {
		var page []Record
		bytes := 0
		err := storeforward.ShowQueue(ctx, path, q.Queues(), after, min(limit, pageRows), func(m storeforward.QueuedMessage) error {
			page = append(page, queuedRecord(m))
			if bytes += m.Message.Size(); bytes > pageBytes {
				return errPage
			}
			return nil
		})
		if err != nil && !errors.Is(err, errPage) {
			return err
		}
		for i := range page {
			if err := fn(&page[i]); err != nil {
				return err
			}
			after = page[i].Seq
		}
		limit -= len(page)
		if len(page) == 0 || err == nil && len(page) < pageRows {
			return nil
		}
	}
	return nil
}

// EachDeadLetter calls fn with the refused messages of a queue.
func EachDeadLetter(ctx context.Context, path string, q durable.QueueID, fn func(*Record) error) error {
	return storeforward.ShowDeadLetters(ctx, path, q, func(l storeforward.DeadLetter) error {
		r := deadRecord(l)
		return fn(&r)
	})
}

// Progress is one line of the answer to a long request. The last one says End.
type Progress struct {
	Done  int64  `json:"done"`
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"`
}

// queueAPI answers for the queues of a running store.
type queueAPI struct{ store *storeforward.Store }

func (a queueAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v1/queues", a.list)
	mux.HandleFunc("GET /api/v1/queues/messages", a.messages)
	mux.HandleFunc("POST /api/v1/queues/drop", a.long(a.drop))
	mux.HandleFunc("POST /api/v1/queues/import", a.long(a.load))
	mux.HandleFunc("POST /api/v1/queues/replay", a.long(a.replay))
}

// settled brings the file up to what the memory knows. While the disk fails it
// shows what it has.
func (a queueAPI) settled(ctx context.Context) (path string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_ = a.store.Settle(ctx)
	return a.store.Status().Path
}

func (a queueAPI) list(w http.ResponseWriter, r *http.Request) {
	list, err := storeforward.ListQueues(r.Context(), a.settled(r.Context()))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if list == nil {
		list = []storeforward.QueueInfo{}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the client went away
}

// find answers with an error itself when the queue is not there.
func (a queueAPI) find(w http.ResponseWriter, r *http.Request) (q storeforward.QueueInfo, path string, ok bool) {
	path = a.settled(r.Context())
	list, err := storeforward.ListQueues(r.Context(), path)
	if err == nil {
		q, err = FindQueue(list, r.URL.Query().Get("queue"))
	}
	switch {
	case errors.Is(err, ErrNoQueue):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	return q, path, err == nil
}

// stepTime is how long one step of a long answer may take: a client that reads
// nothing is given up.
const stepTime = time.Minute

func (a queueAPI) messages(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	after, err1 := optionalInt(query.Get("after"))
	limit, err2 := optionalInt(query.Get("limit"))
	if err := errors.Join(err1, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q, path, ok := a.find(w, r)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	rc := http.NewResponseController(w)
	n := 0
	write := func(rec *Record) error {
		if n++; n%pageRows == 1 {
			if err := rc.SetWriteDeadline(time.Now().Add(stepTime)); err != nil {
				return err
			}
		}
		return rec.WriteJSON(w)
	}
	var err error
	if query.Get("dead_letters") != "" {
		err = EachDeadLetter(r.Context(), path, q.ID, write)
	} else {
		err = EachMessage(r.Context(), path, q, durable.Seq(after), int(limit), write)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the client must not take half for all
	}
}

func optionalInt(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number from 0 up", s)
	}
	return n, nil
}

// long answers with lines of Progress while fn works.
func (a queueAPI) long(fn func(ctx context.Context, q storeforward.QueueInfo, r *http.Request, report func(int64)) (int64, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, _, ok := a.find(w, r)
		if !ok {
			return
		}
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex() // an import reads while it reports; HTTP/1 only, which this is
		w.Header().Set("Content-Type", "application/jsonl")
		enc := json.NewEncoder(w)
		last := time.Time{}
		step := func() error {
			by := time.Now().Add(stepTime)
			return errors.Join(rc.SetWriteDeadline(by), rc.SetReadDeadline(by))
		}
		report := func(n int64) {
			_ = step()
			if now := time.Now(); now.Sub(last) >= 200*time.Millisecond {
				last = now
				_ = enc.Encode(Progress{Done: n}) // the end tells
				_ = rc.Flush()
			}
		}
		_ = step()
		n, err := fn(r.Context(), q, r, report)
		end := Progress{Done: n, End: true}
		if err != nil {
			end.Error = fmt.Sprintf("queue %s: %v", Shown(q.String()), err)
		}
		_ = enc.Encode(end)
	}
}

func (a queueAPI) drop(ctx context.Context, q storeforward.QueueInfo, r *http.Request, report func(int64)) (int64, error) {
	query := r.URL.Query()
	upto, err := optionalInt(query.Get("upto"))
	if err != nil {
		return 0, err
	}
	sel := storeforward.Selection{Upto: durable.Seq(upto), Filter: query.Get("topic")}
	if s := query.Get("before"); s != "" {
		if sel.Before, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return 0, err
		}
	}
	return eachLane(q, report, func(id durable.QueueID, report func(int64)) (int64, error) {
		return a.store.Drop(ctx, id, sel, report)
	})
}

func (a queueAPI) replay(ctx context.Context, q storeforward.QueueInfo, r *http.Request, report func(int64)) (int64, error) {
	since, err := time.Parse(time.RFC3339Nano, r.URL.Query().Get("since"))
	if err != nil {
		return 0, err
	}
	return eachLane(q, report, func(id durable.QueueID, report func(int64)) (int64, error) {
		return a.store.Replay(ctx, id, since, report)
	})
}

// eachLane does something with all queues meant and reports the sum.
func eachLane(q storeforward.QueueInfo, report func(int64), fn func(id durable.QueueID, report func(int64)) (int64, error)) (sum int64, err error) {
	for _, id := range q.Queues() {
		n, err := fn(id, func(n int64) { report(sum + n) })
		if sum += n; err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// maxLine bounds one line of an import: the largest payload as base64.
const maxLine = 400 << 20

func (a queueAPI) load(ctx context.Context, q storeforward.QueueInfo, r *http.Request, report func(int64)) (int64, error) {
	im, err := a.store.Import(q.ID)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewReaderSize(r.Body, 64<<10)
	for line := 1; ; line++ {
		text, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = a.add(ctx, im, text)
		}
		if err != nil {
			return im.Done, errors.Join(fmt.Errorf("line %d: %w", line, err), im.Flush(ctx))
		}
		report(im.Done)
	}
	err = im.Flush(ctx)
	return im.Done, err
}

// readLine returns a line; io.EOF only when there is none.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return nil, fmt.Errorf("longer than %d bytes", maxLine)
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0, err == nil:
			return line, nil
		default:
			return nil, err
		}
	}
}

func (a queueAPI) add(ctx context.Context, im *storeforward.Importer, text []byte) error {
	if strings.TrimSpace(string(text)) == "" {
		return nil
	}
	var rec Record
	if err := json.Unmarshal(text, &rec); err != nil {
		return err
	}
	return im.Add(ctx, rec.message(), rec.QoS, rec.Retain)
}

package console

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"holdfast/broker/durable"
	"holdfast/broker/message"
	"holdfast/storeforward"
)

// Record is a message of a queue as one line of JSON, for people, scripts and
// the way back in.
type Record struct {
	Seq      durable.Seq `json:"seq,omitempty"`
	Received time.Time   `json:"received"`
	QoS      byte        `json:"qos"` // of the delivery
	// State of a QoS 2 delivery: "", "sent" or "released"; of a dead letter that
	// nobody refused: "quarantined".
	State string `json:"state,omitempty"`
	// Lane of an uplink's message: "3", "7-latest".
	Lane  string `json:"lane,omitempty"`
	Topic string `json:"topic"`
	// Payload is the payload when it is text, else Base64 is.
	Payload    *string `json:"payload,omitempty"`
	Base64     []byte  `json:"payload_base64,omitempty"`
	Properties []byte  `json:"properties_base64,omitempty"` // MQTT 5.0, wire form
	Retain     bool    `json:"retain,omitempty"`
	Expiry     *uint32 `json:"expiry_seconds,omitempty"` // after Received
	From       string  `json:"from,omitempty"`           // client id of the publisher
	// Of a dead letter.
	Code    byte      `json:"code,omitempty"` // MQTT 5.0 reason code
	Refused time.Time `json:"refused,omitzero"`
}

func newRecord(m *message.Message) Record {
	r := Record{Received: m.Received, Topic: m.Topic, Properties: m.Properties, From: m.From}
	if utf8.Valid(m.Payload) {
		r.Payload = new(string(m.Payload))
	} else {
		r.Base64 = m.Payload
	}
	if m.HasExpiry {
		r.Expiry = new(m.Expiry)
	}
	return r
}

// message is the way back.
func (r *Record) message() *message.Message {
	m := &message.Message{Topic: r.Topic, Payload: r.Base64, Properties: r.Properties, QoS: r.QoS, Received: r.Received, From: r.From}
	if r.Payload != nil {
		m.Payload = []byte(*r.Payload)
	}
	if r.Expiry != nil {
		m.HasExpiry, m.Expiry = true, *r.Expiry
	}
	return m
}

func queuedRecord(q storeforward.QueuedMessage) Record {
	r := newRecord(q.Message)
	r.Seq, r.QoS, r.State, r.Lane, r.Retain = q.Seq, q.QoS, q.State, q.Lane, q.Retain
	return r
}

func deadRecord(l storeforward.DeadLetter) Record {
	r := newRecord(l.Message)
	r.Seq, r.QoS, r.Code, r.Refused = l.Seq, max(l.Message.QoS, 1), l.Code, l.Refused
	if l.Code == storeforward.CodeQuarantined {
		r.State = "quarantined"
	}
	return r
}

// WriteJSON writes the record as one line.
func (r *Record) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// CSVHeader names the columns of WriteCSV.
func CSVHeader() []string {
	return []string{"seq", "received", "qos", "state", "topic", "payload", "payload_base64", "retain", "expiry_seconds", "from", "code", "refused", "lane"}
}

// WriteCSV writes the record as one row (RFC 4180).
func (r *Record) WriteCSV(w *csv.Writer) error {
	payload, expiry, code, refused := "", "", "", ""
	if r.Payload != nil {
		payload = *r.Payload
	}
	if r.Expiry != nil {
		expiry = strconv.FormatUint(uint64(*r.Expiry), 10)
	}
	if r.Code != 0 {
		code, refused = fmt.Sprintf("0x%02x", r.Code), r.Refused.UTC().Format(time.RFC3339Nano)
	}
	b64, err := json.Marshal(r.Base64) // as in the other format
	if err != nil {
		return err
	}
	text := ""
	if r.Base64 != nil {
		text = string(b64[1 : len(b64)-1])
	}
	return w.Write([]string{
		strconv.FormatUint(uint64(r.Seq), 10), r.Received.UTC().Format(time.RFC3339Nano), strconv.Itoa(int(r.QoS)), r.State,
		r.Topic, payload, text, strconv.FormatBool(r.Retain), expiry, r.From, code, refused, r.Lane,
	})
}

package storeforward

import (
	"context"
	"database/sql/driver"
	"time"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

// retainedFullLocked says whether the message would be one retained message too
// many. Clearing and replacing always fit.
func (s *Store) retainedFullLocked(m *message.Message) bool {
	if !m.Retain || len(m.Payload) == 0 || len(s.retained) < s.opts.MaxRetained {
		return false
	}
	_, known := s.retained[m.Topic]
	return !known
}

// keepRetainedLocked counts the topic; the row is written with the commit.
func (s *Store) keepRetainedLocked(e *entry) {
	if len(e.m.Payload) == 0 { // MQTT 5.0 §3.3.1.3 [MQTT-3.3.1-6]
		delete(s.retained, e.m.Topic)
		return
	}
	s.retained[e.m.Topic] = struct{}{}
}

// writeRetained sets or clears the retained message of a topic.
func writeRetained(d *db, e *entry) error {
	m := e.m
	if len(m.Payload) == 0 {
		return d.exec("DELETE FROM retained WHERE topic = ?", m.Topic)
	}
	return d.exec("INSERT OR REPLACE INTO retained (topic, seq, payload, properties, qos, expiry, received, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		m.Topic, int64(e.seq), m.Payload, m.Properties, int64(m.QoS), expiryValue(m), e.received, m.From)
}

// expiryValue is the expiry as a column; NULL is none.
func expiryValue(m *message.Message) driver.Value {
	if !m.HasExpiry {
		return nil
	}
	return int64(m.Expiry)
}

func setExpiry(m *message.Message, v driver.Value) {
	if n, ok := v.(int64); ok {
		m.HasExpiry, m.Expiry = true, uint32(n)
	}
}

// Retained calls fn with every kept retained message, expired ones left out. fn
// must not call the store.
func (s *Store) Retained(ctx context.Context, fn func(*message.Message) error) error {
	now := time.Now()
	defer s.outOfHand("retained")
	return s.read(ctx, func(d *db) error {
		return d.query(ctx, func(row []driver.Value) error {
			s.inHand("retained", "retained", text(row[0]))
			m := &message.Message{
				Topic: text(row[0]), Payload: blob(row[2]), Properties: blob(row[3]), QoS: byte(integer(row[4])), Retain: true,
				Received: s.clock.received(durable.Seq(integer(row[1])), integer(row[6])), From: text(row[7]),
			}
			setExpiry(m, row[5])
			if err := sound(m); err != nil {
				s.unsoundKept("retained", m.Topic, err)
				return nil
			}
			if _, alive := m.Remaining(now); !alive {
				return nil
			}
			return fn(m)
		}, "SELECT topic, seq, payload, properties, qos, expiry, received, source FROM retained ORDER BY topic")
	})
}

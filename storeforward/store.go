package storeforward

import (
	"context"
	"log/slog"

	"holdfast/broker/durable"
	"holdfast/broker/message"
)

type Store struct{}

func Open(ctx context.Context, opts Options, log *slog.Logger) (*Store, error) { return nil, nil }
func (s *Store) Close() error                                                 { return nil }
func (s *Store) Sessions(ctx context.Context) ([]durable.Session, error)       { return nil, nil }
func (s *Store) Retained(ctx context.Context, fn func(*message.Message) error) error {
	return nil
}
func (s *Store) Wills(ctx context.Context) ([]durable.Will, error) { return nil, nil }
func (s *Store) Append(m *message.Message, claims []durable.Claim, from durable.Origin, done func(error)) error {
	return nil
}
func (s *Store) CreateSession(clientID string, expiry uint32, done func(error)) durable.QueueID {
	return 0
}
func (s *Store) UpdateSession(q durable.QueueID, expiry uint32, connected bool, done func(error)) {}
func (s *Store) End(q durable.QueueID, done func(error))                                          {}
func (s *Store) Subscribe(q durable.QueueID, subs []durable.Subscription, done func(error))       {}
func (s *Store) Unsubscribe(q durable.QueueID, filters []string, done func(error))                {}
func (s *Store) SetWill(w durable.Will, done func(error))                                         {}
func (s *Store) ClearWill(clientID string, done func(error))                                      {}
func (s *Store) Attach(q durable.QueueID, r durable.Recipient) error                              { return nil }
func (s *Store) Detach(q durable.QueueID, r durable.Recipient)                                    {}
func (s *Store) Read(ctx context.Context, q durable.QueueID, qos byte, max, maxBytes int) (ds []durable.Delivery, live bool, err error) {
	return nil, false, nil
}
func (s *Store) Acked(q durable.QueueID, seq durable.Seq)                                     {}
func (s *Store) Refused(q durable.QueueID, seq durable.Seq, code byte, done func(error))      {}
func (s *Store) Dropped(q durable.QueueID, seq durable.Seq, reason string, done func(error))  {}
func (s *Store) Sent(q durable.QueueID, ids []durable.Sent, done func(error))                 {}
func (s *Store) Received(q durable.QueueID, seq durable.Seq, done func(error))                {}
func (s *Store) Completed(q durable.QueueID, seq durable.Seq, done func(error))               {}
func (s *Store) Release(q durable.QueueID, packetID uint16, done func(error))                 {}
func (s *Store) OpenUplink(name string) (q durable.QueueID, received []uint16, err error)     { return 0, nil, nil }
func (s *Store) ResetUplink(q durable.QueueID, done func(error))                              {}
func (s *Store) SessionState(q durable.QueueID) string                                        { return "" }
func (s *Store) SetSessionState(q durable.QueueID, state string, done func(error))            {}
func (s *Store) StartNumber() uint64                                                          { return 0 }
func (s *Store) Backlog(q durable.QueueID) (messages, bytes int64)                            { return 0, 0 }
func (s *Store) Status() Status                                                               { return Status{} }

package client

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/broker/packet"
)

// broken is a session with four messages in all states on a connection that
// broke: 1 is sent, 2 is released, 3 is sent with QoS 2, 4 waits for room.
func broken(t *testing.T) (session *Session, ids []uint16, done *[]string) {
	t.Helper()
	session, done = new(Session), new([]string)
	c, s := clientOn(t, Options{Session: session}, &packet.Connack{Properties: packet.Properties{ReceiveMaximum: 3}}, nil)
	for i, qos := range []byte{1, 2, 2, 1} {
		c.PublishAsync(msg(fmt.Sprint("m", i+1), "", qos), func(err error) { *done = append(*done, fmt.Sprint(i+1, err)) })
	}
	for range 3 {
		ids = append(ids, expect[*packet.Publish](s).PacketID)
	}
	s.nothingMore()
	s.send(&packet.Pubrec{PacketID: ids[1]})
	expect[*packet.Pubrel](s)
	s.nc.Close()
	<-c.Done()
	if len(*done) != 0 || session.Pending() != 4 {
		t.Fatalf("after the connection broke done = %v, pending %d, want none, 4", *done, session.Pending())
	}
	return session, ids, done
}

func TestSessionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session, ids, done := broken(t)
		c, s := clientOn(t, Options{Session: session}, &packet.Connack{SessionPresent: true}, nil)
		defer c.Abort()
		if p := expect[*packet.Pubrel](s); p.PacketID != ids[1] {
			t.Errorf("PUBREL %d, want %d", p.PacketID, ids[1])
		}
		for _, want := range []packet.Publish{
			{Topic: []byte("m1"), QoS: 1, PacketID: ids[0], Dup: true},
			{Topic: []byte("m3"), QoS: 2, PacketID: ids[2], Dup: true},
			{Topic: []byte("m4"), QoS: 1},
		} {
			p := expect[*packet.Publish](s)
			if string(p.Topic) != string(want.Topic) || p.QoS != want.QoS || p.Dup != want.Dup || want.PacketID != 0 && p.PacketID != want.PacketID {
				t.Errorf("server got %+v, want %+v", p, want)
			}
			if slices.Contains(ids, p.PacketID) != want.Dup {
				t.Errorf("%s has packet id %d, ids in use %v", p.Topic, p.PacketID, ids)
			}
			if p.QoS == 1 {
				s.send(&packet.Puback{PacketID: p.PacketID})
				continue
			}
			s.send(&packet.Pubrec{PacketID: p.PacketID})
		}
		expect[*packet.Pubrel](s)
		s.send(&packet.Pubcomp{PacketID: ids[1]}, &packet.Pubcomp{PacketID: ids[2]})
		synctest.Wait()
		if want := []string{"1<nil>", "4<nil>", "2<nil>", "3<nil>"}; !slices.Equal(trim(*done), want) {
			t.Errorf("done = %v, want %v", *done, want)
		}
		if session.Pending() != 0 || session.PossibleDuplicates() != 0 || session.ids.InUse() != 0 {
			t.Errorf("session = %d pending, %d duplicates, %d ids", session.Pending(), session.PossibleDuplicates(), session.ids.InUse())
		}
	})
}

func trim(ss []string) []string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = fmt.Sprintf("%c%s", s[0], s[len(s)-5:])
	}
	return out
}

// The server has lost the session: what it had released it has, what was sent
// goes out as new and may be double.
func TestSessionLostByTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session, _, done := broken(t)
		session.firstSeen(77)
		c, s := clientOn(t, Options{Session: session}, &packet.Connack{}, nil)
		defer c.Abort()
		for _, name := range []string{"m1", "m3", "m4"} {
			p := expect[*packet.Publish](s)
			if string(p.Topic) != name || p.Dup {
				t.Errorf("server got %s, dup %v, want %s as new", p.Topic, p.Dup, name)
			}
		}
		s.nothingMore()
		if want := []string{"2<nil>"}; !slices.Equal(trim(*done), want) {
			t.Errorf("done = %v, want %v", *done, want)
		}
		if got := session.PossibleDuplicates(); got != 2 {
			t.Errorf("PossibleDuplicates() = %d, want 2", got)
		}
		if !session.firstSeen(77) {
			t.Error("an id received before is still there")
		}
	})
}

// The link breaks again and again before everything is sent once more; the
// order stays.
func TestSessionKeepsOrderThroughManyBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := new(Session)
		ack := &packet.Connack{SessionPresent: true, Properties: packet.Properties{ReceiveMaximum: 4}}
		const n = 20
		finished := 0
		var first []string // topics in the order first seen
		c, s := clientOn(t, Options{Session: session}, ack, nil)
		for i := range n {
			c.PublishAsync(msg(fmt.Sprintf("m%02d", i), "", 1), func(error) { finished++ })
		}
		for round := 0; finished < n; round++ {
			if round > 100 {
				t.Fatal("no end")
			}
			for i := range 4 { // sees four, answers one, breaks
				synctest.Wait()
				if len(s.in) == 0 {
					break
				}
				p := expect[*packet.Publish](s)
				if !slices.Contains(first, string(p.Topic)) {
					first = append(first, string(p.Topic))
				}
				if i == 0 {
					s.send(&packet.Puback{PacketID: p.PacketID})
				}
			}
			synctest.Wait()
			s.nc.Close()
			<-c.Done()
			c, s = clientOn(t, Options{Session: session}, ack, nil)
		}
		c.Abort()
		if len(first) != n || !slices.IsSorted(first) {
			t.Errorf("first seen in order %v", first)
		}
	})
}

func TestSessionRemembersReceivedIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := new(Session)
		var got []string
		on := func(m Message) { got = append(got, string(m.Payload)) }
		c, s := clientOn(t, Options{Session: session}, &packet.Connack{}, on)
		s.send(&packet.Publish{Topic: []byte("a"), QoS: 2, PacketID: 5, Payload: []byte("x")})
		expect[*packet.Pubrec](s)
		s.nc.Close()
		<-c.Done()
		c, s = clientOn(t, Options{Session: session}, &packet.Connack{SessionPresent: true}, on)
		s.send(&packet.Publish{Topic: []byte("a"), QoS: 2, PacketID: 5, Payload: []byte("x"), Dup: true})
		expect[*packet.Pubrec](s)
		s.send(&packet.Pubrel{PacketID: 5})
		if p := expect[*packet.Pubcomp](s); p.Reason != packet.ReasonSuccess {
			t.Errorf("PUBCOMP = %+v", p)
		}
		c.Abort()
		if !slices.Equal(got, []string{"x"}) {
			t.Errorf("messages = %v, want x once", got)
		}
	})
}

func TestSessionBelongsToOneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := new(Session)
		c, _ := clientOn(t, Options{Session: session}, &packet.Connack{}, nil)
		_, err := connect(t.Context(), Options{Session: session}, nil, func(o Options) (*Conn, error) {
			conn, s := dialPipe(t, o, &packet.Connack{})
			go func() { expect[*packet.Disconnect](s) }()
			return conn, nil
		})
		if !errors.Is(err, errSessionInUse) {
			t.Errorf("connect = %v, want errSessionInUse", err)
		}
		c.Abort()
	})
}

func TestSessionEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session, _, done := broken(t)
		session.End(errors.New("never"))
		if want := []string{"1never", "2never", "3never", "4never"}; !slices.Equal(trim(*done), want) {
			t.Errorf("done = %v, want %v", *done, want)
		}
		c, s := clientOn(t, Options{Session: session}, &packet.Connack{}, nil)
		result := published(c, msg("a", "", 1))
		if p := expect[*packet.Publish](s); p.PacketID != 1 {
			t.Errorf("packet id = %d, want 1: the session is new", p.PacketID)
		} else {
			s.send(&packet.Puback{PacketID: p.PacketID})
		}
		if err := <-result; err != nil {
			t.Errorf("Publish = %v", err)
		}
		c.Abort()
	})
}

func TestSessionIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := clientOn(t, Options{}, &packet.Connack{Properties: packet.Properties{ReceiveMaximum: 1}}, nil)
		defer c.Abort()
		m := msg("a", string(make([]byte, 1<<20)), 1)
		var full error
		n := 0
		for ; n < 100 && full == nil; n++ {
			c.PublishAsync(m, func(err error) {
				if errors.Is(err, ErrOutputFull) {
					full = err
				}
			})
		}
		if n != 17 { // one is sent
			t.Errorf("message %d of 1 MiB was refused, want the 18th", n)
		}
	})
}

// A message that has expired while it waited is not sent; one that was sent is,
// until it is acknowledged.
func TestExpiryWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := new(Session)
		ack := &packet.Connack{SessionPresent: true, Properties: packet.Properties{ReceiveMaximum: 1}}
		c, s := clientOn(t, Options{Session: session}, ack, nil)
		sent, waits := msg("sent", "", 1), msg("waits", "", 1)
		sent.HasExpiry, sent.Expiry, waits.HasExpiry, waits.Expiry = true, 5, true, 5
		results := make(chan error, 2)
		c.PublishAsync(sent, func(err error) { results <- err })
		c.PublishAsync(waits, func(err error) { results <- err })
		if p := expect[*packet.Publish](s); p.MessageExpiry != 5 {
			t.Errorf("expiry = %d, want 5", p.MessageExpiry)
		}
		s.nc.Close()
		<-c.Done()
		<-time.After(6 * time.Second)
		c, s = clientOn(t, Options{Session: session}, ack, nil)
		p := expect[*packet.Publish](s)
		if string(p.Topic) != "sent" || !p.HasExpiry || p.MessageExpiry != 0 {
			t.Errorf("server got %+v, want sent again with no time left", p)
		}
		s.send(&packet.Puback{PacketID: p.PacketID})
		if err := <-results; err != nil {
			t.Errorf("sent: %v", err)
		}
		if err := <-results; !errors.Is(err, ErrExpired) {
			t.Errorf("waits: %v, want ErrExpired", err)
		}
		s.nothingMore()
		c.Abort()
	})
}

// What was released before the connection took nothing of its quota, so its
// PUBCOMP makes no room.
func TestPubcompOfAnEarlierConnectionMakesNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := new(Session)
		ack := &packet.Connack{SessionPresent: true, Properties: packet.Properties{ReceiveMaximum: 2}}
		c, s := clientOn(t, Options{Session: session}, ack, nil)
		for range 6 {
			c.PublishAsync(msg("a", "", 2), nil)
		}
		old := []uint16{expect[*packet.Publish](s).PacketID, expect[*packet.Publish](s).PacketID}
		for _, id := range old {
			s.send(&packet.Pubrec{PacketID: id})
			expect[*packet.Pubrel](s)
		}
		s.nc.Close()
		<-c.Done()
		c, s = clientOn(t, Options{Session: session}, ack, nil)
		for range 2 {
			expect[*packet.Pubrel](s)
		}
		third := expect[*packet.Publish](s).PacketID
		expect[*packet.Publish](s)
		s.send(&packet.Pubcomp{PacketID: old[0]}, &packet.Pubcomp{PacketID: old[1]})
		s.nothingMore()
		s.send(&packet.Pubrec{PacketID: third})
		expect[*packet.Pubrel](s)
		s.nothingMore()
		s.send(&packet.Pubcomp{PacketID: third})
		expect[*packet.Publish](s)
		s.nothingMore()
		c.Abort()
	})
}

package packet_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"holdfast/broker/packet"
)

func TestFrame(t *testing.T) {
	tests := map[string]struct {
		in     []byte
		limit  int
		want   int
		reason packet.ReasonCode
	}{
		"nothing":                             {},
		"first byte only":                     {in: []byte{0x30}},
		"length goes on":                      {in: []byte{0x30, 0xff, 0xff, 0xff}},
		"empty packet":                        {in: []byte{0xc0, 0x00}, want: 2},
		"body not there":                      {in: []byte{0x30, 0x7f}, want: 129},
		"body and more there":                 {in: []byte{0x40, 2, 0, 1, 0x40, 2}, want: 4},
		"two byte length":                     {in: []byte{0x30, 0x80, 0x01}, want: 131},
		"largest of three bytes":              {in: []byte{0x30, 0xff, 0xff, 0x7f}, want: 4 + 2_097_151},
		"largest of all":                      {in: []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, want: 5 + packet.MaxSize},
		"five byte length":                    {in: []byte{0x30, 0x80, 0x80, 0x80, 0x80}, reason: packet.ReasonMalformedPacket},
		"five byte length, fifth not there":   {in: []byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x01}, reason: packet.ReasonMalformedPacket},
		"type 0":                              {in: []byte{0x0f}, reason: packet.ReasonMalformedPacket},
		"as large as allowed":                 {in: []byte{0x30, 8}, limit: 10, want: 10},
		"larger than allowed":                 {in: []byte{0x30, 9}, limit: 10, reason: packet.ReasonPacketTooLarge},
		"larger than allowed, length goes on": {in: []byte{0x30, 0xff, 0xff}, limit: 10},
	}
	for name, tt := range tests {
		n, err := packet.Frame(tt.in, tt.limit)
		if tt.reason == 0 {
			if n != tt.want || err != nil {
				t.Errorf("%s: Frame(% x, %d) = %d, %v, want %d", name, tt.in, tt.limit, n, err, tt.want)
			}
			continue
		}
		if e, ok := errors.AsType[*packet.Error](err); !ok || e.Reason != tt.reason || n != 0 {
			t.Errorf("%s: Frame(% x, %d) = %d, %v, want reason %v", name, tt.in, tt.limit, n, err, tt.reason)
		}
	}
}

func TestDecodeOfNothing(t *testing.T) {
	for _, frame := range [][]byte{nil, {}, {0x30}} {
		if _, err := packet.Decode(frame, packet.V5, nil); !errors.Is(err, packet.ErrMalformed) {
			t.Errorf("Decode(% x) = %v, want %v", frame, err, packet.ErrMalformed)
		}
	}
}

// What only AppendTo can meet: fields that no packet could carry.
func TestAppendToRefuses(t *testing.T) {
	long := strings.Repeat("x", 65536)
	one := []packet.Filter{{Filter: "a"}}
	tests := map[string]struct {
		p      packet.Packet
		v      packet.Version
		reason packet.ReasonCode
	}{
		"connect of an unknown version":          {&packet.Connect{Version: 6, ClientID: "c"}, 5, 0x84},
		"connect with a long client id":          {&packet.Connect{ClientID: long}, 5, 0x81},
		"connect of 3.1 with a long client id":   {&packet.Connect{ClientID: long}, 3, 0x81},
		"connect of 3.1 with a nul":              {&packet.Connect{ClientID: "\x00"}, 3, 0x81},
		"connect without a client id":            {&packet.Connect{}, 4, 0x85},
		"connect with a long password":           {&packet.Connect{HasPassword: true, Password: []byte(long)}, 5, 0x81},
		"connect with a password alone":          {&packet.Connect{ClientID: "c", HasPassword: true}, 4, 0x81},
		"connect with will qos 3":                {&packet.Connect{Will: &packet.Will{Topic: "a", QoS: 3}}, 5, 0x81},
		"connect with a long will":               {&packet.Connect{Will: &packet.Will{Topic: "a", Payload: []byte(long)}}, 5, 0x81},
		"connect with an invalid user name":      {&packet.Connect{HasUsername: true, Username: "\xff"}, 5, 0x81},
		"connect with a property of connack":     {&packet.Connect{Properties: packet.Properties{ResponseInfo: "x"}}, 5, 0x81},
		"connect with will delay as its own":     {&packet.Connect{Properties: packet.Properties{WillDelay: 1}}, 5, 0x81},
		"connect with data without method":       {&packet.Connect{Properties: packet.Properties{AuthData: []byte{1}}}, 5, 0x82},
		"connect with response information 2":    {&packet.Connect{Properties: packet.Properties{RequestResponseInfo: 2}}, 5, 0x82},
		"connect with a wildcard to respond to":  {&packet.Connect{Will: &packet.Will{Properties: packet.Properties{ResponseTopic: "#"}}}, 5, 0x82},
		"connack with a session in a refusal":    {&packet.Connack{SessionPresent: true, Reason: 0x87}, 4, 0x82},
		"connack with a reason of another":       {&packet.Connack{Reason: 0x8e}, 4, 0x82},
		"connack with maximum qos 2":             {&packet.Connack{Properties: packet.Properties{MaximumQoS: new(byte(2))}}, 5, 0x82},
		"publish of qos 3":                       {&packet.Publish{QoS: 3, PacketID: 1, Topic: []byte("a")}, 5, 0x81},
		"publish without packet id":              {&packet.Publish{QoS: 1, Topic: []byte("a")}, 5, 0x82},
		"publish without topic":                  {&packet.Publish{}, 5, 0x82},
		"publish by alias before 5.0":            {&packet.Publish{TopicAlias: 1}, 4, 0x82},
		"publish with a long topic":              {&packet.Publish{Topic: []byte(long)}, 5, 0x81},
		"publish with an invalid topic":          {&packet.Publish{Topic: []byte("a\x00")}, 4, 0x81},
		"publish with subscription id 0":         {&packet.Publish{Topic: []byte("a"), SubscriptionIDs: []uint32{0}}, 5, 0x82},
		"publish with a large subscription id":   {&packet.Publish{Topic: []byte("a"), SubscriptionIDs: []uint32{1 << 28}}, 5, 0x82},
		"publish that is too large":              {&packet.Publish{Topic: []byte("a"), Payload: make([]byte, packet.MaxSize)}, 5, 0x95},
		"puback without packet id":               {&packet.Puback{}, 4, 0x82},
		"puback with a reason of another":        {&packet.Puback{PacketID: 1, Reason: 0x92}, 5, 0x82},
		"puback with a property of another":      {&packet.Puback{PacketID: 1, Properties: packet.Properties{ServerReference: "x"}}, 5, 0x81},
		"puback with a long reason string":       {&packet.Puback{PacketID: 1, Properties: packet.Properties{ReasonString: long}}, 5, 0x81},
		"subscribe without filters":              {&packet.Subscribe{PacketID: 1}, 5, 0x82},
		"subscribe without packet id":            {&packet.Subscribe{Filters: one}, 5, 0x82},
		"subscribe of qos 3":                     {&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a", QoS: 3}}}, 4, 0x82},
		"subscribe with retain handling 3":       {&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a", RetainHandling: 3}}}, 5, 0x82},
		"subscribe with no local to a share":     {&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "$share/g/a", NoLocal: true}}}, 5, 0x82},
		"subscribe with a long filter":           {&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: long}}}, 5, 0x81},
		"subscribe with a large subscription id": {&packet.Subscribe{PacketID: 1, Filters: one, Properties: packet.Properties{SubscriptionID: 1 << 28}}, 5, 0x81},
		"suback without reasons":                 {&packet.Suback{PacketID: 1}, 4, 0x82},
		"suback with a reason of another":        {&packet.Suback{PacketID: 1, Reasons: []packet.ReasonCode{0x10}}, 5, 0x82},
		"unsubscribe without filters":            {&packet.Unsubscribe{PacketID: 1}, 4, 0x82},
		"unsuback without reasons":               {&packet.Unsuback{PacketID: 1}, 5, 0x82},
		"disconnect with a reason of another":    {&packet.Disconnect{Reason: 0x85}, 4, 0x82},
		"auth before 5.0":                        {&packet.Auth{}, 4, 0x81},
		"auth with a reason of another":          {&packet.Auth{Reason: 0x87, Properties: packet.Properties{AuthMethod: "m"}}, 5, 0x82},
		"auth without method":                    {&packet.Auth{Reason: 0x18}, 5, 0x82},
		"auth with data without method":          {&packet.Auth{Properties: packet.Properties{AuthData: []byte{1}}}, 5, 0x82},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := tt.p.AppendTo([]byte("before"), tt.v)
			e, ok := errors.AsType[*packet.Error](err)
			if !ok || e.Reason != tt.reason || e.Type != tt.p.Type() {
				t.Errorf("AppendTo = %v, want reason 0x%02x of a %v", err, byte(tt.reason), tt.p.Type())
			}
			if string(b) != "before" {
				t.Errorf("AppendTo returns %q, want what it was given", b[:min(len(b), 100)])
			}
		})
	}
}

// What a version does not know is left out.
func TestAppendToLeavesOut(t *testing.T) {
	expiry := new(uint32(1))
	tests := map[string]struct {
		p    packet.Packet
		v    packet.Version
		want []byte
	}{
		"properties of a connect":     {&packet.Connect{ClientID: "c", Properties: packet.Properties{SessionExpiry: expiry}}, 4, []byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 0, 0, 1, 'c'}},
		"reason of a connack":         {&packet.Connack{Reason: 0x97}, 4, []byte{0x20, 2, 0, 3}},
		"session present in 3.1":      {&packet.Connack{SessionPresent: true}, 3, []byte{0x20, 2, 0, 0}},
		"properties of a publish":     {&packet.Publish{Topic: []byte("a"), TopicAlias: 1, HasExpiry: true, Properties: []byte{1, 1}}, 4, []byte{0x30, 3, 0, 1, 'a'}},
		"dup at qos 0":                {&packet.Publish{Dup: true, Topic: []byte("a")}, 4, []byte{0x30, 3, 0, 1, 'a'}},
		"packet id at qos 0":          {&packet.Publish{PacketID: 7, Topic: []byte("a")}, 5, []byte{0x30, 4, 0, 1, 'a', 0}},
		"reason of a puback":          {&packet.Puback{PacketID: 1, Reason: 0x97}, 4, []byte{0x40, 2, 0, 1}},
		"options of a subscribe":      {&packet.Subscribe{PacketID: 1, Filters: []packet.Filter{{Filter: "a", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}}}, 4, []byte{0x82, 6, 0, 1, 0, 1, 'a', 1}},
		"reasons of a suback":         {&packet.Suback{PacketID: 1, Reasons: []packet.ReasonCode{2, 0x87}}, 4, []byte{0x90, 4, 0, 1, 2, 0x80}},
		"reasons of a suback for 3.1": {&packet.Suback{PacketID: 1, Reasons: []packet.ReasonCode{1, 0x87}}, 3, []byte{0x90, 4, 0, 1, 1, 0x80}},
		"reasons of an unsuback":      {&packet.Unsuback{PacketID: 1, Reasons: []packet.ReasonCode{0x11}}, 4, []byte{0xb0, 2, 0, 1}},
		"reason of a disconnect":      {&packet.Disconnect{Reason: 0x8b}, 4, []byte{0xe0, 0}},
	}
	for name, tt := range tests {
		got, err := tt.p.AppendTo(nil, tt.v)
		if err != nil || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: AppendTo = % x, %v, want % x", name, got, err, tt.want)
		}
	}
}

func TestConnackReturnCodes(t *testing.T) {
	tests := map[packet.ReasonCode]byte{
		packet.ReasonSuccess:                    0,
		packet.ReasonUnsupportedProtocolVersion: 1,
		packet.ReasonClientIDNotValid:           2,
		packet.ReasonServerUnavailable:          3,
		packet.ReasonServerBusy:                 3,
		packet.ReasonQuotaExceeded:              3,
		packet.ReasonUseAnotherServer:           3,
		packet.ReasonBadUserNameOrPassword:      4,
		packet.ReasonBadAuthenticationMethod:    4,
		packet.ReasonNotAuthorized:              5,
		packet.ReasonBanned:                     5,
	}
	for r, want := range tests {
		if got := r.ReturnCode(); got != want {
			t.Errorf("ReturnCode of %v = %d, want %d", r, got, want)
		}
	}
}

// An answer to a wrong CONNECT has to be in the version it asked for.
func TestErrorKnowsVersionOfConnect(t *testing.T) {
	tests := map[string]packet.Version{
		"connect/v5_receive_maximum_zero":                   packet.V5,
		"connect/v311_empty_client_identifier_kept_session": packet.V311,
		"connect/v31_client_identifier_empty":               packet.V31,
		"connect/level_six":                                 0,
		"connect/name_of_311_level_of_31":                   0,
		"connect/name_only":                                 0,
		"publish/v5_topic_alias_zero":                       0,
	}
	for name, want := range tests {
		_, err := packet.Decode(readGolden(t, "testdata/"+name+".pkt").frame, packet.V5, nil)
		e, ok := errors.AsType[*packet.Error](err)
		if !ok || e.Version != want {
			t.Errorf("%s: Version of %v is %v, want %v", name, err, e.Version, want)
		}
	}
}

func TestErrorsKeepSecrets(t *testing.T) {
	const secret = "sesame"
	p := &packet.Connect{Version: packet.V5, ClientID: secret, HasUsername: true, Username: secret, HasPassword: true, Password: []byte(secret)}
	frame := encode(t, packet.V5, p)
	for n := range len(frame) {
		cut := bytes.Clone(frame[:n])
		if n > 1 {
			cut[1] = byte(n - 2)
		}
		if _, err := packet.Decode(cut, packet.V5, nil); err == nil || strings.Contains(err.Error(), secret[:3]) {
			t.Errorf("Decode of %d bytes = %v", n, err)
		}
	}
}

func TestNames(t *testing.T) {
	tests := map[string]string{
		packet.TypePublish.String():             "PUBLISH",
		packet.TypeAuth.String():                "AUTH",
		packet.Type(0).String():                 "type 0",
		packet.Type(16).String():                "type 16",
		packet.V31.String():                     "3.1",
		packet.V311.String():                    "3.1.1",
		packet.V5.String():                      "5.0",
		packet.Version(9).String():              "level 9",
		packet.ReasonTopicAliasInvalid.String(): "topic alias invalid",
		packet.ReasonCode(0x7f).String():        "reason code 0x7f",
		packet.ReasonCode(0xff).String():        "reason code 0xff",
	}
	for got, want := range tests {
		if got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
}

func TestValidString(t *testing.T) {
	tests := map[string]struct {
		in   string
		want bool
	}{
		"empty":                     {"", true},
		"ascii":                     {"a/b", true},
		"control character":         {"\x01", true},
		"non-character":             {"\uffff", true},
		"byte order mark":           {"\ufeff", true},
		"last of the last plane":    {"\U0010ffff", true},
		"as long as can be":         {strings.Repeat("x", 65535), true},
		"too long":                  {strings.Repeat("x", 65536), false},
		"nul":                       {"a\x00b", false},
		"surrogate":                 {"\xed\xa0\x80", false},
		"overlong":                  {"\xc0\xaf", false},
		"nul of Java":               {"\xc0\x80", false},
		"behind the last plane":     {"\xf4\x90\x80\x80", false},
		"cut":                       {"\xe2\x82", false},
		"continuation without lead": {"\x80", false},
	}
	for name, tt := range tests {
		if got := packet.ValidString(tt.in); got != tt.want {
			t.Errorf("%s: ValidString(%.20q) = %t, want %t", name, tt.in, got, tt.want)
		}
		if got := packet.ValidBytes([]byte(tt.in)); got != tt.want {
			t.Errorf("%s: ValidBytes(%.20q) = %t, want %t", name, tt.in, got, tt.want)
		}
	}
}

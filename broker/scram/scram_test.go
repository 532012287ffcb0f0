package scram

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The exchange of RFC 7677 §3.
const (
	rfcUser        = "user"
	rfcPassword    = "pencil"
	rfcSalt        = "W22ZaJ0SNY7soEsUEjb6gQ=="
	rfcClientNonce = "rOprNGfwEbeRWgbNEkqO"
	rfcServerNonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"

	rfcClientFirst = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
	rfcServerFirst = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	rfcClientFinal = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	rfcServerFinal = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

func rfcKeys(t *testing.T) Keys {
	t.Helper()
	salt, err := base64.StdEncoding.DecodeString(rfcSalt)
	if err != nil {
		t.Fatal(err)
	}
	k, err := Derive([]byte(rfcPassword), salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRFC7677(t *testing.T) {
	c, err := newClient(rfcUser, rfcPassword, rfcClientNonce)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.First()); got != rfcClientFirst {
		t.Errorf("client-first = %q, want %q", got, rfcClientFirst)
	}
	s, err := begin([]byte(rfcClientFirst), rfcServerNonce)
	if err != nil {
		t.Fatal(err)
	}
	if s.User != rfcUser {
		t.Errorf("user = %q, want %q", s.User, rfcUser)
	}
	if got := string(s.Challenge(rfcKeys(t))); got != rfcServerFirst {
		t.Errorf("server-first = %q, want %q", got, rfcServerFirst)
	}
	final, err := c.Respond([]byte(rfcServerFirst))
	if err != nil || string(final) != rfcClientFinal {
		t.Errorf("client-final = %q, %v, want %q", final, err, rfcClientFinal)
	}
	answer, err := s.Finish([]byte(rfcClientFinal))
	if err != nil || string(answer) != rfcServerFinal {
		t.Errorf("server-final = %q, %v, want %q", answer, err, rfcServerFinal)
	}
	if err := c.Verify([]byte(rfcServerFinal)); err != nil {
		t.Error(err)
	}
}

// Whoever knows the password gets in, whatever it and the name look like, and
// nobody else does.
func TestExchange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ -~äß東=,]{1,12}`)
		user, password, other := text.Draw(t, "user"), text.Draw(t, "password"), text.Draw(t, "other")
		keys, err := Derive([]byte(password), []byte("salt of it"), MinIterations)
		if err != nil {
			t.Fatal(err)
		}
		for _, tried := range []string{password, other} {
			c, err := NewClient(user, tried)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Begin(c.First())
			if err != nil {
				t.Fatal(err)
			}
			if s.User != user {
				t.Fatalf("user = %q, want %q", s.User, user)
			}
			final, err := c.Respond(s.Challenge(keys))
			if err != nil {
				t.Fatal(err)
			}
			answer, err := s.Finish(final)
			if tried != password {
				if !errors.Is(err, ErrProof) {
					t.Fatalf("with password %q in place of %q: %v, want ErrProof", tried, password, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Verify(answer); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Finish(final); !errors.Is(err, ErrMessage) {
				t.Fatalf("the same proof again: %v, want ErrMessage", err)
			}
		}
	})
}

func TestBeginRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":                         "",
		"channel binding":                 "p=tls-exporter,,n=user,r=abc",
		"no gs2 header":                   "n=user,r=abc",
		"an extension that must be known": "n,,m=x,n=user,r=abc",
		"no user":                         "n,,n=,r=abc",
		"no nonce":                        "n,,n=user",
		"an empty nonce":                  "n,,n=user,r=",
		"a nonce with a space":            "n,,n=user,r=a b",
		"another identity":                "n,a=other,n=user,r=abc",
		"an identity without its sign":    "n,user,n=user,r=abc",
		"a wrong escape":                  "n,,n=us=2Der,r=abc",
		"an escape cut short":             "n,,n=user=2,r=abc",
		"a control character":             "n,,n=us\x07er,r=abc",
		"no UTF-8":                        "n,,n=us\xffer,r=abc",
		"too much":                        "n,,n=" + strings.Repeat("x", maxMessage) + ",r=abc",
	} {
		if _, err := Begin([]byte(in)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: Begin(%q): %v, want ErrMessage", name, in, err)
		}
	}
	for name, in := range map[string]string{
		"its own identity":                    "n,a=user,n=user,r=abc",
		"a client that could bind":            "y,,n=user,r=abc",
		"an extension that need not be known": "n,,n=user,r=abc,x=y",
	} {
		if _, err := Begin([]byte(in)); err != nil {
			t.Errorf("%s: Begin(%q): %v", name, in, err)
		}
	}
}

func TestFinishRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":               "",
		"no channel binding":    strings.Replace(rfcClientFinal, "c=biws,", "", 1),
		"another binding":       strings.Replace(rfcClientFinal, "c=biws", "c=eSws", 1),
		"another nonce":         strings.Replace(rfcClientFinal, "k0", "k1", 1),
		"no proof":              rfcClientFinal[:strings.Index(rfcClientFinal, ",p=")],
		"a proof of 3 bytes":    rfcClientFinal[:strings.Index(rfcClientFinal, ",p=")] + ",p=AAAA",
		"a proof not in base64": rfcClientFinal[:strings.Index(rfcClientFinal, ",p=")] + ",p=****",
	} {
		s, err := begin([]byte(rfcClientFirst), rfcServerNonce)
		if err != nil {
			t.Fatal(err)
		}
		s.Challenge(rfcKeys(t))
		if _, err := s.Finish([]byte(in)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: Finish(%q): %v, want ErrMessage", name, in, err)
		}
	}
	s, err := Begin([]byte(rfcClientFirst))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Finish([]byte(rfcClientFinal)); !errors.Is(err, ErrMessage) {
		t.Errorf("without a challenge: %v, want ErrMessage", err)
	}
}

// A server that does not know the user learns nothing and is found out.
func TestClientMistrustsTheServer(t *testing.T) {
	for name, challenge := range map[string]string{
		"nothing":                         "",
		"a nonce of its own":              "r=zzz,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"our nonce and nothing to it":     "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"too few iterations":              strings.Replace(rfcServerFirst, "4096", "1", 1),
		"iterations for a year":           strings.Replace(rfcServerFirst, "4096", "4096000000", 1),
		"no number":                       strings.Replace(rfcServerFirst, "4096", "x", 1),
		"no salt":                         strings.Replace(rfcServerFirst, rfcSalt, "", 1),
		"a salt not in base64":            strings.Replace(rfcServerFirst, rfcSalt, "***", 1),
		"an extension that must be known": "m=x," + rfcServerFirst,
	} {
		c, err := newClient(rfcUser, rfcPassword, rfcClientNonce)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Respond([]byte(challenge)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: Respond(%q): %v, want ErrMessage", name, challenge, err)
		}
	}
	c, err := newClient(rfcUser, rfcPassword, rfcClientNonce)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify([]byte(rfcServerFinal)); !errors.Is(err, ErrServer) {
		t.Errorf("Verify before a challenge: %v, want ErrServer", err)
	}
	if _, err := c.Respond([]byte(rfcServerFirst)); err != nil {
		t.Fatal(err)
	}
	for _, final := range []string{"", "v=", "v=AAAA", "e=invalid-proof", strings.Replace(rfcServerFinal, "6rri", "6rrj", 1)} {
		if err := c.Verify([]byte(final)); !errors.Is(err, ErrServer) {
			t.Errorf("Verify(%q): %v, want ErrServer", final, err)
		}
	}
}

func TestKeys(t *testing.T) {
	k, err := NewKeys([]byte("a password"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseKeys(k.String())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Salt, k.Salt) || again.Stored != k.Stored || again.Server != k.Server || again.Iterations != newIterations {
		t.Errorf("ParseKeys(%q) = %v", k.String(), again)
	}
	if !again.Fit([]byte("a password")) || again.Fit([]byte("another")) || again.Fit(nil) {
		t.Error("the keys do not fit their password, or fit another")
	}
	short := rfcKeys(t).String()
	for name, s := range map[string]string{
		"nothing":             "",
		"another mechanism":   strings.Replace(short, "256", "1", 1),
		"too few iterations":  strings.Replace(short, "4096", "4095", 1),
		"too many iterations": strings.Replace(short, "4096", "99999999999999999999", 1),
		"no salt":             strings.Replace(short, rfcSalt, "", 1),
		"a key cut short":     short[:len(short)-4],
		"one key":             short[:strings.LastIndex(short, ":")],
	} {
		if _, err := ParseKeys(s); err == nil {
			t.Errorf("%s: ParseKeys takes it", name)
		}
	}
	if _, err := NewKeys(nil); err == nil {
		t.Error("NewKeys makes keys of an empty password")
	}
}

// What looks the same is the same (RFC 4013 §3).
func TestPrepare(t *testing.T) {
	for in, want := range map[string]string{"I\u00adX": "IX", "user": "user", "a\u00a0b": "a b", "\u200bx": "x"} {
		if got, err := prepare(in); err != nil || got != want {
			t.Errorf("prepare(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "\x07", "\u00ad", "a\u0085b", "\ue000", "\xff"} {
		if got, err := prepare(in); !errors.Is(err, ErrMessage) {
			t.Errorf("prepare(%q) = %q, %v, want ErrMessage", in, got, err)
		}
	}
}

func FuzzServer(f *testing.F) {
	for _, s := range []string{rfcClientFirst, rfcClientFinal, "y,a=user,n=user,r=x"} {
		f.Add([]byte(s), []byte(rfcClientFinal))
	}
	keys := Keys{Salt: []byte("salt"), Iterations: MinIterations}
	f.Fuzz(func(t *testing.T, first, final []byte) {
		s, err := Begin(first)
		if err != nil {
			return
		}
		s.Challenge(keys)
		if answer, err := s.Finish(final); err == nil {
			t.Errorf("%q and %q let somebody in: %q", first, final, answer)
		}
	})
}

package access

import (
	"strings"
	"testing"
)

func TestHashesOfOthersAreVerified(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ hash, password string }{
		"reference argon2id":     {"$argon2id$v=19$m=4096,t=3,p=4$c29tZXNhbHQ$OZF7JIt4K125cDCDw0lKQ+6/Okf5PkD/", "password"},
		"mosquitto_passwd 2.0":   {"$7$101$uI0QtypBD9P8QIIt$6CqKh3Li+4gPExpJDwZ0ciQUGia4VDy3XyQv7jwE327VBn4vnuYjaEoaqAS8bSXerPNZzFkiEzx5zHBIvqEnrw==", "secret"},
		"mosquitto_passwd 1.6":   {"$6$q+CKFXfTxQi2ZVYq$cXceQslRk+pDXwZ/NrX/PDPeSUJoz7KLAuxuOXtqyxzARF4CradqmhXfTbAFKLJk/yLhtHzS0BiYnGUKH+cpAg==", "secret"},
		"our own":                {NewHash([]byte("pässword")).String(), "pässword"},
		"our own, empty":         {NewHash(nil).String(), ""},
		"our own, with a NUL in": {NewHash([]byte("a\x00b")).String(), "a\x00b"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, err := ParseHash(tt.hash)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.String(); got != tt.hash {
				t.Errorf("String() = %q, want %q", got, tt.hash)
			}
			if !h.Verify([]byte(tt.password)) {
				t.Errorf("%q is refused", tt.password)
			}
			for _, wrong := range []string{tt.password + "x", tt.password + " ", "Secret", "x" + tt.password} {
				if h.Verify([]byte(wrong)) {
					t.Errorf("%q fits %q", wrong, tt.hash)
				}
			}
		})
	}
}

func TestTwoHashesOfOnePasswordDiffer(t *testing.T) {
	t.Parallel()
	if a, b := NewHash([]byte("x")).String(), NewHash([]byte("x")).String(); a == b {
		t.Errorf("both are %s: no salt", a)
	}
}

func TestHashesOfNothingAreRefused(t *testing.T) {
	t.Parallel()
	const salt, sum = "c29tZXNhbHQ", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	tests := map[string]struct{ in, want string }{
		"a password":         {"hunter2", "is not a hash"},
		"one with a dollar":  {"$hunter2", "is not a hash"},
		"empty":              {"", "is not a hash"},
		"argon2i":            {"$argon2i$v=19$m=8,t=1,p=1$" + salt + "$" + sum, "only $argon2id"},
		"old argon2":         {"$argon2id$v=16$m=8,t=1,p=1$" + salt + "$" + sum, "version 19"},
		"without version":    {"$argon2id$m=8,t=1,p=1$" + salt + "$" + sum, "only $argon2id"},
		"too much memory":    {"$argon2id$v=19$m=4194304,t=1,p=1$" + salt + "$" + sum, "m is outside 8..65536"},
		"memory below lanes": {"$argon2id$v=19$m=8,t=1,p=2$" + salt + "$" + sum, "less than 8 times"},
		"no passes":          {"$argon2id$v=19$m=8,t=0,p=1$" + salt + "$" + sum, "t is outside 1..64"},
		"no lanes":           {"$argon2id$v=19$m=8,t=1,p=0$" + salt + "$" + sum, "p is outside 1..16"},
		"another parameter":  {"$argon2id$v=19$m=8,t=1,x=1$" + salt + "$" + sum, "p is outside"},
		"short salt":         {"$argon2id$v=19$m=8,t=1,p=1$c29t$" + sum, "salt has 3 bytes"},
		"short sum":          {"$argon2id$v=19$m=8,t=1,p=1$" + salt + "$c29t", "sum has 3 bytes"},
		"padded":             {"$argon2id$v=19$m=8,t=1,p=1$" + salt + "=$" + sum, "not base64"},
		"crypt's $6$":        {"$6$rounds=5000$abc$def", "is not a hash"},
		"half a $6$":         {"$6$c29t$AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "has 20 bytes, not 64"},
		"$7$ for ever":       {"$7$4294967295$c29t$AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "iterations outside"},
		"$7$ without work":   {"$7$0$c29t$AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "iterations outside"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseHash(tt.in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("ParseHash(%q) = %v, want %q in it", tt.in, err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), sum) {
				t.Errorf("the error shows the hash: %v", err)
			}
		})
	}
}

func TestTheZeroHashFitsNothing(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"", "x"} {
		if (Hash{}).Verify([]byte(p)) || nobody().Verify([]byte(p)) {
			t.Errorf("%q fits nobody's hash", p)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	h := NewHash([]byte("secret"))
	b.ReportAllocs()
	for b.Loop() {
		h.Verify([]byte("secret"))
	}
}

package modbus

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdentify(t *testing.T) {
	answer := func(more, next byte, objects ...Object) []byte {
		b := []byte{IdentifyRegular, 0x82, more, next, byte(len(objects))}
		for _, o := range objects {
			b = append(append(b, o.ID, byte(len(o.Value))), o.Value...)
		}
		return b
	}
	vendor, code, url := Object{0, []byte("ACME")}, Object{1, []byte("X1")}, Object{3, nil}
	refused := &ExceptionError{Function: ReadDeviceID, Code: IllegalFunction}
	tests := map[string]struct {
		answers map[byte][]byte // by the object asked for
		want    []Object
		err     error
	}{
		"at once":             {answers: map[byte][]byte{0: answer(0, 0, vendor, code)}, want: []Object{vendor, code}},
		"in two":              {answers: map[byte][]byte{0: answer(0xff, 3, vendor, code), 3: answer(0, 0, url)}, want: []Object{vendor, code, url}},
		"without end":         {answers: map[byte][]byte{0: answer(0xff, 0, vendor)}, want: []Object{vendor}, err: ErrMismatch},
		"back and forth":      {answers: map[byte][]byte{0: answer(0xff, 1, vendor), 1: answer(0xff, 0, code)}, want: []Object{vendor, code}, err: ErrMismatch},
		"empty, more follows": {answers: map[byte][]byte{0: answer(0xff, 9)}, err: ErrMismatch},
		"refused":             {err: refused},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Identify(t.Context(), func(_ context.Context, r Request) ([]byte, error) {
				if r.Unit != 5 || r.Data[1] != IdentifyRegular {
					t.Errorf("asked %v with % x", r, r.Data)
				}
				if tt.answers == nil {
					return nil, refused
				}
				return tt.answers[r.Data[2]], nil
			}, 5, IdentifyRegular)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
	for id, want := range map[byte]string{0: "VendorName", 6: "UserApplicationName", 0x80: "object 128"} {
		if got := (Object{ID: id}).Name(); got != want {
			t.Errorf("name of object %d = %q, want %q", id, got, want)
		}
	}
}

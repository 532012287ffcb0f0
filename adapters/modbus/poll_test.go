package modbus

import (
	"errors"
	"testing"
)

func TestAliveIsTheUnitItself(t *testing.T) {
	for err, want := range map[error]bool{
		nil: true, ErrNoAnswer: false, errors.New("line gone"): false,
		&ExceptionError{Code: IllegalFunction}:       true,
		&ExceptionError{Code: GatewayTargetNoAnswer}: false,
	} {
		if got := Alive(err); got != want {
			t.Errorf("Alive(%v) = %v, want %v", err, got, want)
		}
	}
}

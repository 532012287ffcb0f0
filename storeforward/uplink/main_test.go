package uplink

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(gatewayDir); dir != "" {
		runGateway(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

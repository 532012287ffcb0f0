package uplink

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// roles are what this binary does in place of the tests, by the environment
// variable that asks for it.
var roles = map[string]func(value string){gatewayDir: runGateway}

// addRole is for files that not every build has.
func addRole(name string, play func(value string)) bool {
	roles[name] = play
	return true
}

func TestMain(m *testing.M) {
	for name, play := range roles {
		if value := os.Getenv(name); value != "" {
			play(value)
			return
		}
	}
	goleak.VerifyTestMain(m)
}

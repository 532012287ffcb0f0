//go:build integration

package modbus

import (
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/simonvetter/modbus"
)

// strangersUnit is unit 17 behind somebody else's server.
type strangersUnit struct {
	mu   sync.Mutex
	role string
}

func (u *strangersUnit) HandleCoils(r *modbus.CoilsRequest) ([]bool, error) {
	if r.UnitId != 17 || r.Addr+r.Quantity > 8 {
		return nil, modbus.ErrIllegalDataAddress
	}
	return []bool{false, false, false, false, false, false, true, false}[r.Addr : r.Addr+r.Quantity], nil
}

func (u *strangersUnit) HandleDiscreteInputs(*modbus.DiscreteInputsRequest) ([]bool, error) {
	return nil, modbus.ErrIllegalFunction
}

func (u *strangersUnit) HandleHoldingRegisters(r *modbus.HoldingRegistersRequest) ([]uint16, error) {
	u.mu.Lock()
	u.role = r.ClientRole
	u.mu.Unlock()
	if r.UnitId != 17 || r.Addr+r.Quantity > 2 {
		return nil, modbus.ErrIllegalDataAddress
	}
	return []uint16{65526, 7}[r.Addr : r.Addr+r.Quantity], nil
}

func (u *strangersUnit) HandleInputRegisters(*modbus.InputRegistersRequest) ([]uint16, error) {
	return nil, modbus.ErrIllegalFunction
}

// Somebody else's server, over TCP and over Modbus/TCP Security with the role in
// our certificate.
func TestBusReadsSimonvettersServer(t *testing.T) {
	for _, scheme := range []string{PeerTCP, PeerTLS} {
		t.Run(scheme, func(t *testing.T) {
			var lc net.ListenConfig
			free, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := free.Addr().String()
			if err := free.Close(); err != nil {
				t.Fatal(err)
			}
			conf := &modbus.ServerConfiguration{URL: "tcp://" + address, Timeout: time.Minute, MaxClients: 4, Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
			po := DefaultPeerOptions()
			po.Device = scheme + "://" + address
			if scheme == PeerTLS {
				certs := newCertificates(t)
				serverCert, serverKey := certs.issue("server", time.Now().Add(-time.Hour), "")
				own, err := tls.LoadX509KeyPair(serverCert, serverKey)
				if err != nil {
					t.Fatal(err)
				}
				conf.URL, conf.TLSServerCert, conf.TLSClientCAs = "tcp+tls://"+address, &own, certs.pool
				po.CAFile = certs.caFile
				po.CertFile, po.KeyFile = certs.issue("gateway", time.Now().Add(-time.Hour), "reader")
			}
			unit := new(strangersUnit)
			server, err := modbus.NewServer(conf, unit)
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.Stop(); err != nil {
					t.Error(err)
				}
			})
			d := DefaultDevice()
			d.Name, d.Unit, d.Every = "plc", 17, 50*time.Millisecond
			d.Points = []Point{
				{Name: "t", Register: "holding:0", Type: "int16", Scale: 0.1},
				{Name: "on", Register: "coil:6"},
				{Name: "none", Register: "input:1"},
			}
			_, sink := runPeer(t, po, d)
			sink.wait(t, 3, func(m string) bool { return strings.HasPrefix(m, `sensors/plc/t {"value":-1,"quality":"good"`) })
			sink.wait(t, 3, func(m string) bool { return strings.HasPrefix(m, `sensors/plc/on {"value":true,"quality":"good"`) })
			sink.wait(t, 1, func(m string) bool { return strings.HasPrefix(m, `sensors/plc/none {"value":null,"quality":"bad"`) })
			unit.mu.Lock()
			defer unit.mu.Unlock()
			if want := map[string]string{PeerTLS: "reader"}[scheme]; unit.role != want {
				t.Errorf("the server was told the role %q, want %q", unit.role, want)
			}
		})
	}
}

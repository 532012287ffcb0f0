package config

import (
	"fmt"

	"holdfast/broker/durable"
	"holdfast/storeforward/uplink"
)

// Override lays the command line over the configuration: data, when not empty,
// replaces gateway.data, and listen, when not empty, the listeners.
func (c *Config) Override(data string, listen []string) error {
	if data != "" {
		if c.Control.Socket == c.defaultSocket() {
			c.Control.Socket = ""
		}
		if c.Store.Path == c.defaultStore() {
			c.Store.Path = ""
		}
		c.Gateway.Data = data
	}
	if len(listen) > 0 {
		c.Listeners = nil
		for _, address := range listen {
			l := Listener{Address: address}
			l.setDefaults()
			c.Listeners = append(c.Listeners, l)
		}
	}
	c.Resolve()
	if err := c.Validate(); err != nil {
		return fmt.Errorf("command line: %w", err)
	}
	return nil
}

// OwnTopics is what the topics start with on which the gateway tells of itself.
const OwnTopics = "holdfast/"

// GatewayStatusTopic is where the gateway's own retained status goes, for local
// clients.
func GatewayStatusTopic(gateway string) string { return OwnTopics + gateway + "/status" }

// DeviceStatusTopic is where a device's retained status goes.
func DeviceStatusTopic(gateway, device string) string {
	return OwnTopics + gateway + "/device/" + device + "/status"
}

// StatusRoute carries the statuses of the gateway's devices to the cloud. Every
// uplink has it: who is alive is what the cloud wants to know first, and only as it
// is now.
func StatusRoute(gateway string) uplink.Route {
	one, highest := 1, durable.Lanes-1
	return uplink.Route{
		Lane:      &highest,
		Latest:    true,
		Direction: uplink.DirectionOut,
		Filter:    DeviceStatusTopic(gateway, "+"),
		QoS:       &one,
		Retain:    uplink.RetainKeep,
	}
}

// Package demo is `holdfast demo`: a meter, a sensor and a publisher on a
// gateway, a link to a cloud that is cut twice, a gateway killed in the middle,
// and a subscriber at the cloud that checks every message.
//
//	meter  (Modbus RTU) --pty--+                       +-- checker
//	sensor (lines)      --pty--+-- holdfast -- relay --+
//	publisher (QoS 1, QoS 2) --+   (gateway)           cloud: another holdfast,
//	                                                   or the broker of --cloud
//
// [Run] starts it all and returns when it is stopped and its files are gone. The
// gateway and the cloud are processes of the binary itself; everything else
// lives in this one. What was acknowledged is taken from who received the
// acknowledgement: the publisher's journal, and the gateway's own counters for
// its devices.
//
// It writes nothing outside a temporary folder and never touches what it has
// not started; at a broker of the user's it works below topics of its own, and
// clears them in the end. It has no errors to test for.
package demo

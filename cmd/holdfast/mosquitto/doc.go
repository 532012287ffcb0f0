// Package mosquitto turns a mosquitto.conf (mosquitto.conf(5), versions 1.6 to
// 2.0) into the TOML that means the same to Holdfast, and names what has no
// equal there. It reads the one file; password and ACL file are taken over by
// name. It starts no goroutines. A [Note] says for each line that did not become
// a key why it did not.
package mosquitto

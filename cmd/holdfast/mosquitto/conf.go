package mosquitto

import (
	"maps"
	"strings"
)

// directive is one line of the file.
type directive struct {
	line  int
	key   string
	value string
}

// parse splits the file into directives. Mosquitto knows comments in lines of
// their own only, and cuts the white space around.
func parse(data string) []directive {
	var ds []directive
	n := 0
	for text := range strings.SplitSeq(data, "\n") {
		n++
		text = strings.Trim(text, " \t\r")
		if text == "" || text[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(strings.ReplaceAll(text, "\t", " "), " ")
		ds = append(ds, directive{n, key, strings.Trim(value, " ")})
	}
	return ds
}

// listener is a listener and what belongs to it.
type listener struct {
	line       int
	port       string
	host, path string
	websockets bool
	settings   map[string]directive
}

// bridge is a connection to another broker.
type bridge struct {
	line     int
	name     string
	settings map[string]directive
	topics   []directive
}

// conf is the file, sorted by what its directives belong to.
type conf struct {
	global    map[string]directive
	listeners []*listener
	bridges   []*bridge
}

// perListener are the directives that belong to the listener above them.
var perListener = map[string]bool{
	"bind_interface": true, "certfile": true, "keyfile": true, "cafile": true, "capath": true,
	"require_certificate": true, "use_identity_as_username": true, "use_subject_as_username": true,
	"use_username_as_clientid": true, "tls_version": true, "ciphers": true, "ciphers_tls1.3": true, "crlfile": true,
	"dhparamfile": true, "psk_hint": true, "tls_engine": true, "tls_engine_kpass_sha1": true, "tls_keyform": true,
	"protocol": true, "http_dir": true, "mount_point": true, "max_connections": true, "max_qos": true,
	"max_topic_alias": true, "socket_domain": true, "websockets_headers_size": true, "websockets_origin": true,
}

// perListenerSettings are those that do with per_listener_settings.
var perListenerSettings = map[string]bool{
	"allow_anonymous": true, "acl_file": true, "password_file": true, "psk_file": true,
	"allow_zero_length_clientid": true, "auto_id_prefix": true, "auth_plugin": true, "plugin": true,
}

// perBridge are those of a bridge that do not begin with bridge_, remote_,
// local_ or notification.
var perBridge = map[string]bool{
	"address": true, "addresses": true, "cleansession": true, "clientid": true, "idle_timeout": true,
	"keepalive_interval": true, "password": true, "restart_timeout": true, "round_robin": true, "start_type": true,
	"threshold": true, "try_private": true, "username": true,
}

func ofBridge(key string) bool {
	for _, prefix := range []string{"bridge_", "remote_", "local_", "notification"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return perBridge[key]
}

// read sorts the directives.
func read(data string, note func(directive, string)) *conf {
	c := &conf{global: map[string]directive{}}
	var l *listener
	var b *bridge
	own := false // per_listener_settings
	// The listener of the old directives port and bind_address.
	main := &listener{settings: map[string]directive{}}
	l = main
	for _, d := range parse(data) {
		switch {
		case d.key == "per_listener_settings":
			own = d.value == "true"
		case d.key == "port":
			main.line, main.port = d.line, d.value
		case d.key == "bind_address":
			main.line, main.host = d.line, d.value
		case d.key == "listener":
			l, b = &listener{line: d.line, settings: map[string]directive{}}, nil
			port, where, _ := strings.Cut(d.value, " ")
			if l.port = port; strings.HasPrefix(strings.Trim(where, " "), "/") {
				l.path = strings.Trim(where, " ")
			} else {
				l.host = strings.Trim(where, " ")
			}
			c.listeners = append(c.listeners, l)
		case d.key == "connection":
			b = &bridge{line: d.line, name: d.value, settings: map[string]directive{}}
			c.bridges = append(c.bridges, b)
		case b != nil && d.key == "topic":
			b.topics = append(b.topics, d)
		case ofBridge(d.key):
			if b == nil {
				note(d, "belongs to a connection, and there is none above it")
				continue
			}
			b.settings[d.key] = d
		case d.key == "protocol" && d.value == "websockets":
			l.websockets = true
		case d.key == "protocol" && d.value == "mqtt":
		case perListener[d.key], own && perListenerSettings[d.key]:
			l.settings[d.key] = d
		default:
			c.global[d.key] = d
		}
	}
	if main.line > 0 {
		if main.port == "" {
			main.port = "1883"
		}
		c.listeners = append([]*listener{main}, c.listeners...)
	} else {
		maps.Copy(c.global, main.settings) // nobody's; judged with the global ones
	}
	return c
}

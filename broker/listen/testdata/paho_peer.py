"""Publishes to itself with QoS 0, 1 and 2 and leaves a retained message and a
will; exits with 0 when all came back. For Debian's python3-paho-mqtt (1.6)."""
import argparse
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 20
VERSIONS = {"3.1": mqtt.MQTTv31, "3.1.1": mqtt.MQTTv311, "5.0": mqtt.MQTTv5}

p = argparse.ArgumentParser()
p.add_argument("--port", type=int)
p.add_argument("--transport", choices=["tcp", "websockets"])
p.add_argument("--version", choices=VERSIONS)
p.add_argument("--ca")
a = p.parse_args()

five = a.version == "5.0"
payload = ("python " * 20_000).encode()  # larger than a frame and a TLS record
got = queue.Queue()


def client(name):
    c = mqtt.Client(client_id=name, protocol=VERSIONS[a.version], transport=a.transport)
    if a.transport == "websockets":
        c.ws_set_options(path="/mqtt")
    if a.ca:
        c.tls_set(ca_certs=a.ca)
    ready = queue.Queue()
    c.on_connect = lambda c, data, flags, code, properties=None: ready.put(int(getattr(code, "value", code)))
    c.on_subscribe = lambda c, data, mid, codes, properties=None: ready.put(0)
    c.ready = ready
    return c


def connect(c):
    c.connect("localhost", a.port, keepalive=30)
    c.loop_start()
    code = c.ready.get(timeout=PATIENCE)
    if code != 0:
        sys.exit(f"CONNACK {code}")


def expect(what, want):
    m = got.get(timeout=PATIENCE)
    have = (m.topic, m.qos, m.retain, bytes(m.payload))
    if have != want:
        sys.exit(f"{what}: {have[:3]} and {len(have[3])} bytes, want {want[:3]} and {len(want[3])}")
    return m


topic = f"python/{a.port}/{a.version}"
sub = client("python-sub")
sub.on_message = lambda c, data, m: got.put(m)
connect(sub)
sub.subscribe(topic + "/#", qos=2)
sub.ready.get(timeout=PATIENCE)

pub = client("python-pub")
pub.will_set(topic + "/will", b"dead", qos=1)
connect(pub)
properties = None
if five:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "text/plain"
    properties.UserProperty = [("k", "1"), ("k", "2")]
for qos in range(3):
    info = pub.publish(topic + "/x", payload, qos=qos, properties=properties)
    info.wait_for_publish(PATIENCE)
    m = expect(f"QoS {qos}", (topic + "/x", qos, False, payload))
    if five and (m.properties.ContentType, m.properties.UserProperty) != ("text/plain", [("k", "1"), ("k", "2")]):
        sys.exit(f"properties {m.properties}")
pub.publish(topic + "/kept", b"kept", qos=1, retain=True).wait_for_publish(PATIENCE)
expect("before it is kept", (topic + "/kept", 1, False, b"kept"))
sub.subscribe(topic + "/kept", qos=1)
expect("retained", (topic + "/kept", 1, True, b"kept"))
pub._sock_close()  # dies
expect("will", (topic + "/will", 1, False, b"dead"))
pub.loop_stop()
sub.disconnect()
sub.loop_stop()

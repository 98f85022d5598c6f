"""The edges that the bench compares: each spreads connections over two instances and tells them who the client is.

What stands for the instances is the bench's server, at two addresses: relay's or any other forwarder there would be
measured twice. Everybody probes them every 15 s, and sends a PROXY header of version 2.
"""

import sys
from functools import partial
from pathlib import Path

from forwarders import (
    ALWAYS_SPLICE,
    MAX_CONNECTIONS,
    RELAY_SETTINGS,
    Adapter,
    Ports,
    find_program,
    haproxy_version,
    relay_version,
)

INSTANCES = ("127.1.0.1", "127.1.0.2")


def _relay_command(folder: Path, ports: Ports) -> list[str]:
    service, settings = folder / "service.yaml", folder / "instance.yaml"
    service.write_text(f"""\
version: 1
service: bench
edge:
  instances: [127.0.0.1]
roles:
  web:
    instances: [{", ".join(INSTANCES)}]
    endpoints:
      tcp:
        type: input
        protocol: tcp
        public_port: {ports.forward}
        port: {ports.target}
        target: "127.0.0.1:{ports.target}"
        probe: {{interval: 15s}}
""")
    settings.write_text(RELAY_SETTINGS.format(folder=folder, level="warning"))
    run = [sys.executable, "-m", "relay", "run", "--service", str(service), "--settings", str(settings)]
    return [*run, "--id", "edge_IN_0"]


def _haproxy_command(splice: str, folder: Path, ports: Ports) -> list[str]:
    config = folder / "haproxy.cfg"
    servers = "\n".join(
        f"    server web{n} {address}:{ports.target} check inter 15s send-proxy-v2"
        for n, address in enumerate(INSTANCES)
    )
    config.write_text(f"""\
global
    nbthread 1
    maxconn {MAX_CONNECTIONS}
    tune.pipesize 1048576

defaults
    mode tcp
    {splice}
    timeout connect 5s
    timeout client 1h
    timeout server 1h

frontend tcp
    bind 127.0.0.1:{ports.forward}
    default_backend web

backend web
    balance roundrobin
{servers}
""")
    return [find_program("haproxy", "haproxy"), "-db", "-f", str(config)]


ADAPTERS = (
    Adapter("direct", None, None, denies=False),
    Adapter("relay", relay_version, _relay_command, denies=False),
    Adapter("haproxy", haproxy_version, partial(_haproxy_command, "option splice-auto"), denies=False),
    Adapter("haproxy-splice", haproxy_version, partial(_haproxy_command, ALWAYS_SPLICE), denies=False),
)

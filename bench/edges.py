"""The edges that the bench compares: each spreads connections over two instances and tells them who the client is.

What stands for the instances is the bench's server, at two addresses: relay's or any other forwarder there would be
measured twice. Everybody probes them every 15 s, and sends a PROXY header of version 2.
"""

from functools import partial
from pathlib import Path

from configs import ALWAYS_SPLICE, Setting, haproxy_head, relay_settings
from forwarders import Adapter, haproxy_run, haproxy_version, relay_run, relay_version

INSTANCES = ("127.1.0.1", "127.1.0.2")
_KINDS = frozenset({"tcp"})


def _relay_command(folder: Path, setting: Setting) -> list[str]:
    (folder / "service.yaml").write_text(f"""\
version: 1
service: bench
edge:
  instances: [{setting.listen.host}]
roles:
  web:
    instances: [{", ".join(INSTANCES)}]
    endpoints:
      tcp:
        type: input
        protocol: tcp
        public_port: {setting.listen.port}
        port: {setting.target.port}
        target: "{setting.target}"
        probe: {{interval: 15s}}
""")
    (folder / "instance.yaml").write_text(relay_settings(folder, setting.workers, "warning"))
    return relay_run(("-m", "relay"), folder, "edge_IN_0")


def _haproxy_command(splice: str, folder: Path, setting: Setting) -> list[str]:
    servers = "\n".join(
        f"    server web{n} {address}:{setting.target.port} check inter 15s send-proxy-v2"
        for n, address in enumerate(INSTANCES)
    )
    config = f"""\
{haproxy_head(setting, splice)}
frontend in
    bind {setting.listen}
    default_backend web

backend web
    balance roundrobin
{servers}
"""
    return haproxy_run(folder, config)


ADAPTERS = (
    Adapter("direct", None, None, _KINDS),
    Adapter("relay", relay_version, _relay_command, _KINDS),
    Adapter("haproxy", haproxy_version, partial(_haproxy_command, "option splice-auto"), _KINDS),
    Adapter("haproxy-splice", haproxy_version, partial(_haproxy_command, ALWAYS_SPLICE), _KINDS),
)

"""Each forwarder's configuration, as text. Pure."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from greetings import EDGES

# Ample for the widest axis but `idle`, 64 connections, and small enough that HAProxy, which counts both sockets and
# pipes of each connection against RLIMIT_NOFILE, starts under a limit of 20,000.
MAX_CONNECTIONS = 4096
KINDS = ("tcp", "denied", "https", "http", "proxy")
ALWAYS_SPLICE = "option splice-request\n    option splice-response"


class Address(NamedTuple):
    """An IPv4 address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a forwarder is to do: listen at one address and lead to another, with so many workers (threads).

    `kind` is one of KINDS: let everybody in (tcp) or nobody (denied); let in what begins like TLS (https) or HTTP;
    let in EDGES alone, and take a PROXY header from them (proxy). `connections` is how many it has at most.
    """

    listen: Address
    target: Address
    kind: str = "tcp"
    workers: int = 1
    connections: int = MAX_CONNECTIONS


def relay_service(setting: Setting) -> str:
    """relay's service.yaml. Behind an edge it lets in that alone."""
    protocol = setting.kind if setting.kind in ("http", "https") else "tcp"
    edge = f"\nedge:\n  instances: [{', '.join(EDGES)}]" if setting.kind == "proxy" else ""
    more = "\n        access: [{deny: 127.0.0.0/8}]" if setting.kind == "denied" else ""
    if setting.target.host != setting.listen.host:
        more += "\n        unsafe_target: true"  # the server is in another network namespace
    return f"""\
version: 1
service: bench{edge}
roles:
  web:
    instances: [{setting.listen.host}]
    endpoints:
      in:
        type: input
        protocol: {protocol}
        public_port: {setting.listen.port}
        target: "{setting.target}"{more}
"""


def relay_settings(folder: Path, workers: int, log_level: str) -> str:
    """relay's instance.yaml; the admin socket is in the folder."""
    return f"""\
workers: {workers}
metrics: false
admin: {{socket: {folder}/admin.sock}}
log: {{level: {log_level}, format: json}}
"""


_HAPROXY_RULES = {
    "tcp": "",
    "denied": "tcp-request connection reject if { src 127.0.0.0/8 }",
    "https": (
        "tcp-request inspect-delay 5s\n"
        "    tcp-request content accept if { req.ssl_hello_type 1 }\n"
        "    tcp-request content reject"
    ),
    "http": (
        "tcp-request inspect-delay 5s\n"
        "    tcp-request content accept if { req.proto_http }\n"
        "    tcp-request content reject"
    ),
    # Rules of a connection see the peer; those of a session and of content, who the header says (its manual, 4.2).
    "proxy": f"tcp-request connection reject if !{{ src {' '.join(EDGES)} }}",
}


def haproxy_head(setting: Setting, splice: str) -> str:
    """haproxy.cfg as far as every one has it; `splice` says what is spliced."""
    return f"""\
global
    nbthread {setting.workers}
    maxconn {setting.connections}
    tune.pipesize 1048576

defaults
    mode tcp
    {splice}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"""


def haproxy_config(setting: Setting, splice: str) -> str:
    """haproxy.cfg; `splice` says what is spliced."""
    accept_proxy = " accept-proxy" if setting.kind == "proxy" else ""
    return f"""\
{haproxy_head(setting, splice)}
frontend in
    bind {setting.listen}{accept_proxy}
    {_HAPROXY_RULES[setting.kind]}
    default_backend target

backend target
    server target {setting.target}
"""


_NGINX_RULES = {
    "tcp": "",
    "denied": "deny all;",
    "https": "ssl_preread on;",
    "proxy": "".join(f"allow {edge}; " for edge in EDGES) + "deny all;",
}
NGINX_KINDS = frozenset(_NGINX_RULES)
"""Its stream module does not look for HTTP; ssl_preread reads a ClientHello, and lets in what is none."""


def nginx_config(setting: Setting, folder: Path, load_module: str) -> str:
    """nginx.conf; `load_module` is the directive that loads the stream module, if one is needed."""
    accept_proxy = " proxy_protocol" if setting.kind == "proxy" else ""
    # Level crit: a denied connection is an error to nginx, and a line for each would be measured too.
    # To nginx the client's side and the target's are a connection each.
    return f"""\
{load_module}
daemon off;
worker_processes {setting.workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{
    worker_connections {2 * setting.connections};
}}
stream {{
    access_log off;
    proxy_connect_timeout 5s;
    proxy_timeout 1h;
    server {{
        listen {setting.listen} backlog=4096{accept_proxy};
        {_NGINX_RULES[setting.kind]}
        proxy_pass {setting.target};
    }}
}}
"""

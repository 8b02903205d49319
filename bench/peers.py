"""How is each server set up as a STARTTLS front of the same sink?  One function each: what to run, where it listens.

All of it in the lab's directory, on loopback, on free ports; the same P-256 certificate everywhere.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

REPOSITORY = Path(__file__).resolve().parents[1]
NGINX_MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
POSTFIX_DAEMONS = Path("/usr/lib/postfix/sbin")


class Unavailable(Exception):
    """This peer cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Lab:
    """What the peers share."""

    directory: Path
    certificate: Path
    key: Path
    sink_port: int
    """Takes mail in clear: the MTA behind a proxy."""
    tls_sink_port: int
    """Offers STARTTLS: a mail host on the Internet."""
    closing_sink_port: int
    """As `tls_sink_port`, and closes after each message."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How to run one peer."""

    command: tuple[str, ...]
    port: int
    encryption: str = "starttls"
    environment: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed P-256 certificate and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=mail.test"
    extension = "subjectAltName=DNS:mail.test"
    command = ["openssl", *words.split(), "-addext", extension, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def nginx(lab: Lab) -> Setup:
    """nginx's mail proxy; its auth_http is a stub inside it that names the sink."""
    if not NGINX_MODULE.exists() or not shutil.which("nginx"):
        raise Unavailable("nginx with libnginx-mod-mail is not installed: run bench/install.sh")
    directory = lab.directory / "nginx"
    directory.mkdir()
    port, stub = free_port(), free_port()
    # smtp_client_buffer: with the default of 4k a longer message meets Nagle's algorithm and a delayed ACK.
    (directory / "nginx.conf").write_text(
        f"""load_module {NGINX_MODULE};
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {directory}/pid;
error_log {directory}/error.log error;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
  uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  server {{
    listen 127.0.0.1:{stub};
    location / {{
      add_header Auth-Status OK; add_header Auth-Server 127.0.0.1; add_header Auth-Port {lab.sink_port};
      return 200;
    }}
  }}
}}
mail {{
  auth_http 127.0.0.1:{stub}/;
  server_name mail.test;
  smtp_auth none;
  xclient off;
  starttls on;
  timeout 600s; proxy_timeout 600s;
  proxy_buffer 16k; smtp_client_buffer 16k;
  smtp_capabilities PIPELINING "SIZE 104857600" 8BITMIME ENHANCEDSTATUSCODES;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_certificate {lab.certificate}; ssl_certificate_key {lab.key};
  server {{ listen 127.0.0.1:{port}; protocol smtp; }}
}}
"""
    )
    return Setup(("nginx", "-p", str(directory), "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"), port)


def postfix(lab: Lab) -> Setup:
    """Postfix's smtpd before a queue: STARTTLS, then `smtpd_proxy_filter` hands each message on to the sink."""
    if not (POSTFIX_DAEMONS / "master").exists():
        raise Unavailable("postfix is not installed: run bench/install.sh")
    if os.geteuid() != 0:
        raise Unavailable("postfix must be started by root")
    directory = lab.directory / "postfix"
    for name in ("etc", "queue", "data"):
        (directory / name).mkdir(parents=True)
    shutil.chown(directory / "data", "postfix")
    port = free_port()
    (directory / "etc" / "main.cf").write_text(
        f"""compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
daemon_directory = {POSTFIX_DAEMONS}
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
inet_protocols = ipv4
myhostname = mail.test
mydestination =
mynetworks =
relay_domains = dest.test
alias_maps =
alias_database =
local_recipient_maps =
smtpd_recipient_restrictions = reject_unauth_destination
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_timeout = 600s
message_size_limit = 104857600
smtpd_tls_security_level = may
smtpd_tls_chain_files = {lab.key}, {lab.certificate}
"""
    )
    (directory / "etc" / "master.cf").write_text(
        f"""127.0.0.1:{port} inet n - n - 1000 smtpd -o smtpd_proxy_filter=127.0.0.1:{lab.sink_port}
pickup  unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr    unix n - n 300 1 qmgr
tlsmgr  unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce  unix - - n - 0 bounce
defer   unix - - n - 0 bounce
trace   unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp    unix - - n - - smtp
relay   unix - - n - - smtp
error   unix - - n - - error
retry   unix - - n - - error
anvil   unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""
    )
    for name in ("dynamicmaps.cf", "postfix-files"):
        if Path("/etc/postfix", name).exists():
            shutil.copy(Path("/etc/postfix", name), directory / "etc")
    checked = subprocess.run(
        ["postfix", "-c", str(directory / "etc"), "check"], capture_output=True, text=True, check=False
    )
    if checked.returncode != 0:
        raise Unavailable(f"postfix check: {checked.stderr.strip()}")
    return Setup((str(POSTFIX_DAEMONS / "master"), "-c", str(directory / "etc"), "-d"), port)


_COMMON = """hostname = "mail.test"
state_dir = "{directory}/state"
[dns]
resolvers = ["127.0.0.1:{nobody}"]
dnssec = "off"
[mtasts]
enabled = false
[admin]
bind = "127.0.0.1:{admin}"
"""

INBOUND = (
    _COMMON
    + """
[[listener]]
role = "inbound"
name = "bench"
bind = ["127.0.0.1:{port}"]
tls = "starttls"
certificate = "{certificate}"
key = "{key}"
upstream = "127.0.0.1:{upstream}"
pass_client = "none"
upstream_has_no_trusted_networks = true
client_names = false
[listener.limits]
sessions = 20000
sessions_per_client = 10000
connections_per_minute = 1000000
[[inbound_policy]]
recipient_domain = "protected.test"
require = "tls"
"""
)

OUTBOUND = (
    _COMMON
    + """
[[listener]]
role = "outbound"
name = "bench"
bind = ["127.0.0.1:{port}"]
protocol = "smtp"
[outbound]
allow_destinations = ["127.0.0.0/8"]
auto_floor = "encrypt"
destination_connections = 200
destination_walks = 100
[[route]]
domain = "dest.test"
next_hop = "[127.0.0.1]:{upstream}"
"""
)


def _smtpguard(lab: Lab, name: str, template: str, upstream: int, encryption: str, tree: Path) -> Setup:
    directory = lab.directory / name
    (directory / "state").mkdir(parents=True)
    port = free_port()
    config = directory / "smtpguard.toml"
    config.write_text(
        template.format(
            directory=directory,
            port=port,
            admin=free_port(),
            nobody=free_port(),
            upstream=upstream,
            certificate=lab.certificate,
            key=lab.key,
        )
    )
    command = (sys.executable, "-m", "smtpguard", "run", "--config", str(config))
    return Setup(command, port, encryption, {"PYTHONPATH": str(tree)})


def smtpguard_inbound(lab: Lab, tree: Path = REPOSITORY, name: str = "smtpguard") -> Setup:
    """smtpguard before the sink, with logging, metrics and a policy rule on."""
    return _smtpguard(lab, name, INBOUND, lab.sink_port, "starttls", tree)


def smtpguard_outbound(lab: Lab, tree: Path = REPOSITORY, name: str = "outbound") -> Setup:
    """smtpguard between an MTA in clear and a STARTTLS mail host that keeps its connections."""
    return _smtpguard(lab, name, OUTBOUND, lab.tls_sink_port, "plain", tree)


def smtpguard_outbound_unpooled(lab: Lab, tree: Path = REPOSITORY, name: str = "outbound-unpooled") -> Setup:
    """The same to a mail host that closes after each message: a handshake each."""
    return _smtpguard(lab, name, OUTBOUND, lab.closing_sink_port, "plain", tree)


class SmtpguardSetup(Protocol):
    """A setup of smtpguard from some checkout, under some name."""

    def __call__(self, lab: Lab, tree: Path = REPOSITORY, name: str = ...) -> Setup: ...


INBOUND_PEERS: Mapping[str, Callable[[Lab], Setup]] = {
    "smtpguard": smtpguard_inbound,
    "nginx": nginx,
    "postfix": postfix,
}
OUTBOUND_PEERS: Mapping[str, SmtpguardSetup] = {
    "outbound": smtpguard_outbound,
    "outbound-unpooled": smtpguard_outbound_unpooled,
}

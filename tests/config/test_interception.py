"""A listener for redirected connections in the configuration file."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.config.test_build import errors, settings

HEAD = """
hostname = "mail.example.org"
[dns]
resolvers = ["127.0.0.1"]
[[listener]]
role = "outbound"
"""
SIDECAR = 'bind = ["127.0.0.1:10025", "[::1]:10025"]\nintercept = true\n'


def test_a_sidecar_needs_three_lines(tmp_path: Path) -> None:
    """MX-17: who can reach loopback is of this host."""
    (listener,) = settings(tmp_path, HEAD + SIDECAR).listeners
    assert (listener.intercept, listener.protocol, listener.intercept_direct) == ("redirect", "smtp", ())
    assert listener.name == "intercept:127.0.0.1:10025"
    assert not any(bind.transparent for bind in listener.binds)


def test_direct_and_transparent(tmp_path: Path) -> None:
    """MX-18."""
    text = HEAD + 'bind = ["127.0.0.1:10025", "fd:tproxy"]\nintercept = true\nintercept_by = "tproxy"\n'
    text += (
        'clients = ["10.1.0.0/16"]\ncleartext_from = ["10.1.0.0/16"]\nintercept_direct = ["10.0.0.0/8", "fd00::/8"]\n'
    )
    (listener,) = settings(tmp_path, text).listeners
    assert listener.intercept == "tproxy"
    assert all(bind.transparent for bind in listener.binds)
    assert listener.intercept_direct == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            SIDECAR + 'protocol = "lmtp"',
            'protocol = "lmtp": what an MTA sends to mail hosts is SMTP: write "smtp", or leave the key out',
        ),
        (
            'bind = ["unix:/run/x.sock"]\nintercept = true',
            (
                'bind = "unix:/run/x.sock": connections are redirected to a TCP port: write an address and a port, as '
                "in 127.0.0.1:10025"
            ),
        ),
        (
            'bind = ["[::1]:25"]\nintercept = true',
            (
                'bind = "[::1]:25": has the port of mail hosts, so what is redirected could not be told from what is '
                "meant for this listener: take another one, as in [::1]:10025"
            ),
        ),
        (
            'bind = ["127.0.0.1:10025"]\nintercept_direct = ["10.0.0.0/8"]',
            "intercept_direct: has no use without intercept = true",
        ),
        ('bind = ["127.0.0.1:10025"]\nintercept_by = "tproxy"', "intercept_by: has no use without intercept = true"),
        (
            SIDECAR + 'intercept_direct = ["0.0.0.0/1", "128.0.0.0/1"]',
            (
                'intercept_direct = ["0.0.0.0/1", "128.0.0.0/1"]: 0.0.0.0/0 is a great part of the Internet and mail '
                "would go wherever the MTA was told to, whatever its domain publishes: name your own networks"
            ),
        ),
        (SIDECAR + 'intercept_by = "magic"', 'intercept_by = "magic": must be one of "redirect", "tproxy"'),
    ],
)
def test_errors(tmp_path: Path, change: str, expected: str) -> None:
    (error,) = errors(tmp_path, HEAD + change)
    assert error.startswith("[[listener]] 1 (")
    assert error.endswith(expected)


def test_tproxy_is_open_to_other_hosts_wherever_it_listens(tmp_path: Path) -> None:
    """DESIGN §6 "Who may use us"."""
    assert [
        error.partition(") ")[2]
        for error in errors(tmp_path, HEAD + 'bind = ["127.0.0.1:10025"]\nintercept = true\nintercept_by = "tproxy"')
    ] == [
        'clients: is needed because TPROXY brings connections of other hosts: name yours, as in ["192.0.2.0/24"]',
        (
            "certificate: is needed because TPROXY brings connections of other hosts; or name the networks whose "
            "cleartext you accept in cleartext_from"
        ),
    ]


def test_of_outbound_listeners_only(tmp_path: Path) -> None:
    text = HEAD.replace("outbound", "inbound") + 'bind = ["127.0.0.1:2500"]\nupstream = "127.0.0.1:2525"\n'
    text += 'tls = "none"\npass_client = "xclient"\nintercept = true'
    assert [error.partition(") ")[2] for error in errors(tmp_path, text)] == [
        'intercept: belongs to listeners with role = "outbound"'
    ]

"""The configuration file: what is accepted, and how everything wrong is told at once."""

from pathlib import Path

import pytest

from smtpguard.config.build import Settings, load, parse_resolver
from smtpguard.names import NameInvalid, parse_address
from smtpguard.policy.model import Level

MINIMAL = """
hostname = "mail.example.org"
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10027"]
protocol = "lmtp"
[dns]
resolvers = ["127.0.0.1"]
"""


def errors(directory: Path, text: str) -> list[str]:
    path = directory / "x.toml"
    path.write_text(text)
    found = load(path)
    return [str(error).removeprefix(f"{path}: ") for error in found] if isinstance(found, list) else []


def settings(directory: Path, text: str) -> Settings:
    path = directory / "x.toml"
    path.write_text(text)
    found = load(path)
    assert isinstance(found, Settings), [str(error) for error in found]
    return found


def test_minimal(tmp_path: Path) -> None:
    found = settings(tmp_path, MINIMAL)
    assert found.outbound.rules.level is Level.AUTO
    assert found.outbound.routes.port == 25
    assert str(found.admin) == "127.0.0.1:9825"
    assert found.hostname in found.outbound.own_names
    (listener,) = found.listeners
    assert (listener.protocol, listener.ehlo) == ("lmtp", "mail.example.org")


def test_all_errors_at_once(tmp_path: Path) -> None:
    """Form and meaning, each with file, table, key, value and what would be right."""
    text = MINIMAL.replace("mail.example.org", "mail..org").replace('"lmtp"', '"lmpt"')
    text += '[outbound]\nlevel = "danne"\n[[policy]]\ndomain = "a.example"\nlevel = "secure"\nmatc = ["x"]\n'
    assert errors(tmp_path, text) == [
        '[listener 1] protocol = "lmpt": must be one of "smtp", "lmtp"',
        "[policy 1] matc: is not a key of this table; did you mean 'match'?",
        "hostname = \"mail..org\": 'mail..org' is not a domain name: each label must have 1 to 63 octets",
        (
            "[outbound] level = \"danne\": 'danne' is not a level; the levels are auto, none, may, encrypt, "
            "fingerprint, dane, dane-only, verify, secure"
        ),
    ]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ('bind = ["0.0.0.0:10027"]', "clients: is needed because 0.0.0.0:10027 can be reached from other hosts"),
        ('bind = ["0.0.0.0:10027"]\nclients = ["0.0.0.0/0"]', "would make this an open relay"),
        ('bind = ["0.0.0.0:10027"]\nclients = ["192.0.2.0/24"]', "cleartext_from"),
        ('bind = ["192.0.2.1:25"]\nclients = ["192.0.2.0/24"]', "LMTP is never spoken on port 25"),
        ('bind = ["localhost:25"]', "an IP address is needed, not a name"),
        ("bind = []", "needs at least one address"),
        ('bind = ["127.0.0.1:1"]\ncertificate = "/nowhere.pem"', "key"),
        ('bind = ["127.0.0.1:1"]\nsource_ipv4 = "::1"', "must be an IPv4 address"),
    ],
)
def test_listener_errors(tmp_path: Path, change: str, error: str) -> None:
    """LMTP-03 and DESIGN §6 "Who may use us"."""
    found = errors(tmp_path, MINIMAL.replace('bind = ["127.0.0.1:10027"]', change))
    assert any(error in line and "[listener 1]" in line for line in found), found


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ('[admin]\nbind = "0.0.0.0:9825"', "must be a loopback address or a unix socket"),
        ('[tls]\nca_file = "/nowhere.pem"', "[tls] ca_file"),
        ('[[route]]\ndomain = "a.example"\nnext_hop = "[mx.example"', "the ']' is missing"),
        ('[[route]]\ndomain = "a.example"\nnext_hop = "mx:0"', "a port from 1 to 65535"),
        ('[[policy]]\ndomain = "a.example"\nlevel = "may"\n' * 2, "two rules"),
        ('[[policy]]\ndomain = "a.example"\nlevel = "none"\nmin_tls = "1.3"', "min_tls has no meaning"),
        ('[mtasts]\nsts_txt_tempfail = "never"', 'must be one of "defer", "grace", "ignore"'),
        ("[outbound]\nport = 70000", "[outbound] port = 70000"),
        ("colour = 1", "colour"),
    ],
)
def test_table_errors(tmp_path: Path, extra: str, error: str) -> None:
    text = extra + "\n" + MINIMAL if extra == "colour = 1" else MINIMAL + extra
    found = errors(tmp_path, text)
    assert any(error in line for line in found), found


def test_not_toml_not_there_not_utf8(tmp_path: Path) -> None:
    assert errors(tmp_path, "hostname = ") == ["is not TOML: Invalid value (at end of document)"]
    missing = load(tmp_path / "missing.toml")
    assert isinstance(missing, list)
    assert str(missing[0]).endswith("missing.toml: cannot be read: No such file or directory")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'hostname = "\xe9"')
    found = load(path)
    assert isinstance(found, list)
    assert "must be UTF-8" in str(found[0])


def test_routes_and_rules(tmp_path: Path) -> None:
    """MX-16, PF-01: Postfix's next hops, and rules found by them."""
    found = settings(
        tmp_path,
        MINIMAL
        + '[[route]]\ndomain = ".internal.example"\nnext_hop = "[192.0.2.1]:26"\n'
        + '[[route]]\ndomain = "*"\nnext_hop = "relay.example"\n'
        + '[[policy]]\ndomain = "[192.0.2.1]:26"\nlevel = "none"\noverride = true\n',
    ).outbound
    hop = found.routes.next_hop("a.internal.example")  # type: ignore[arg-type]
    assert (hop.key, hop.port, hop.bracketed) == ("[192.0.2.1]:26", 26, True)
    assert found.rules.find(hop.key).rules[0].level is Level.NONE
    assert found.routes.next_hop("elsewhere.example").key == "relay.example"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "address", "port", "name"),
    [
        ("127.0.0.1", "127.0.0.1", 53, None),
        ("127.0.0.1:5353", "127.0.0.1", 5353, None),
        ("::1", "::1", 53, None),
        ("[::1]:5353", "::1", 5353, None),
        ("tls://[2001:db8::1]#dns.example", "2001:db8::1", 853, "dns.example"),
    ],
)
def test_resolvers(text: str, address: str, port: int, name: str | None) -> None:
    found = parse_resolver(text)
    assert (found.address, found.port, found.tls_name) == (parse_address(address), port, name)


@pytest.mark.parametrize("text", ["tls://192.0.2.1", "192.0.2.1#x.example", "127.0.0.1:0", "resolver.example"])
def test_bad_resolvers(text: str) -> None:
    with pytest.raises(NameInvalid):
        parse_resolver(text)

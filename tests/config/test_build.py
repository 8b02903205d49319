"""The configuration file: what is accepted, and how everything wrong is told at once."""

import json
import re
from pathlib import Path

import pytest

from smtpguard.config.build import Settings, load
from smtpguard.config.findings import Findings
from smtpguard.config.resolver import parse_resolver, resolver_settings
from smtpguard.config.schema import File
from smtpguard.names import NameInvalid, parse_address
from smtpguard.policy.model import Level
from tests.support.certificates import self_signed

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
        '[[listener]] 1 (127.0.0.1:10027) protocol = "lmpt": must be one of "smtp", "lmtp"',
        "[[policy]] 1 (a.example) matc: is not a key of this table; did you mean 'match'?",
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
        ('bind = ["127.0.0.1:1"]\nname = "admin"', 'name = "admin": is the name of [admin]'),
    ],
)
def test_listener_errors(tmp_path: Path, change: str, error: str) -> None:
    """LMTP-03 and DESIGN §6 "Who may use us"."""
    found = errors(tmp_path, MINIMAL.replace('bind = ["127.0.0.1:10027"]', change))
    assert any(error in line and "[[listener]] 1" in line for line in found), found


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ('[admin]\nbind = "0.0.0.0:9825"', "must be a loopback address or a unix socket, or token_file must name"),
        ('[tls]\nca_file = "/nowhere.pem"', "[tls] ca_file"),
        ('[[route]]\ndomain = "a.example"\nnext_hop = "[mx.example"', "the ']' is missing"),
        ('[[route]]\ndomain = "a.example"\nnext_hop = "mx:0"', "a port from 1 to 65535"),
        ('[[policy]]\ndomain = "a.example"\nlevel = "may"\n' * 2, "two rules"),
        ('[[policy]]\ndomain = "a.example"\nlevel = "none"\nmin_tls = "1.3"', "has no meaning at level"),
        ('[mtasts]\nsts_txt_tempfail = "never"', 'must be one of "defer", "grace", "ignore"'),
        ("[outbound]\nport = 70000", "[outbound] port = 70000"),
        ("colour = 1", "colour"),
        (
            'dnssec = "off"\n[[policy]]\ndomain = "a.example"\nlevel = "dane-only"',
            'level = "dane-only": refuses all mail',
        ),
        ('dnssec = "off"\n[outbound]\nlevel = "dane-only"', '[outbound] level = "dane-only": refuses all mail'),
    ],
)
def test_table_errors(tmp_path: Path, extra: str, error: str) -> None:
    text = extra + "\n" + MINIMAL if extra == "colour = 1" else MINIMAL + extra
    found = errors(tmp_path, text)
    assert any(error in line for line in found), found


def test_each_of_a_list_is_told(tmp_path: Path) -> None:
    """Not only the first that is wrong; and each says what would be right."""
    text = MINIMAL.replace('["127.0.0.1"]', '["a", "tls://192.0.2.1", "127.0.0.1"]')
    text += (
        '[outbound]\nown_addresses = ["x"]\n[[route]]\ndomain = "*"\nnext_hop = "a b"\n[tls]\nca_file = "/nowhere"\n'
    )
    right = "right would be 127.0.0.1, [::1]:5353 or tls://192.0.2.1#dns.example"
    assert errors(tmp_path, text) == [
        '[tls] ca_file = "/nowhere": cannot be read: No such file or directory',
        (
            "[outbound] own_addresses = \"x\": 'x' is not an IP address; right would be 203.0.113.25 or 2001:db8::25, "
            "without a prefix length"
        ),
        (
            "[[route]] 1 (*) next_hop = \"a b\": 'a b' is not a domain name: only letters, digits, '-' and '_' are "
            'allowed; right would be "[mx.example]:25", "relay.example" or "[192.0.2.1]"'
        ),
        f"[dns] resolvers = \"a\": 'a' is not an IP address; {right}",
        (
            '[dns] resolvers = "tls://192.0.2.1": DNS over TLS needs the name to verify, as in '
            "tls://192.0.2.1#dns.example"
        ),
    ]


def test_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Of certificate and key, the one that is missing."""
    (tmp_path / "cert.pem").write_bytes(self_signed("mx.example.org").chain_pem)
    place = "[[listener]] 1 (127.0.0.1:10027)"
    for certificate, key, error in (
        (f"{tmp_path}/none", f"{tmp_path}/none.key", f'{place} certificate = "{tmp_path}/none": cannot be read: '),
        (f"{tmp_path}/cert.pem", f"{tmp_path}/none.key", f'{place} key = "{tmp_path}/none.key": cannot be read: '),
    ):
        pair = f'protocol = "lmtp"\ncertificate = "{certificate}"\nkey = "{key}"'
        assert errors(tmp_path, MINIMAL.replace('protocol = "lmtp"', pair)) == [error + "No such file or directory"]


def test_not_toml_not_there_not_utf8(tmp_path: Path) -> None:
    assert errors(tmp_path, "hostname = ") == ["is not TOML: Invalid value (at end of document)"]
    assert errors(tmp_path, f"drain_seconds = 1{'0' * 5000}")[0].startswith("is not TOML: Exceeds the limit")
    assert errors(tmp_path, f"drain_seconds = {'[' * 100_000}")[0].startswith("is not TOML: ")
    missing = load(tmp_path / "missing.toml")
    assert isinstance(missing, list)
    assert str(missing[0]).endswith(
        "missing.toml: cannot be read: No such file or directory; --config FILE or SMTPGUARD_CONFIG names another"
    )
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


@pytest.mark.parametrize(
    "text",
    [
        "tls://192.0.2.1",
        "192.0.2.1#x.example",
        "127.0.0.1:0",
        "127.0.0.1:",
        "[::1",
        "[::1]:",
        "[::1]5353",
        "resolver.example",
    ],
)
def test_bad_resolvers(text: str) -> None:
    with pytest.raises(NameInvalid):
        parse_resolver(text)


@pytest.mark.parametrize(
    "clients",
    [
        ["0.0.0.0/0"],
        ["0.0.0.0/1", "128.0.0.0/1"],
        ["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"],
        ["16.0.0.0/5"],
        [f"{number}.0.0.0/8" for number in range(1, 224)],
        ["192.0.2.0/24", "::/0"],
        ["::/1", "8000::/1"],
        ["2000::/3"],
        ["::ffff:0:0/96"],
    ],
)
def test_clients_that_are_everybody(tmp_path: Path, clients: list[str]) -> None:
    """DESIGN §6: an open relay is refused, however it is written."""
    listener = f'bind = ["0.0.0.0:10027"]\nclients = {json.dumps(clients)}\ncleartext_from = ["192.0.2.0/24"]'
    (error,) = errors(tmp_path, MINIMAL.replace('bind = ["127.0.0.1:10027"]', listener))
    assert error.startswith("[[listener]] 1 (0.0.0.0:10027) clients = ")


def test_clients_of_ones_own(tmp_path: Path) -> None:
    """Wide private networks and several neighbours are nobody else's."""
    listener = 'bind = ["0.0.0.0:10027"]\nclients = ["10.0.0.0/8", "fc00::/7", "192.0.2.0/25", "192.0.2.128/25"]'
    text = MINIMAL.replace('bind = ["127.0.0.1:10027"]', listener + '\ncleartext_from = ["10.0.0.0/8"]')
    assert len(settings(tmp_path, text).listeners[0].clients) == 4


def second(bind: str, name: str = "") -> str:
    named = f'name = "{name}"\n' if name else ""
    ours = 'clients = ["10.0.0.0/8"]\ncleartext_from = ["10.0.0.0/8"]\n'
    return f'[[listener]]\nrole = "outbound"\n{named}bind = {bind}\n{ours}'


@pytest.mark.parametrize(
    ("bind", "taken"),
    [
        ('["127.0.0.1:10027"]', "127.0.0.1:10027 of [[listener]] 1 (127.0.0.1:10027)"),
        ('["0.0.0.0:10027"]', "127.0.0.1:10027 of [[listener]] 1 (127.0.0.1:10027)"),
        ('["[::]:26", "[::1]:26"]', "[::]:26"),
        ('["[::1]:26", "[::]:26"]', "[::1]:26"),
        ('["unix:/run/x", "unix:/run/x"]', "unix:/run/x"),
        ('["fd:mail", "fd:mail"]', "fd:mail"),
    ],
)
def test_bound_twice(tmp_path: Path, bind: str, taken: str) -> None:
    """A wildcard contains every address of its family; the error names both places."""
    found = errors(tmp_path, MINIMAL + second(bind))
    assert [error for error in found if f"is bound twice: {taken} takes it already" in error] == found != []


def test_the_admin_address_is_bound_too(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, MINIMAL + '[admin]\nbind = "127.0.0.1:10027"')
    assert error.startswith('[admin] bind = "127.0.0.1:10027": is bound twice: 127.0.0.1:10027 of [[listener]] 1')
    (default,) = errors(tmp_path, MINIMAL + second('["0.0.0.0:9825"]'))
    assert default.startswith('[admin] bind = "127.0.0.1:9825": is bound twice: 0.0.0.0:9825 of [[listener]] 2')


@pytest.mark.parametrize(
    "bind", ['["[::]:10027"]', '["127.0.0.1:10028"]', '["127.0.0.2:10027"]', '["127.0.0.1:0", "127.0.0.1:0"]']
)
def test_bound_once(tmp_path: Path, bind: str) -> None:
    """[::] is IPv6 only and stands beside IPv4; port 0 is another port each time."""
    assert errors(tmp_path, MINIMAL + second(bind)) == []


def test_names_are_unique(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, MINIMAL + second('["127.0.0.1:1"]', "a") + second('["127.0.0.1:2"]', "a"))
    assert error == '[[listener]] 3 (a) name = "a": is the name of [[listener]] 2 (a): each listener has its own'


RULE = '[[policy]]\ndomain = "{}"\nlevel = "{}"\n'


def test_errors_of_rules_stand_at_their_rule(tmp_path: Path) -> None:
    """PF-03, PF-04: never under [outbound]."""
    text = MINIMAL + RULE.format("a.example", "may") + RULE.format("b.example", "none") + 'min_tls = "1.3"\n'
    text += 'servername = "x.example"\n' + RULE.format("A.example.", "may") + RULE.format("c.example", "fingerprint")
    assert errors(tmp_path, text) == [
        '[[policy]] 2 (b.example) min_tls = "1.3": has no meaning at level "none": TLS is not tried',
        '[[policy]] 2 (b.example) servername = "x.example": has no meaning at level "none": TLS is not tried',
        (
            '[[policy]] 3 (A.example.) domain = "A.example.": has two rules, the other is [[policy]] 1 (a.example): '
            "one key has one rule, order means nothing"
        ),
        '[[policy]] 4 (c.example) level = "fingerprint": needs at least one entry in fingerprints',
    ]


def test_level_of_everything(tmp_path: Path) -> None:
    """What is wrong with `[outbound] level` itself stands there."""
    (error,) = errors(tmp_path, MINIMAL + '[outbound]\nlevel = "fingerprint"')
    assert error.startswith('[outbound] level = "fingerprint": ')


@pytest.mark.parametrize(
    ("admin", "bind", "address"),
    [
        ('bind = "fd:admin"', "fd:admin", "None"),
        ('bind = "fd:admin"\naddress = "unix:/run/smtpguard/admin.sock"', "fd:admin", "unix:/run/smtpguard/admin.sock"),
        ('bind = "[::1]:9825"', "[::1]:9825", "[::1]:9825"),
        ("enabled = false", "None", "None"),
    ],
)
def test_admin(tmp_path: Path, admin: str, bind: str, address: str) -> None:
    """Socket activation too: then the file says where the commands find it."""
    found = settings(tmp_path, MINIMAL + f"[admin]\n{admin}")
    assert (str(found.admin), str(found.admin_address)) == (bind, address)


def test_resolv_conf(tmp_path: Path) -> None:
    """Without `resolvers` those of resolv.conf(5), and an error with the way out where there are none."""
    path = tmp_path / "resolv.conf"
    found = Findings(tmp_path / "x.toml")
    file = File(hostname="x.example")
    resolver_settings(found, file, path)
    assert "cannot be read: No such file" in str(found.errors.pop())
    path.write_text("search example.org\n")
    resolver_settings(found, file, path)
    assert 'names none; write resolvers = ["127.0.0.1"]' in str(found.errors.pop())
    path.write_text("nameserver 192.0.2.53\noptions trust-ad\n")
    (resolver,) = resolver_settings(found, file, path).resolvers
    assert (str(resolver.address), resolver.vouched, found.errors) == ("192.0.2.53", True, [])


@pytest.mark.parametrize(("given", "state_dir"), [("", "/var/lib/smtpguard"), ("/a:/b", "/a")])
def test_state_dir_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, state_dir: str) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", given)
    assert str(settings(tmp_path, MINIMAL).state_dir) == state_dir


def test_the_shipped_file_loads_as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy/smtpguard.toml is valid, shows each table, and its comments are valid settings."""
    shipped = Path(__file__).parents[2] / "deploy" / "smtpguard.toml"
    found = load(shipped)
    assert isinstance(found, Settings), [str(error) for error in found]
    assert [listener.protocol for listener in found.listeners] == ["lmtp", "smtp"]
    assert [str(bind) for listener in found.listeners for bind in listener.binds] == [
        "127.0.0.1:10027",
        "127.0.0.1:10026",
    ]


def test_the_comments_of_the_shipped_file_are_settings(tmp_path: Path) -> None:
    """`#key = value` lines of deploy/smtpguard.toml, taken in, load as well."""
    shipped = (Path(__file__).parents[2] / "deploy" / "smtpguard.toml").read_text()
    pair = self_signed("mx1.example.org")
    (tmp_path / "fullchain.pem").write_bytes(pair.chain_pem)
    (tmp_path / "privkey.pem").write_bytes(pair.key_pem)
    shipped = shipped.replace("/etc/smtpguard/tls", str(tmp_path))
    found = settings(tmp_path, re.sub(r"(?m)^#(?=\[|[a-z0-9_]+ = )", "", shipped))
    assert [one.name for one in found.inbound] == ["mx"]


def test_beyond_this_host_with_a_token(tmp_path: Path) -> None:
    """The secret stands in a file, with or without a line end, and in no representation of the settings."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef.-_~+/==\n")
    found = settings(tmp_path, MINIMAL + f'[admin]\nbind = "0.0.0.0:9825"\ntoken_file = "{token}"')
    assert found.admin_token == "0123456789abcdef.-_~+/=="
    assert "0123456789abcdef" not in repr(found)


@pytest.mark.parametrize("octets", [b"", b"0123456789abcdefghi", b"two words 0123456789", b"\xff" * 30, b"x" * 513])
def test_what_is_no_token(tmp_path: Path, octets: bytes) -> None:
    """The way out is named, the octets are not."""
    (tmp_path / "token").write_bytes(octets)
    (error,) = errors(tmp_path, MINIMAL + f'[admin]\nbind = "0.0.0.0:9825"\ntoken_file = "{tmp_path}/token"')
    assert error.startswith(f'[admin] token_file = "{tmp_path}/token": must hold one token of 20 to 512')
    assert "openssl rand -hex 32" in error
    (error,) = errors(tmp_path, MINIMAL + f'[admin]\ntoken_file = "{tmp_path}/none"')
    assert error == f'[admin] token_file = "{tmp_path}/none": cannot be read: No such file or directory'

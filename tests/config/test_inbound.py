"""The way in: what may be written about inbound listeners and their rules, and how everything wrong is told."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpguard import cli
from smtpguard.config.build import Settings, load
from smtpguard.inbound.limits import Limits, Times
from smtpguard.inbound.settings import InboundListener
from smtpguard.names import Domain
from smtpguard.policy.inbound import CertificateDemand, InboundRule, Require
from smtpguard.policy.rules import AfterExpiry, Mode, OnFailure
from smtpguard.policy.scopes import ClientNetwork, Mailbox, RecipientDomain, SenderDomain
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.outcome import TlsVersion
from tests.support.certificates import Issued, authority, issue
from tests.support.front import write_pair

HEAD = """
hostname = "mx.example.org"
state_dir = "{d}/state"
[dns]
resolvers = ["127.0.0.1"]
[[listener]]
role = "inbound"
bind = ["127.0.0.1:2525"]
"""
GOOD = {
    "upstream": '"127.0.0.1:25"',
    "pass_client": '"xclient"',
    "certificate": '"{d}/mx.pem"',
    "key": '"{d}/mx.key"',
}
PLACE = "[[listener]] 1 (127.0.0.1:2525)"
UPSTREAM = 'must be where the MTA listens: "127.0.0.1:2525", "[::1]:2525", "mta:25" or "unix:/run/mta.sock"'
ANYBODY = "could then name itself any client, one the MTA trusts too: an open relay: name your own networks"
NETWORK = "must be a network such as 192.0.2.0/24 or 2001:db8::/32"
NO_FILE = "cannot be read: No such file or directory"
NO_CERTIFICATE = (
    "{d}/bad.pem: holds no PEM certificate that can be read; the server's own certificate (-----BEGIN "
    "CERTIFICATE-----) must stand first, the intermediates after it"
)
CLEAR = {"tls": '"none"', "certificate": None, "key": None}


def dated(name: str, days: int = 90) -> Issued:
    """Good today, and for so many days."""
    now = datetime.now(UTC)
    return issue(name, authority(), dns=[name], not_before=now - timedelta(100), not_after=now + timedelta(days))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mx.pem and mx.key, two.pem and two.key, ca.pem, and bad.pem that holds nothing."""
    directory = tmp_path_factory.mktemp("files")
    for name in ("mx", "two"):
        write_pair(directory, name, dated(f"{name}.example.org"))
    (directory / "ca.pem").write_bytes(authority().pem)
    (directory / "bad.pem").write_text("nothing\n")
    return directory


def write(directory: Path, change: Mapping[str, str | None], tail: str = "") -> Path:
    """A file with one good inbound listener, but for `change` (None: without that key)."""
    keys = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    text = HEAD + "".join(f"{key} = {value}\n" for key, value in keys.items()) + tail
    path = directory / "x.toml"
    path.write_text(text.replace("{d}", str(directory)))
    return path


def errors(directory: Path, change: Mapping[str, str | None], tail: str = "") -> list[str]:
    path = write(directory, change, tail)
    found = load(path)
    return [str(error).removeprefix(f"{path}: ") for error in found] if isinstance(found, list) else []


def listener(directory: Path, change: Mapping[str, str | None] | None = None, tail: str = "") -> InboundListener:
    found = load(write(directory, change or {}, tail))
    assert isinstance(found, Settings), [str(error) for error in found]
    (one,) = found.inbound
    return one


# -- listeners


def test_the_least_that_is_needed(files: Path) -> None:
    """DESIGN §6: every default is the safe one."""
    one = listener(files)
    assert one.name == "inbound:127.0.0.1:2525"
    assert (one.tls, one.submission, one.open_at_connect, one.received, one.client_names) == (
        "starttls", False, False, True, True,
    )  # fmt: skip
    assert (str(one.mta), one.mta.address, one.mta.tls, one.mta.identity_by) == (
        "127.0.0.1:25", ip_address("127.0.0.1"), "none", "xclient",
    )  # fmt: skip
    assert one.mta.context is None
    assert (one.proxy_from, one.normalize_from, one.unlimited_from) == ((), (), ())
    assert (one.limits, one.times) == (Limits(), Times())
    assert (one.rules.rules, one.rules.require_tls, one.rules.submission) == ((), False, False)
    assert one.certificates is not None
    assert one.certificates.floor is TlsVersion.TLS_1_2


def test_everything_that_can_be_said(files: Path) -> None:
    one = listener(
        files,
        {
            "name": '"public"',
            "tls": '"implicit"',
            "certificates": '[{certificate = "{d}/two.pem", key = "{d}/two.key"}]',
            "min_tls": '"1.3"',
            "upstream": '"mta.example:2525"',
            "upstream_open": '"connect"',
            "upstream_tls": '"verify"',
            "upstream_ca_file": '"{d}/ca.pem"',
            "pass_client": '"proxy-v2"',
            "submission": "true",
            "require_tls": "true",
            "proxy_from": '["10.0.0.0/8"]',
            "normalize_from": '["192.0.2.0/24", "2001:db8::/32"]',
            "unlimited_from": '["192.0.2.1/32"]',
            "received": "false",
            "client_names": "false",
            "max_message_size": "5000",
            "max_recipients": "100",
            "limits": "{sessions = 1, sessions_per_client = 2, connections_per_minute = 3, errors = 4,"
            " idle_commands = 5, handshake_failures_per_minute = 6, handshakes = 7, octets_per_second = 8,"
            " hello_seconds = 9, command_seconds = 10}",
        },
    )
    assert (one.name, one.tls, one.open_at_connect, one.submission) == ("public", "implicit", True, True)
    assert (one.received, one.client_names) == (False, False)
    assert one.certificates is not None
    assert [served.names for served in one.certificates.certificates] == [("mx.example.org",), ("two.example.org",)]
    assert one.certificates.floor is TlsVersion.TLS_1_3
    mta = one.mta
    assert (str(mta), mta.tls, mta.tls_name, mta.identity_by) == (
        "mta.example:2525", "verify", Domain("mta.example"), "proxy-v2",
    )  # fmt: skip
    assert mta.context is not None
    assert mta.roots is not None
    assert one.proxy_from == (ip_network("10.0.0.0/8"),)
    assert one.normalize_from == (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert one.unlimited_from == (ip_network("192.0.2.1/32"),)
    assert (one.rules.require_tls, one.rules.submission) == (True, True)
    assert one.limits == Limits(
        sessions=1, sessions_per_client=2, connections_per_minute=3, errors=4, idle_commands=5,
        handshake_failures_per_minute=6, handshakes=7, octets_per_second=8, recipients=100, message_octets=5000,
    )  # fmt: skip
    assert one.times == Times(hello=9.0, command=10.0)


@pytest.mark.parametrize(
    ("upstream", "shown", "address"),
    [
        ("127.0.0.1:25", "127.0.0.1:25", "127.0.0.1"),
        ("[::1]:2525", "[::1]:2525", "::1"),
        ("[127.0.0.1]:25", "127.0.0.1:25", "127.0.0.1"),
        ("mta:65535", "mta:65535", None),
        ("mta_1.internal.example:1", "mta_1.internal.example:1", None),
        ("unix:/run/mta.sock", "unix:/run/mta.sock", None),
        ("unix:/run/a:25", "unix:/run/a:25", None),
    ],
)
def test_where_the_mta_is(files: Path, upstream: str, shown: str, address: str | None) -> None:
    mta = listener(files, {"upstream": f'"{upstream}"'}).mta
    assert str(mta) == shown
    assert mta.address == (ip_address(address) if address else None)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"upstream": '"mta.example:25"'}, "mta.example"),
        ({"upstream": '"mta.example:25"', "upstream_name": '"other.example"'}, "other.example"),
        ({"upstream_name": '"other.example"'}, "other.example"),
        ({"upstream": '"unix:/run/mta.sock"', "upstream_name": '"other.example"'}, "other.example"),
    ],
)
def test_the_name_that_the_mta_must_prove(files: Path, change: dict[str, str | None], name: str) -> None:
    mta = listener(files, {**change, "upstream_tls": '"verify"', "upstream_ca_file": '"{d}/ca.pem"'}).mta
    assert (mta.tls_name, mta.roots is not None) == (name, True)


def test_encrypt_asks_for_a_name_and_verifies_nothing(files: Path) -> None:
    mta = listener(files, {"upstream_tls": '"encrypt"', "upstream_name": '"mta.example"'}).mta
    assert mta.context is not None
    assert (mta.tls_name, mta.roots) == ("mta.example", None)


def test_behind_a_load_balancer_without_tls_of_our_own(files: Path) -> None:
    one = listener(files, {**CLEAR, "proxy_from": '["10.0.0.0/8"]', "require_tls": "true"})
    assert (one.tls, one.certificates) == ("none", None)


def test_no_identity_where_the_mta_trusts_nobody(files: Path) -> None:
    change = {"pass_client": '"none"', "upstream_has_no_trusted_networks": "true"}
    assert listener(files, change).mta.identity_by == "none"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"pass_client": None},
         (' pass_client: is needed, and has no default: "xclient" (Postfix), "proxy-v2" (Postfix, Exim, OpenSMTPD), or '
          '"none" for an MTA that trusts no network')),
        ({"pass_client": '"none"'},
         (' pass_client = "none": the MTA would take every client for this host: write '
          "upstream_has_no_trusted_networks = true once its mynetworks (or the like) does not hold our address")),
        ({"pass_client": '"xclinet"'}, ' pass_client = "xclinet": must be one of "", "xclient", "proxy-v2", "none"'),
        ({"upstream": None}, f" upstream: {UPSTREAM}"),
        ({"upstream": '"mta"'}, f' upstream = "mta": {UPSTREAM}'),
        ({"upstream": '"mta:0"'}, f' upstream = "mta:0": {UPSTREAM}'),
        ({"upstream": '"mta:65536"'}, f' upstream = "mta:65536": {UPSTREAM}'),
        ({"upstream": '"mta:\u0662\u0665"'}, f' upstream = "mta:??": {UPSTREAM}'),
        ({"upstream": '":25"'}, f' upstream = ":25": {UPSTREAM}'),
        ({"upstream": '"[mta]:25"'}, f' upstream = "[mta]:25": {UPSTREAM}'),
        ({"upstream": '"2001:db8::1"'}, f' upstream = "2001:db8::1": {UPSTREAM}'),
        ({"upstream": '"unix:mta.sock"'}, f' upstream = "unix:mta.sock": {UPSTREAM}'),
        ({"upstream": '"unix:/"'}, f' upstream = "unix:/": {UPSTREAM}'),
        ({"upstream": '"m..x:25"'},
         " upstream = \"m..x:25\": 'm..x' is not a domain name: each label must have 1 to 63 octets"),
        ({"upstream_tls": '"verify"'},
         ' upstream_name: is needed for upstream_tls = "verify": the name to verify'),
        ({"upstream_tls": '"verify"', "upstream": '"unix:/run/mta.sock"'},
         ' upstream_name: is needed for upstream_tls = "verify": the name to verify'),
        ({"upstream_tls": '"verify"', "upstream_name": '"a..b"'},
         " upstream_name = \"a..b\": 'a..b' is not a domain name: each label must have 1 to 63 octets"),
        ({"upstream_name": '"mta.example"'},
         ' upstream_name: has a use with upstream_tls = "encrypt" or "verify" only'),
        ({"upstream_ca_file": '"{d}/ca.pem"'}, ' upstream_ca_file: has a use with upstream_tls = "verify" only'),
        ({"upstream_ca_file": '"{d}/ca.pem"', "upstream_tls": '"encrypt"'},
         ' upstream_ca_file: has a use with upstream_tls = "verify" only'),
        ({"upstream_tls": '"verify"', "upstream_name": '"mta.example"', "upstream_ca_file": '"/nowhere.pem"'},
         f' upstream_ca_file = "/nowhere.pem": {NO_FILE}'),
        ({"upstream_tls": '"verify"', "upstream_name": '"mta.example"', "upstream_ca_file": '"{d}/bad.pem"'},
         ' upstream_ca_file = "{d}/bad.pem": {d}/bad.pem: holds no PEM certificate (-----BEGIN CERTIFICATE-----)'),
        ({"certificate": None}, " certificate: is missing: a certificate and its key come together"),
        ({"key": None}, " key: is missing: a certificate and its key come together"),
        ({"certificate": None, "key": None}, ' certificate: is needed for tls = "starttls", with key'),
        ({"certificate": None, "key": None, "tls": '"implicit"'},
         ' certificate: is needed for tls = "implicit", with key'),
        ({"certificate": '"/nowhere.pem"'}, f' certificate = "/nowhere.pem": {NO_FILE}'),
        ({"key": '"/nowhere.pem"'}, f' key = "/nowhere.pem": {NO_FILE}'),
        ({"certificate": '"{d}/bad.pem"'}, ' certificate = "{d}/bad.pem": ' + NO_CERTIFICATE),
        ({"key": '"{d}/bad.pem"'},
         ' key = "{d}/bad.pem": {d}/bad.pem: holds no PEM private key that can be read (-----BEGIN PRIVATE KEY-----)'),
        ({"certificates": '[{certificate = "{d}/bad.pem", key = "{d}/mx.key"}]'},
         ' certificates = "{d}/bad.pem": ' + NO_CERTIFICATE),
        ({"certificates": '[{certificate = "{d}/two.pem", key = "/nowhere.pem"}]'},
         f' certificates = "/nowhere.pem": {NO_FILE}'),
        ({"tls": '"none"'}, ' certificate: has no use with tls = "none"'),
        ({**CLEAR, "certificates": '[{certificate = "{d}/mx.pem", key = "{d}/mx.key"}]'},
         ' certificates: has no use with tls = "none"'),
        ({**CLEAR, "submission": "true"},
         ' tls = "none": a submission listener needs TLS: "starttls" (587) or "implicit" (465)'),
        ({"min_tls": '"1.1"'}, ' min_tls = "1.1": must be one of "1.2", "1.3"'),
        ({"proxy_from": '["10.0.0.1/8"]'},
         f' proxy_from = "10.0.0.1/8": {NETWORK}: 10.0.0.1/8 has host bits set'),
        ({"proxy_from": '["0.0.0.0/1", "128.0.0.0/1"]'},
         ' proxy_from = ["0.0.0.0/1", "128.0.0.0/1"]: 0.0.0.0/0 is a great part of the Internet and ' + ANYBODY),
        ({"normalize_from": '["x"]'},
         f' normalize_from = "x": {NETWORK}: \'x\' does not appear to be an IPv4 or IPv6 network'),
        ({"unlimited_from": '["::ffff:10.0.0.0/104"]'},
         ' unlimited_from = "::ffff:10.0.0.0/104": is IPv4 in IPv6: write the IPv4 network, as in 192.0.2.0/24'),
        ({"max_recipients": "99"}, " max_recipients = 99: must be a whole number without quotes, at least 100"),
        ({"max_message_size": "-1"}, " max_message_size = -1: must be a whole number without quotes, at least 0"),
        ({"protocol": '"lmtp"'}, ' protocol: belongs to listeners with role = "outbound"'),
        ({"clients": '["10.0.0.0/8"]'}, ' clients: belongs to listeners with role = "outbound"'),
        ({"cleartext_from": '["10.0.0.0/8"]'}, ' cleartext_from: belongs to listeners with role = "outbound"'),
        ({"ehlo": '"x.example"'}, ' ehlo: belongs to listeners with role = "outbound"'),
        ({"max_sessions": "5"}, ' max_sessions: belongs to listeners with role = "outbound"'),
    ],
)  # fmt: skip
def test_listener_errors(files: Path, change: dict[str, str | None], error: str) -> None:
    """Each alone: place, key, value, and the way out.  DESIGN §6: how the MTA learns the client has no default."""
    assert errors(files, change) == [PLACE + error.replace("{d}", str(files))]


def test_a_key_of_another_certificate(files: Path) -> None:
    """STLS-01: refused at the start, so STARTTLS is never offered without a certificate."""
    (error,) = errors(files, {"key": '"{d}/two.key"'})
    assert error.startswith(f'{PLACE} certificate = "{files}/mx.pem": ')
    assert "two.key" in error


def test_a_pair_that_lacks_its_key_is_told_once(files: Path) -> None:
    assert errors(files, {"certificates": '[{certificate = "{d}/mx.pem"}]'}) == [
        (
            PLACE + " [[listener.certificates]] 1 key: is missing and has no default; write for example key = "
            '"/etc/smtpguard/tls/privkey.pem"'
        )
    ]


def test_everything_at_once(files: Path) -> None:
    change = {"pass_client": None, "upstream": '"mta"', "key": None, "proxy_from": '["x"]', "submission": "true"}
    assert [error.removeprefix(PLACE + " ").partition(":")[0].partition(" ")[0] for error in errors(files, change)] == [
        "pass_client", "upstream", "key", "proxy_from",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["upstream", "pass_client", "submission", "proxy_from", "received"])
def test_keys_of_the_way_in_on_an_outbound_listener(tmp_path: Path, key: str) -> None:
    value = {"submission": "true", "proxy_from": '["10.0.0.0/8"]', "received": "false"}.get(key, GOOD.get(key))
    path = tmp_path / "x.toml"
    path.write_text(
        'hostname = "a.example"\n[dns]\nresolvers = ["127.0.0.1"]\n[[listener]]\nrole = "outbound"\n'
        f'bind = ["127.0.0.1:2525"]\n{key} = {value}\n'
    )
    found = load(path)
    assert isinstance(found, list)
    assert [str(error) for error in found] == [f'{path}: {PLACE} {key}: belongs to listeners with role = "inbound"']


# -- rules


FINGERPRINT = "ab" * 32


def policy(text: str) -> str:
    """One `[[inbound_policy]]`, its lines divided by semicolons."""
    return "[[inbound_policy]]\n" + text.replace("; ", "\n") + "\n"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('require = "tls"; recipient_domain = "Secret.example"', InboundRule(RecipientDomain("secret.example"))),
        ('require = "tls"; recipient_domain = ".secret.example"', InboundRule(RecipientDomain(".secret.example"))),
        ('require = "tls"; sender_domain = "*"', InboundRule(SenderDomain("*"))),
        ('require = "tls"; client = "192.0.2.0/24"', InboundRule(ClientNetwork(ip_network("192.0.2.0/24")))),
        (
            ('require = "tls"; client = "192.0.2.1"; min_tls = "1.3"; reason = "contract"; expires = 2099-12-31; '
             'after_expiry = "drop"; mode = "shadow"; on_fail = "tempfail"'),
            InboundRule(
                ClientNetwork(ip_network("192.0.2.1/32")), min_tls=TlsVersion.TLS_1_3, reason="contract",
                expires=date(2099, 12, 31), after_expiry=AfterExpiry.DROP, mode=Mode.SHADOW, on_fail=OnFailure.TEMPFAIL,
            ),
        ),
        (
            ('require = "client-cert"; sender_domain = "a.example"; ca_file = "{d}/ca.pem"; '
             'names = ["mx.a.example", ".out.a.example"]'),
            InboundRule(
                SenderDomain("a.example"), Require.CLIENT_CERT,
                CertificateDemand("{d}/ca.pem", (DnsId(Domain("mx.a.example")), DotDomain(Domain("out.a.example")))),
            ),
        ),
        (
            f'require = "client-cert"; sender_domain = "a.example"; fingerprints = ["{FINGERPRINT}"]',
            InboundRule(
                SenderDomain("a.example"), Require.CLIENT_CERT,
                CertificateDemand(fingerprints=(bytes.fromhex(FINGERPRINT),)),
            ),
        ),
    ],
)  # fmt: skip
def test_rules(files: Path, text: str, rule: InboundRule) -> None:
    """CH-30."""
    (found,) = listener(files, tail=policy(text)).rules.rules
    assert repr(found).replace(str(files), "{d}") == repr(rule)


def test_one_scope_may_have_a_rule_and_a_shadow(files: Path) -> None:
    line = 'require = "tls"; recipient_domain = "secret.example"'
    tail = policy(line) + policy(line + '; mode = "shadow"') + '[inbound]\nrua = ["tlsrpt@example.org"]\n'
    rules = listener(files, {"require_tls": "true"}, tail).rules
    assert [rule.mode for rule in rules.rules] == [Mode.ENFORCE, Mode.SHADOW]
    assert rules.exempt == {Mailbox(b"tlsrpt", Domain("example.org"))}
    assert rules.require_tls


MISSING = ' require: is missing and has no default; write for example require = "tls"'
NO_LABEL = "is not a domain name: each label must have 1 to 63 octets"
ONE = "speaks about one of recipient_domain, sender_domain and client: write exactly one"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('recipient_domain = "a.example"', MISSING),
        ('require = "tsl"; recipient_domain = "a.example"',
         ' require = "tsl": must be one of "tls", "client-cert"'),
        ('require = "tls"', f": {ONE}"),
        ('require = "tls"; recipient_domain = "a.example"; client = "192.0.2.1"', f" (a.example): {ONE}"),
        ('require = "tls"; recipient_domain = "a..example"',
         (f" (a..example) recipient_domain = \"a..example\": 'a..example' {NO_LABEL}; right would be "
          '"example.org", ".example.org" or "*"')),
        ('require = "tls"; sender_domain = "x y"',
         (" (x y) sender_domain = \"x y\": 'x y' is not a domain name: only letters, digits, '-' and '_' are allowed; "
          'right would be "example.org", ".example.org" or "*"')),
        ('require = "tls"; client = "192.0.2.1/24"',
         (" (192.0.2.1/24) client = \"192.0.2.1/24\": '192.0.2.1/24' is not a network; right would be "
          '"192.0.2.0/24", without host bits')),
        ('require = "tls"; client = "192.0.2.1"; min_tls = "1.1"',
         ' (192.0.2.1) min_tls = "1.1": \'1.1\' is not a lowest TLS version; it must be "1.2" or "1.3"'),
        ('require = "client-cert"; client = "192.0.2.1"',
         ' (192.0.2.1): require = "client-cert" needs ca_file, or at least one entry in fingerprints'),
        (f'require = "client-cert"; client = "192.0.2.1"; ca_file = "{{d}}/ca.pem"; fingerprints = ["{FINGERPRINT}"]',
         " (192.0.2.1): ca_file and fingerprints exclude each other: a fingerprint needs no authority"),
        (f'require = "client-cert"; client = "192.0.2.1"; fingerprints = ["{FINGERPRINT}"]; names = ["a.example"]',
         " (192.0.2.1): names need ca_file: anybody can make a certificate with a name"),
        ('require = "tls"; client = "192.0.2.1"; ca_file = "{d}/ca.pem"',
         ' (192.0.2.1): ca_file, names and fingerprints belong to require = "client-cert"'),
        ('require = "client-cert"; client = "192.0.2.1"; ca_file = "/nowhere.pem"',
         f' (192.0.2.1) ca_file = "/nowhere.pem": {NO_FILE}'),
        ('require = "client-cert"; client = "192.0.2.1"; ca_file = "{d}/ca.pem"; names = ["a.example", "nexthop"]',
         ' (192.0.2.1) names = "nexthop": must be a host name, or ".example.org" for those below it'),
        ('require = "client-cert"; client = "192.0.2.1"; fingerprints = ["zz"]',
         (" (192.0.2.1) fingerprints = \"zz\": 'zz' is not a fingerprint: it must be the SHA-256 or SHA-512 digest of "
          "a certificate or public key in hex")),
        ('require = "tls"; client = "192.0.2.1"; after_expiry = "drop"',
         " (192.0.2.1): after_expiry has no meaning without expires"),
        ('require = "tls"; client = "192.0.2.1"; expires = "soon"',
         ' expires = "soon": must be a day without quotes, as in 2027-12-31'),
        ('require = "tls"; client = "192.0.2.1"; mode = "off"', ' mode = "off": must be one of "enforce", "shadow"'),
        ('require = "tls"; client = "192.0.2.1"; on_fail = "x"',
         ' on_fail = "x": must be one of "permfail", "tempfail"'),
    ],
)  # fmt: skip
def test_rule_errors(files: Path, text: str, error: str) -> None:
    """Each alone; a `require` that cannot be read is an error like any other, not the end of check-config."""
    assert errors(files, {}, policy(text)) == ["[[inbound_policy]] 1" + error.replace("{d}", str(files))]


def test_two_rules_for_one_scope(files: Path) -> None:
    """However it is written."""
    tail = policy('require = "tls"; client = "192.0.2.1"') + policy('require = "tls"; client = "192.0.2.1/32"')
    assert errors(files, {}, tail) == [
        (
            "[[inbound_policy]] 2 (192.0.2.1/32): speaks about client 192.0.2.1/32, as "
            "[[inbound_policy]] 1 (192.0.2.1) does: one of them must go"
        )
    ]


def test_a_report_address_that_is_none(files: Path) -> None:
    assert errors(files, {}, '[inbound]\nrua = ["mailto:x"]\n') == [
        '[inbound] rua = "mailto:x": \'mailto:x\' is not a mail address; right would be "tlsrpt@example.org"'
    ]


# -- warnings


def test_check_config_warns(tmp_path: Path) -> None:
    """What is allowed and may not do what it seems to: rules and certificates of the way in."""
    write_pair(tmp_path, "mx", dated("mx.example.org", days=-1))
    tail = policy('require = "tls"; recipient_domain = "*"') + policy(
        'require = "tls"; client = "192.0.2.1"; expires = 2020-01-01'
    )
    done = CliRunner().invoke(cli.main, ["check-config", "--config", str(write(tmp_path, {}, tail))])
    assert done.exit_code == 0, done.output
    for warning in (
        "warning: inbound policy recipient domain *: everybody who cannot speak TLS is refused",
        "warning: inbound policy client 192.0.2.1/32: expired on 2020-01-01: still applied",
        f"warning: {tmp_path}/mx.pem: the certificate expired on ",
    ):
        assert warning in done.output
    assert "well (1 listener, 2 rules)" in done.output

"""Whom do we ask for DNS, and is the answer believed?  `[dns]` and `[dns.canary]`."""

from pathlib import Path

from smtpguard.config.findings import Findings
from smtpguard.config.schema import CanaryTable, File
from smtpguard.dns.canary import CanarySettings
from smtpguard.dns.resolver import ResolverAddress, ResolverSettings, resolvers_from_resolv_conf
from smtpguard.names import NameInvalid, parse_address, parse_domain

RESOLV_CONF = Path("/etc/resolv.conf")


def resolver_settings(found: Findings, file: File, resolv_conf: Path = RESOLV_CONF) -> ResolverSettings:
    """The resolvers of `[dns]`, else those of resolv.conf(5)."""
    table = file.dns
    addresses = found.parsed_all("[dns]", "resolvers", table.resolvers, parse_resolver)
    trust_ad = table.trust_ad
    if not table.resolvers:
        addresses, vouched = _from_resolv_conf(found, resolv_conf)
        trust_ad = trust_ad or vouched  # each address carries whether the file vouches for it
    return ResolverSettings(
        resolvers=addresses,
        trust_ad=trust_ad,
        dnssec=table.dnssec,
        timeout_seconds=table.timeout_seconds,
        attempts=table.attempts,
        cache_entries=table.cache_entries,
        ca_file=Path(file.tls.ca_file) if file.tls.ca_file else None,
    )


def _from_resolv_conf(found: Findings, path: Path) -> tuple[tuple[ResolverAddress, ...], bool]:
    way_out = 'write resolvers = ["127.0.0.1"]'
    try:
        addresses, vouched = resolvers_from_resolv_conf(path.read_text("utf-8", "replace"))
    except OSError as error:
        found.wrong("[dns]", "resolvers", "", f"is missing, and {path} cannot be read: {error.strerror}; {way_out}")
        return (), False
    if not addresses:
        found.wrong("[dns]", "resolvers", "", f"is missing, and {path} names none; {way_out}")
    return addresses, vouched


def canary_settings(found: Findings, table: CanaryTable) -> CanarySettings:
    """The three names that show whether the resolver validates."""
    place = "[dns.canary]"
    return CanarySettings(
        signed=found.name(place, "signed", table.signed),
        unsigned=found.name(place, "unsigned", table.unsigned),
        broken=found.name(place, "broken", table.broken),
        interval_seconds=table.interval_seconds,
    )


def parse_resolver(text: str) -> ResolverAddress:
    """`127.0.0.1`, `127.0.0.1:5353`, `[::1]:53`, `tls://[2001:db8::1]#dns.example`.  Raises NameInvalid."""
    scheme = text.startswith("tls://")
    rest, mark, name = text.removeprefix("tls://").partition("#")
    tls_name = parse_domain(name) if mark else None
    if scheme and tls_name is None:
        raise NameInvalid("DNS over TLS needs the name to verify, as in tls://192.0.2.1#dns.example")
    if mark and not scheme:
        raise NameInvalid("a name after # belongs to tls://, as in tls://192.0.2.1#dns.example")
    host, digits = _host_and_port(rest)
    port = 853 if scheme else 53
    if digits:
        if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:6]) < 65536:
            raise NameInvalid("the port must be a number from 1 to 65535")
        port = int(digits)
    try:
        return ResolverAddress(parse_address(host), port, tls_name)
    except NameInvalid as error:
        raise NameInvalid(f"{error}; right would be 127.0.0.1, [::1]:5353 or tls://192.0.2.1#dns.example") from error


def _host_and_port(text: str) -> tuple[str, str]:
    """`[::1]:53`, `127.0.0.1:53`, `::1`: address and digits, perhaps none.  Raises NameInvalid."""
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket or (after and not after.startswith(":")) or after == ":":
            raise NameInvalid("after the address only ']' and ':' with a port may stand, as in [::1]:53")
        return host, after[1:]
    if text.count(":") == 1:
        host, _, digits = text.partition(":")
        if not digits:
            raise NameInvalid("the port is missing after ':'")
        return host, digits
    return text, ""

"""config.environment: what `SMTPGUARD_*` changes, and how errors name it."""

from pathlib import Path

import msgspec
import pytest

from smtpguard.config.build import Settings, load
from smtpguard.config.environment import VARIABLES
from smtpguard.config.schema import File

FILE = """
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10027"]
[outbound]
own_addresses = ["203.0.113.1"]
[log]
level = "debug"
"""
NAME = {"SMTPGUARD_HOSTNAME": "mail.example.org", "SMTPGUARD_RESOLVERS": "127.0.0.1"}


def loaded(directory: Path, environ: dict[str, str], text: str = FILE) -> Settings | list[str]:
    path = directory / "x.toml"
    path.write_text(text)
    found = load(path, environ)
    return found if isinstance(found, Settings) else [str(error) for error in found]


def test_each_variable_takes_the_place_of_a_key(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        {
            "SMTPGUARD_HOSTNAME": "pod.example.org",
            "SMTPGUARD_STATE_DIR": "/state",
            "SMTPGUARD_DRAIN_SECONDS": "7",
            "SMTPGUARD_RESOLVERS": "127.0.0.1:5353, ::1",
            "SMTPGUARD_OWN_ADDRESSES": "192.0.2.1 2001:db8::1",
            "SMTPGUARD_ALLOW_DESTINATIONS": "10.0.0.0/8",
            "SMTPGUARD_ADMIN_BIND": "127.0.0.1:1",
            "SMTPGUARD_METRICS_BIND": "0.0.0.0:9826",
            "SMTPGUARD_LOG_FORMAT": "json",
            "SMTPGUARD_LOG_LEVEL": "",
            "SMTPGUARD_CONFIG": "/read/by/the/command/line",
            "PATH": "/bin",
        },
    )
    assert isinstance(found, Settings), found
    assert (found.hostname, str(found.state_dir), found.drain_seconds) == ("pod.example.org", "/state", 7)
    assert [(str(one.address), one.port) for one in found.resolver.resolvers] == [("127.0.0.1", 5353), ("::1", 53)]
    assert {str(address) for address in found.outbound.addresses.own_addresses} == {"192.0.2.1", "2001:db8::1"}
    assert [str(network) for network in found.outbound.addresses.allow] == ["10.0.0.0/8"]
    assert (str(found.admin), str(found.metrics)) == ("127.0.0.1:1", "0.0.0.0:9826")
    assert (found.log.format, found.log.level) == ("json", "debug")


def test_the_state_directory_of_systemd_comes_after_ours(tmp_path: Path) -> None:
    environ = {**NAME, "STATE_DIRECTORY": "/var/lib/private/smtpguard"}
    found = loaded(tmp_path, environ)
    assert isinstance(found, Settings), found
    assert str(found.state_dir) == "/var/lib/private/smtpguard"
    ours = loaded(tmp_path, {**environ, "SMTPGUARD_STATE_DIR": "/state"})
    assert isinstance(ours, Settings), ours
    assert str(ours.state_dir) == "/state"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("SMTPGUARD_LOG_LEVEL", "loud", 'LOG_LEVEL = "loud": must be one of "debug", "info", "warning", "error"'),
        ("SMTPGUARD_DRAIN_SECONDS", "30s", 'DRAIN_SECONDS = "30s": must be a whole number without quotes, at least 1'),
        ("SMTPGUARD_DRAIN_SECONDS", "9" * 5000, "must be a whole number without quotes, at least 1"),
        ("SMTPGUARD_HOSTNAME", "mail..org", "HOSTNAME = \"mail..org\": 'mail..org' is not a domain name"),
        ("SMTPGUARD_RESOLVERS", "dns.example", "RESOLVERS = \"dns.example\": 'dns.example' is not an IP address"),
        ("SMTPGUARD_ADMIN_BIND", "0.0.0.0:9825", "must be a loopback address or a unix socket, or token_file"),
        ("SMTPGUARD_METRICS_BIND", "9826", 'METRICS_BIND = "9826": 9826: an address and a port are needed'),
        ("SMTPGUARD_METRICS_BIND", "127.0.0.1:9825", "is bound twice"),
        ("SMTPGUARD_LOGLEVEL", "info", "is not a variable of smtpguard; did you mean SMTPGUARD_LOG_LEVEL?"),
        ("SMTPGUARD_COLOUR", "red", "is not a variable of smtpguard; they are SMTPGUARD_CONFIG, SMTPGUARD_HOSTNAME,"),
    ],
)
def test_errors_name_the_variable(tmp_path: Path, name: str, value: str, error: str) -> None:
    (found,) = loaded(tmp_path, {**NAME, name: value})
    assert error in found
    if "bound twice" not in error:
        assert found.startswith(f"environment: {name}")


def test_a_list_without_entries_counts_as_not_set(tmp_path: Path) -> None:
    """A template that joins nothing with commas must not empty what the file says."""
    for value in (",", " , ,"):
        found = loaded(tmp_path, NAME | {"SMTPGUARD_OWN_ADDRESSES": value})
        assert isinstance(found, Settings), found
        assert {str(address) for address in found.outbound.addresses.own_addresses} == {"203.0.113.1"}


def test_unknown_names_are_told_with_an_unreadable_file(tmp_path: Path) -> None:
    found = load(tmp_path / "none.toml", {"SMTPGUARD_X": "1"})
    assert isinstance(found, list)
    assert [error.file for error in found] == ["environment", str(tmp_path / "none.toml")]


def test_a_missing_host_name_names_both_ways(tmp_path: Path) -> None:
    (error,) = loaded(tmp_path, {"SMTPGUARD_RESOLVERS": "127.0.0.1"})
    assert 'hostname = "mx1.example.org", or set SMTPGUARD_HOSTNAME' in error


def test_a_wrong_table_stays_an_error_of_the_file(tmp_path: Path) -> None:
    found = loaded(tmp_path, {**NAME, "SMTPGUARD_LOG_LEVEL": "info"}, "log = 5\n" + FILE.replace("[log]\nlevel", "#"))
    assert isinstance(found, list)
    assert found[0].endswith("log = 5: is a table: write [log]")


@pytest.mark.parametrize(
    "name",
    [
        "SMTPGUARD_SERVICE_HOST", "SMTPGUARD_SERVICE_PORT", "SMTPGUARD_SERVICE_PORT_SMTP", "SMTPGUARD_PORT",
        "SMTPGUARD_PORT_25_TCP", "SMTPGUARD_PORT_25_TCP_ADDR", "SMTPGUARD_OUTBOUND_SERVICE_HOST",
        "SMTPGUARD_OUTBOUND_PORT_10027_TCP_PROTO",
    ],
)  # fmt: skip
def test_service_links_are_nobodys_mistake(tmp_path: Path, name: str) -> None:
    """A Service called smtpguard puts such variables into every container of its namespace."""
    assert isinstance(loaded(tmp_path, {**NAME, name: "10.0.0.1"}), Settings)


def test_every_variable_is_a_key_and_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    tables = {"": File, **{name: field.type for name, field in _fields(File).items()}}
    for variable, (table, key) in VARIABLES.items():
        assert key in _fields(tables[table]), variable
        assert f"`{variable}`" in text, variable


def _fields(table: type) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(table)}

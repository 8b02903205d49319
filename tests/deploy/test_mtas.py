"""The examples for other MTAs, read by those MTAs themselves (Postfix: tests/interop runs its files verbatim)."""

import re
from pathlib import Path

from tests.deploy.containers import HOME, ROOT, output

MTAS = HOME / "mtas"
DEPLOY = ROOT / "deploy"


def test_exim(tmp_path: Path) -> None:
    """A whole configuration around it; where mail goes, and one recipient domain a transaction."""
    config = tmp_path / "exim.conf"
    config.write_text(
        "primary_hostname = mta.example.org\ndomainlist local_domains = @\ndomainlist relay_to_domains =\n"
        f"keep_environment =\nspool_directory = {tmp_path}\nlog_file_path = {tmp_path}/%slog\n"
        + (DEPLOY / "exim" / "smtpguard.conf").read_text()
        + "begin retry\n* * F,2h,15m\n"
    )
    exim = (MTAS / "usr/sbin/exim4", "-C", config)
    said = output([*exim, "-bt", "bob@partner.example"])
    assert "router = smtpguard, transport = smtpguard" in said
    assert "host 127.0.0.1 [127.0.0.1] port=10026" in said
    transport = output([*exim, "-bP", "transport", "smtpguard"]).splitlines()
    assert {"no_multi_domain", "allow_localhost", "port = 10026", "hosts_avoid_tls = *"} <= set(transport)


def test_opensmtpd(tmp_path: Path) -> None:
    config = tmp_path / "smtpd.conf"
    local = 'listen on lo\naction "local" maildir\nmatch for local action "local"\n'
    config.write_text(local + (DEPLOY / "opensmtpd" / "smtpguard.conf").read_text())
    output([MTAS / "usr/sbin/smtpd", "-n", "-f", config])


def test_sendmail(tmp_path: Path) -> None:
    """m4 makes sendmail.cf of it: the relay mailer has port and recipient limit."""
    source = tmp_path / "sendmail.mc"
    source.write_text(
        "OSTYPE(`linux')dnl\n" + (DEPLOY / "sendmail" / "smtpguard.mc").read_text() + "MAILER(`smtp')dnl\n"
    )
    directory = MTAS / "usr/share/sendmail/cf"
    made = output([MTAS / "usr/bin/m4", f"-D_CF_DIR_={directory}/", directory / "m4/cf.m4", source], cwd=directory)
    assert "\nDSrelay:[127.0.0.1]\n" in made
    (mailer,) = re.findall(r"^Mrelay,.*\n(?:\t.*\n)+", made, re.MULTILINE)
    assert "A=TCP $h 10026\n" in mailer
    assert "r=1," in mailer
    assert "\nO Timeout.datafinal=15m\n" in made

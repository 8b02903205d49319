"""Mail hosts that receive, their zones and MTA-STS policies.  Each lab gives them addresses of its own."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from smtpguard.sandbox.certificates import Credential, tlsa
from tests.interop.processes import Postfix, spawn, spawn_exim, spawn_opensmtpd
from tests.interop.zones import Zone

Processes = list[subprocess.Popen[bytes]]


def site(address: str, signed_with: Credential | None = None, more: str = "", *, bogus: bool = False) -> Zone:
    """A domain whose mail host is mx, at `address`; where that shows a certificate that is to be published, by DANE."""
    records = f"@ MX 10 mx\nmx {'AAAA' if ':' in address else 'A'} {address}\nwww A 192.0.2.1\n{more}"
    if signed_with is not None:
        records += f"_25._tcp.mx TLSA {tlsa(3, 1, 1, signed_with.der)}\n"
    return Zone(records, signed=signed_with is not None, bogus=bogus)


def receiving_postfix(postfix: Postfix, directory: Path, domains: Sequence[str], services: str) -> None:
    """`postfix` takes the mail of `domains` into `directory`/mail, at the addresses of `services`; see `smtpd`."""
    mail = directory / "mail"
    mail.mkdir()
    shutil.chown(mail, "nobody", "nogroup")
    users = directory / "users"
    users.write_text("/^user[0-9]*@/ all/\n")
    postfix.start(
        f"""myhostname = mx.test
mydestination =
virtual_mailbox_domains = {" ".join(domains)}
virtual_mailbox_base = {mail}
virtual_mailbox_maps = regexp:{users}
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_tls_security_level = may
smtpd_recipient_restrictions = reject_unauth_destination
smtpd_client_connection_count_limit = 0
""",
        services,
    )


def smtpd(address: str, name: str, shown: Credential) -> str:
    """The line of master.cf for one mail host of this name."""
    where = f"[{address}]:25" if ":" in address else f"{address}:25"
    return f"{where} inet n - n - - smtpd\n  -o smtpd_tls_chain_files={shown.pem_file}\n  -o myhostname={name}\n"


def receiving_exim(processes: Processes, directory: Path, address: str, shown: Credential) -> None:
    """Exim as the mail host mx.exim.test."""
    directory.mkdir()
    pem = directory / "exim.pem"
    shutil.copy(shown.pem_file, pem)
    shutil.chown(pem, "Debian-exim")
    spawn_exim(
        processes,
        directory,
        f"""primary_hostname = mx.exim.test
domainlist local_domains = exim.test
daemon_smtp_ports = 25
local_interfaces = {address}
tls_advertise_hosts = *
tls_certificate = {pem}
tls_privatekey = {pem}
acl_smtp_rcpt = rcpt
""",
        f"""begin acl
rcpt:
  accept domains = +local_domains
         local_parts = ^user[0-9]*\\$
  deny
begin routers
local:
  driver = accept
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {directory}/mail
  maildir_format
  user = Debian-exim
""",
    )


def receiving_opensmtpd(processes: Processes, directory: Path, address: str) -> None:
    """OpenSMTPD as the mail host mx.osmtpd.test.

    In clear: Debian 12's version 6.8 fails every TLS handshake ("EVP lib"), as it was not made for OpenSSL 3.
    """
    spawn_opensmtpd(
        processes,
        directory,
        f"""table users {{ "@" = "nobody" }}
listen on {address} port 25 hostname mx.osmtpd.test
action "in" maildir "{directory}/mail" virtual <users>
match from any for domain "osmtpd.test" action "in"
""",
        (address, 25),
    )


def serve_policies(
    processes: Processes, directory: Path, address: str, names: Sequence[str], shown: Credential
) -> None:
    """nginx serves a policy "enforce" for each <name>.test, whose only mail host is mx.<name>.test."""
    for name in names:
        root = directory / f"mta-sts.{name}.test" / ".well-known"
        root.mkdir(parents=True)
        (root / "mta-sts.txt").write_text(f"version: STSv1\nmode: enforce\nmx: mx.{name}.test\nmax_age: 86400\n")
    config = directory / "nginx.conf"
    config.write_text(
        f"""daemon off; pid {directory}/pid; error_log stderr; user root;
events {{}}
http {{
  access_log off; default_type text/plain; types {{ }}
  server {{
    listen {address}:443 ssl; root {directory}/$host;
    ssl_certificate {shown.pem_file}; ssl_certificate_key {shown.pem_file};
  }}
}}
"""
    )
    spawn(processes, directory.with_suffix(".log"), "nginx", "-c", config, ready=(directory / "pid").exists)

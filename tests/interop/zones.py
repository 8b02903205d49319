"""The lab's DNS: knot serves a small signed tree, unbound validates it with the configuration that deploy/ ships."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop.processes import run

KNOT, UNBOUND = "127.53.0.1", "127.0.0.1"
TRUSTED = f"{UNBOUND}\noptions edns0 trust-ad"
"""UNBOUND in a resolv.conf as systemd-resolved writes it: programs may believe what it says of DNSSEC."""
SHIPPED = Path(__file__).parents[2] / "deploy" / "unbound" / "smtpguard.conf"
_SOA = "$TTL 5\n@ SOA ns.test. hostmaster.test. 1 3600 600 86400 5\n@ NS ns.test.\n"


@dataclass(frozen=True, slots=True)
class Zone:
    """One domain below test.: its records, whether it is signed, and whether the parent's DS is the wrong one."""

    records: str
    signed: bool = False
    bogus: bool = False


def write_knot(directory: Path, zones: Mapping[str, Zone], address: str = KNOT) -> Path:
    """Zone files, keys and knot.conf in `directory`, and for unbound root.anchor and root.hints; names are labels.
    `address` is where knot listens."""
    files = directory / "zones"
    files.mkdir(parents=True)
    signed = [".", "test.", *(f"{name}.test." for name, zone in zones.items() if zone.signed)]
    unsigned = [f"{name}.test." for name, zone in zones.items() if not zone.signed]
    config = directory / "knot.conf"
    config.write_text(_knot(directory, files, signed, unsigned, address))
    ds = {}
    for zone in signed:
        run("keymgr", "-c", config, zone, "generate", "algorithm=ecdsap256sha256", "ksk=yes", "zsk=yes")
        lines = run("keymgr", "-c", config, zone, "ds").splitlines()
        ds[zone] = next(" ".join(w[2:]) for line in lines if (w := line.split())[4] == "2")
    (files / ".zone").write_text(f"{_SOA}test. NS ns.test.\ntest. DS {ds['test.']}\nns.test. A {address}\n")
    parent = f"{_SOA}ns A {address}\n"
    for name, described in zones.items():
        parent += f"{name} NS ns.test.\n"
        if described.signed:
            parent += f"{name} DS {ds['test.' if described.bogus else f'{name}.test.']}\n"
        (files / f"{name}.test.zone").write_text(_SOA + described.records)
    (files / "test.zone").write_text(parent)
    (directory / "root.anchor").write_text(f". DS {ds['.']}\n")
    (directory / "root.hints").write_text(f". NS ns.test.\nns.test. A {address}\n")
    return config


def _knot(directory: Path, files: Path, signed: Sequence[str], unsigned: Sequence[str], address: str) -> str:
    text = [
        f'server:\n    rundir: "{directory}"\n    listen: [ "{address}@53" ]',
        f'database:\n    storage: "{directory}"\n    kasp-db: "keys"\n    journal-db: "journal"',
        '    timer-db: "timers"',
        "log:\n  - target: stderr\n    any: info",
        "policy:\n  - id: lab\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n    manual: on",
        f'template:\n  - id: default\n    storage: "{files}"\n    zonefile-sync: -1\n    zonefile-load: whole',
        f'    journal-content: none\n  - id: signed\n    storage: "{files}"\n    zonefile-sync: -1',
        "    zonefile-load: whole\n    dnssec-signing: on\n    dnssec-policy: lab",
        "zone:",
    ]
    text += [f'  - domain: "{zone}"\n    template: signed\n    file: "{zone}zone"' for zone in signed]
    text += [f'  - domain: "{zone}"\n    file: "{zone}zone"' for zone in unsigned]
    return "\n".join(text) + "\n"


def write_unbound(directory: Path, more: str = "") -> Path:
    """unbound.conf: the shipped file as it is, beside what Debian's package configures (anchor) and the lab's root.

    `more`: further lines of its `server:` clause.
    """
    config = directory / "unbound.conf"
    shutil.copy(SHIPPED, directory / "shipped.conf")
    config.write_text(
        f"""server:
    directory: "{directory}"
    pidfile: ""
    chroot: ""
    username: ""
    use-syslog: no
    root-hints: "{directory}/root.hints"
    trust-anchor-file: "{directory}/root.anchor"
    # The lab's name server is on loopback, and test. is a name that unbound keeps from the Internet.
    do-not-query-localhost: no
    local-zone: "test." nodefault
{more}remote-control:
    control-enable: no
include-toplevel: "{directory}/shipped.conf"
"""
    )
    run("unbound-checkconf", config)
    return config


def ask(server: str, name: str, rdtype: str) -> str:
    """kdig's whole answer, flags included; empty when there was none."""
    done = subprocess.run(
        ["kdig", f"@{server}", "+adflag", "+edns", "+timeout=1", "+retry=0", name, rdtype],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""

"""Importing a pure module loads no I/O library and no impure module of ours (import-linter cannot see `__init__`)."""

import subprocess
import sys

import pytest

PURE = (
    "smtpguard.names",
    "smtpguard.reasons",
    "smtpguard.events",
    "smtpguard.smtp.server",
    "smtpguard.smtp.client",
    "smtpguard.smtp.body",
    "smtpguard.smtp.trace",
    "smtpguard.dns.records",
    "smtpguard.dns.cache",
    "smtpguard.tls.chain",
    "smtpguard.tls.identity",
    "smtpguard.tls.pkix",
    "smtpguard.tls.dane",
    "smtpguard.tls.outcome",
    "smtpguard.net.limits",
    "smtpguard.mtasts.parse",
    "smtpguard.policy.engine",
    "smtpguard.outbound.routes",
    "smtpguard.policy.inbound",
    "smtpguard.policy.scopes",
    "smtpguard.smtp.forwarded",
    "smtpguard.smtp.proxy_header",
    "smtpguard.tls.clienthello",
    "smtpguard.tls.client_identity",
    "smtpguard.inbound.relay",
    "smtpguard.inbound.manners",
    "smtpguard.inbound.gate",
)

FORBIDDEN = (
    "trio",
    "ssl",
    "sqlite3",
    "prometheus_client",
    "h11",
    "smtpguard.net.wire",
    "smtpguard.dns.resolver",
    "smtpguard.mtasts.store",
    "smtpguard.clock",
)


@pytest.mark.parametrize("module", PURE)
def test_pure_module_loads_no_io(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {FORBIDDEN!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []

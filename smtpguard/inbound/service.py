"""What lives as long as an inbound listener does?  Its MTA, its certificates, its counters.

DESIGN §6 (certificate reload, open-relay probe).  A reload swaps `listener`; a session that runs keeps what it took.
"""

from collections.abc import Callable, Mapping
from random import SystemRandom
from types import MappingProxyType

import trio

from smtpguard.clock import Clock, Ids
from smtpguard.dns.own import find_own_tlsa
from smtpguard.dns.records import TlsaFound
from smtpguard.dns.resolver import Lookups
from smtpguard.events import CertificateAlert, CertificateEvent, Emit
from smtpguard.inbound.gate import Gate
from smtpguard.inbound.profile import MtaWatch
from smtpguard.inbound.settings import InboundListener
from smtpguard.inbound.upstream import MtaConnector
from smtpguard.names import Domain
from smtpguard.net.sessions import Sessions
from smtpguard.reasons import printable
from smtpguard.tls.certificates import CertificateFiles, ServerCertificates, judge_own_chain
from smtpguard.tls.chain import CertChain
from smtpguard.tls.pkix import RootStore

_CERTIFICATE_SECONDS = 60.0
_TLSA_SECONDS = 3600.0
_NONE: Mapping[CertificateFiles, CertChain] = MappingProxyType({})


class Inbound:
    """One inbound listener at work.

    `sessions` are the clients', `mta_wires` watches the deadlines of the connections to the MTA.  `roots` gives the
    authorities in a rule's CA file.
    """

    def __init__(
        self,
        listener: InboundListener,
        *,
        hostname: Domain,
        lookups: Lookups,
        roots: Callable[[str | None], RootStore],
        sessions: Sessions,
        mta_wires: Sessions,
        ids: Ids,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self.hostname = hostname
        self.lookups = lookups
        self.roots = roots
        self.sessions = sessions
        self.clock = clock
        self.emit = emit
        self.gate = Gate()
        self.handshakes = 0
        """TLS handshakes under way."""
        self.ids = ids
        self._mta_wires = mta_wires
        self._random = SystemRandom()
        self._listener = listener
        self._tlsa_problems: tuple[str, ...] = ()
        self.certificates = listener.certificates
        self.connector = self._connector()
        self.watch = MtaWatch(lambda: self._listener, lambda: self.connector, clock, emit)
        self._tell_certificates("loaded")

    @property
    def listener(self) -> InboundListener:
        """What new sessions follow."""
        return self._listener

    def reload(self, listener: InboundListener) -> None:
        """Follow other settings from now on; a new way to the MTA is probed before anybody is greeted."""
        old, self._listener = self._listener, listener
        self.certificates = listener.certificates
        self._tell_certificates("reloaded")
        if (old.mta, old.submission, old.times) != (listener.mta, listener.submission, listener.times):
            self.connector = self._connector()
            self.watch.restart()
        else:
            self.watch.wake()

    @property
    def tlsa_problems(self) -> tuple[str, ...] | None:
        """What the last comparison with our own TLSA records found wrong; None where there is nothing to compare."""
        listener = self._listener
        if self.certificates is None or listener.tls != "starttls" or listener.submission:
            return None
        return self._tlsa_problems

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the MTA and the certificates, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_certificates)
            nursery.start_soon(self._watch_tlsa)
            await nursery.start(self.watch.run)
            task_status.started()

    # -- certificates

    async def _watch_certificates(self) -> None:
        """Take changed files over while running: certbot and Kubernetes tell nobody (SUB-05)."""
        while True:
            await trio.sleep(_CERTIFICATE_SECONDS * self._random.uniform(0.9, 1.1))
            self.look_at_certificates()

    def look_at_certificates(self) -> None:
        """Read the files again where they changed, or where the ticket keys are due (TLS-08); a bad pair keeps the old
        one."""
        now = self.clock.now()
        if self.certificates is None:
            return
        changed = self.certificates.changed()
        if not changed and not self.certificates.is_due(now):
            return
        old = {certificate.files: certificate.chain for certificate in self.certificates.certificates}
        reloaded = self.certificates.reload(now)
        self.certificates = reloaded.certificates
        for problem in reloaded.problems:
            self.emit(CertificateAlert(listener=self._listener.name, event="failed", detail=problem))
        if changed:
            self._tell_certificates("reloaded", besides=old if reloaded.problems else {})

    async def _watch_tlsa(self) -> None:
        """Once an hour: would mail hosts that honour DANE still deliver to us?"""
        while True:
            await self.check_tlsa()
            await trio.sleep(_TLSA_SECONDS * self._random.uniform(0.9, 1.1))

    async def check_tlsa(self) -> None:
        """Compare the chain that is served for our own name with the TLSA records published for it (DANE-45).

        On port 25 only: elsewhere clients do not look.  A new problem is told once, until it changes.
        """
        certificates = self.certificates
        if certificates is None or self.tlsa_problems is None:
            return
        found = await find_own_tlsa(self.lookups, self.hostname)
        if not isinstance(found, TlsaFound):
            self._tlsa_problems = ()
            return
        chain = certificates.choose(found.base_domain).chain
        problems = judge_own_chain(chain, found, (self.hostname,), self.clock.now())
        if problems != self._tlsa_problems:
            for problem in problems:
                self.emit(CertificateAlert(listener=self._listener.name, event="tlsa", detail=printable(problem, 400)))
        self._tlsa_problems = problems

    def _tell_certificates(self, event: str, besides: Mapping[CertificateFiles, CertChain] = _NONE) -> None:
        """Tell of every certificate but those that still serve the chain they did in `besides`."""
        certificates: ServerCertificates | None = self.certificates
        if certificates is None:
            return
        for certificate in certificates.certificates:
            if besides.get(certificate.files) == certificate.chain:
                continue
            self.emit(
                CertificateEvent(
                    listener=self._listener.name,
                    event=event,
                    file=printable(str(certificate.files.certificate)),
                    names=certificate.names[:10],
                    not_after=f"{certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
                    detail=f"3 1 1 {certificate.spki_sha256}",
                )
            )
        for warning in certificates.warnings:
            self.emit(CertificateAlert(listener=self._listener.name, event="warning", detail=printable(warning, 400)))

    def _connector(self) -> MtaConnector:
        return MtaConnector(self._listener.mta, self._listener.times, self._mta_wires, self.clock)

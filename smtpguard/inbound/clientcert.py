"""Which of the rules' demands does the certificate of this client meet?  Judged once, at the handshake."""

from collections.abc import Callable, Mapping
from datetime import datetime

from cryptography.x509.oid import NameOID

from smtpguard.policy.inbound import CertificateDemand, CertificateFails, CertificateHolds, CertificateVerdict
from smtpguard.reasons import printable
from smtpguard.smtp.forwarded import ClientCertificate
from smtpguard.tls.chain import CertChain, MalformedCertificateError
from smtpguard.tls.client_identity import AcceptedClients, ClientVerified, verify_client
from smtpguard.tls.pkix import RootStore


def judge_certificate(
    chain: CertChain | None,
    demands: tuple[CertificateDemand, ...],
    roots: Callable[[str | None], RootStore],
    now: datetime,
) -> tuple[ClientCertificate | None, Mapping[CertificateDemand, CertificateVerdict] | None]:
    """What the MTA is told of the certificate, and a verdict for each demand; None, None where none was shown.

    `roots` gives the authorities in a rule's `ca_file`.
    """
    if chain is None:
        return None, None
    verdicts = {demand: _verdict(chain, demand, roots, now) for demand in demands}
    held = any(isinstance(verdict, CertificateHolds) for verdict in verdicts.values())
    return ClientCertificate(_common_name(chain), held), verdicts


def _verdict(
    chain: CertChain, demand: CertificateDemand, roots: Callable[[str | None], RootStore], now: datetime
) -> CertificateVerdict:
    accepted = AcceptedClients(
        authorities=roots(demand.ca_file) if demand.ca_file is not None else None,
        names=demand.names,
        fingerprints=demand.fingerprints,
    )
    verdict = verify_client(chain, accepted, now)
    if isinstance(verdict, ClientVerified):
        return CertificateHolds(verdict.identity)
    return CertificateFails(verdict.detail)


def _common_name(chain: CertChain) -> str:
    try:
        names = chain.leaf.x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (MalformedCertificateError, ValueError):
        return ""
    return printable(names[0].value, 64) if names else ""

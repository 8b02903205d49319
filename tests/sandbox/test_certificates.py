import contextlib
import hashlib
import ssl

import pytest
import trio
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from smtpguard.sandbox.certificates import CertificateMaker, Credential, Dates, spki, tlsa
from smtpguard.sandbox.conversation import Conversation
from smtpguard.sandbox.mx import server_context

NAME = "mx.test.example"


async def handshake(credential: Credential, context: ssl.SSLContext, name: str = NAME) -> Conversation:
    """A client that verifies as `context` says against `credential`; raises what the client raises."""
    left, right = trio.socket.socketpair()
    client, server = Conversation(trio.SocketStream(left)), Conversation(trio.SocketStream(right))

    async def serve() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await server.start_tls(server_context(credential), server_side=True)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                await client.start_tls(context, server_side=False, server_name=name)
            finally:
                if client.tls is None:
                    client.socket.close()
    except* trio.BrokenResourceError as group:
        raise group.exceptions[0].__cause__ from None
    finally:
        right.close()
        left.close()
    return client


@pytest.fixture
def public(maker: CertificateMaker):
    root = maker.root("Root")
    context = ssl.create_default_context(cafile=str(maker.trust_file(root)))
    return maker.intermediate(root, "Issuer"), context


async def test_a_chain_below_the_trusted_root_verifies(maker, public):
    issuer, context = public
    client = await handshake(maker.leaf(issuer, [NAME]), context)
    assert client.tls.version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("names", "dates", "trusted", "says"),
    [
        (["other.example"], Dates.VALID, True, "Hostname mismatch"),
        ([NAME], Dates.EXPIRED, True, "certificate has expired"),
        ([NAME], Dates.NOT_YET, True, "not yet valid"),
        ([NAME], Dates.VALID, False, "self-signed certificate"),
    ],
)
async def test_each_flaw_is_the_flaw_it_says(maker, public, names, dates, trusted, says):
    issuer, context = public
    leaf = maker.leaf(issuer if trusted else None, names, dates=dates)
    with pytest.raises(ssl.SSLCertVerificationError, match=says):
        await handshake(leaf, context)


def test_the_root_is_sent_only_where_asked(maker):
    issuer = maker.intermediate(maker.root("Root"), "Issuer")
    assert len(maker.leaf(issuer, [NAME]).chain_der) == 2
    assert len(maker.leaf(issuer, [NAME], send_root=True).chain_der) == 3


def test_a_renewal_keeps_the_key(credential, maker):
    renewed = maker.leaf(None, [NAME], key=credential.key)
    assert renewed.der != credential.der
    assert spki(renewed.der) == spki(credential.der)


def test_ip_literals_become_ip_names(maker):
    leaf = maker.leaf(None, ["127.0.0.1", NAME]).certificate
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == [NAME]


def test_tlsa_selects_and_hashes(credential):
    """RFC 6698 §2.1: selector and matching type."""
    der = credential.der
    key = spki(der)
    assert tlsa(3, 1, 1, der) == f"3 1 1 {hashlib.sha256(key).hexdigest()}"
    assert tlsa(2, 0, 1, der) == f"2 0 1 {hashlib.sha256(der).hexdigest()}"
    assert tlsa(3, 0, 2, der) == f"3 0 2 {hashlib.sha512(der).hexdigest()}"
    assert tlsa(3, 1, 0, der) == f"3 1 0 {key.hex()}"


def test_an_authority_is_no_server_certificate(maker):
    """cryptography's own verifier agrees about who is a CA (an independent opinion on the chain)."""
    root = maker.root("Root")
    verifier = PolicyBuilder().store(Store([root.certificate])).build_server_verifier(x509.DNSName("Root"))
    with pytest.raises(VerificationError):
        verifier.verify(root.certificate, [])

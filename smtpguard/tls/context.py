"""With which settings do we speak TLS?  (RFC 8996, RFC 9325 §3-4; CONFORMANCE TLS-01..09)

A context is built once, at start or reload, and never changed: pyOpenSSL freezes it at its first connection.
No callbacks: they need memory that is writable and executable, which a hardened service does not get.
Certificates of peers are judged by `pkix` and `dane` after the handshake, so that every context says
VERIFY_NONE.
"""

from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL, crypto

from smtpguard.tls.outcome import TlsVersion

TICKET_SECONDS = 7200
"""How long a session ticket of an inbound listener may be used (TLS-08)."""

CONTEXT_SECONDS = 6 * 86400
"""A server context holds its ticket keys for life, so that it is replaced within this time (TLS-08: a
week)."""

# TLS 1.2: forward secrecy by ECDHE only; AEAD first, then CBC for old peers (RFC 9325 §4.1-4.2).  TLS 1.3 has
# no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL:!aDSS:!AESCCM8"
# A destination for which a rule allows TLS 1.0 or 1.1 signs with SHA-1, hence level 0, and may know RSA key
# exchange only.  Still nothing below 128 bits, anonymous or without encryption.
_OLD_CIPHERS = f"{_CIPHERS}:RSA+AES:@SECLEVEL=0"

_NUMBERS = MappingProxyType(
    {
        TlsVersion.TLS_1_0: SSL.TLS1_VERSION,
        TlsVersion.TLS_1_1: SSL.TLS1_1_VERSION,
        TlsVersion.TLS_1_2: SSL.TLS1_2_VERSION,
        TlsVersion.TLS_1_3: SSL.TLS1_3_VERSION,
    }
)

# A retried write may come from another buffer and may be done in part: Wire sends what is left of a span.
_ENABLE_PARTIAL_WRITE = 0x1
_ACCEPT_MOVING_WRITE_BUFFER = 0x2


def client_context(floor: TlsVersion = TlsVersion.TLS_1_2) -> SSL.Context:
    """For connections to mail and policy hosts.  No version below `floor`, never a resumed session: a
    resumption would skip the certificate that we must judge."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    _set_up(context, floor)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    return context


def server_context(cert: Path, key: Path) -> SSL.Context:
    """For a listener: `cert` holds the certificate and its intermediates (PEM, ours first), `key` its private
    key.

    Raises OSError where a file cannot be read, ValueError where it cannot serve; both name the file and what
    to do.
    """
    chain = _read_chain(cert)
    private = _read_key(key)
    if _spki(private.public_key()) != _spki(chain[0].public_key()):
        raise ValueError(
            f"{key}: is not the key of the first certificate in {cert}; our certificate must stand first, "
            "its intermediates after it"
        )
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    _set_up(context, TlsVersion.TLS_1_2)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    # Tickets are stateless; OpenSSL allows no early data unless told to (TLS-07).
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"smtpguard")
    context.set_timeout(TICKET_SECONDS)
    try:
        context.use_certificate(chain[0])
        for issuer in chain[1:]:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(_usable_key(private, key))
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as error:
        raise ValueError(f"{cert}: cannot be used for TLS: {error}") from error
    return context


def _set_up(context: SSL.Context, floor: TlsVersion) -> None:
    context.set_min_proto_version(_NUMBERS[floor])
    context.set_cipher_list((_CIPHERS if floor >= TlsVersion.TLS_1_2 else _OLD_CIPHERS).encode())
    context.set_verify(SSL.VERIFY_NONE)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(_ENABLE_PARTIAL_WRITE | _ACCEPT_MOVING_WRITE_BUFFER | SSL.MODE_RELEASE_BUFFERS)


def _read_chain(path: Path) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
        own_key = chain[0].public_key()
        digest = chain[0].signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(
            f"{path}: holds no PEM certificate that can be read; the server's own "
            "certificate (-----BEGIN CERTIFICATE-----) must stand first, the intermediates after it"
        ) from error
    if isinstance(own_key, rsa.RSAPublicKey) and own_key.key_size < 2048:
        raise ValueError(
            f"{path}: the RSA key has {own_key.key_size} bits; "
            "get a certificate for a key of 2048 bits or more, or EC P-256"
        )
    if digest is not None and digest.name in ("md5", "sha1"):
        raise ValueError(f"{path}: is signed with {digest.name}; get a certificate signed with SHA-256")
    return chain


def _read_key(path: Path) -> PrivateKeyTypes:
    octets = path.read_bytes()
    try:
        # Never left to OpenSSL, which would ask for a passphrase at the terminal.
        return load_pem_private_key(octets, password=None)
    except TypeError as error:
        raise ValueError(
            f"{path}: the private key is encrypted; write it without a passphrase (openssl pkey -in {path} -out ...)"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path}: holds no PEM private key that can be read (-----BEGIN PRIVATE KEY-----)") from error


def _usable_key(
    private: PrivateKeyTypes, path: Path
) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    match private:
        case rsa.RSAPrivateKey() | ec.EllipticCurvePrivateKey() | ed25519.Ed25519PrivateKey():
            return private
        case _:
            raise ValueError(f"{path}: this kind of private key does not serve TLS; use RSA or EC P-256")


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

"""With which settings do we speak TLS?  (RFC 8996, RFC 9325 §3-4; CONFORMANCE TLS-01..09)

A context is built once, at start or reload, and never changed: pyOpenSSL freezes it at its first connection.
No callbacks: they need memory that is writable and executable, which a hardened service does not get.
No handshake judges a certificate: `pkix`, `dane` and `client_identity` do afterwards.  So every context says
VERIFY_NONE, but that of a listener which asks for client certificates, and that one lets all of them pass.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL, _util, crypto

from smtpguard.tls.outcome import TlsVersion

TICKET_SECONDS = 7200
"""How long a session ticket of an inbound listener may be used (TLS-08)."""

CONTEXT_SECONDS = 6 * 86400
"""A server context holds its ticket keys for life, so that it is replaced within this time (TLS-08: a
week)."""

MAX_FILE_OCTETS = 1 << 20
"""More than any certificate or key file has."""

ServerKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
"""Private keys that serve: what every mail host can verify."""

# To mail hosts, in TLS 1.2: forward secrecy by ECDHE only; AEAD first, then CBC for old peers (RFC 9325
# §4.1-4.2).  TLS 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL:!aDSS:!AESCCM8"
# A destination for which a rule allows TLS 1.0 or 1.1 signs with SHA-1, hence level 0, and may know RSA key
# exchange only.  Still nothing below 128 bits, anonymous or without encryption.
_OLD_CIPHERS = f"{_CIPHERS}:RSA+AES:@SECLEVEL=0"

# To clients: what Internet.nl (NCSC-NL, "good") and Mozilla (intermediate) leave: ECDHE and AEAD, no CBC, no DHE.  A
# client of TLS 1.2 that has none of these falls back to clear on port 25; those are Windows before 2016.
_SERVER_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305:ECDHE-RSA-AES128-GCM-SHA256"
)
_SERVER_SUITES = b"TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"
# '/': what stands before it is preferred even where that costs the client a second hello.
_CURVES = b"X25519:secp256r1:secp384r1"
_SERVER_GROUPS = (b"X25519MLKEM768/" + _CURVES, _CURVES)
# OpenSSL's defaults without SHA-224, and without SHA-1 whatever the security level.
_SERVER_SIGNATURES = (
    b"ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:ed25519:ed448:"
    b"rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:rsa_pss_pss_sha256:rsa_pss_pss_sha384:"
    b"rsa_pss_pss_sha512:RSA+SHA256:RSA+SHA384:RSA+SHA512"
)

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
    _set_up(context, floor, _CIPHERS if floor >= TlsVersion.TLS_1_2 else _OLD_CIPHERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    return context


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a listener speaks TLS.  `floor`: TLS 1.2 or 1.3, ValueError below (RFC 8996; TLS-01).

    With `request_client_certificate` the client may show a certificate, any or none: the handshake proves that it
    has the key and judges nothing else, that is `client_identity`'s part.
    """

    floor: TlsVersion = TlsVersion.TLS_1_2
    request_client_certificate: bool = False

    def __post_init__(self) -> None:
        if self.floor < TlsVersion.TLS_1_2:
            raise ValueError(f"TLS {self.floor.value} is not spoken to clients; the lowest version is 1.2 (RFC 8996)")


@dataclass(frozen=True, slots=True)
class Credential:
    """A server's certificate, the certificates sent with it, and its private key."""

    chain: tuple[x509.Certificate, ...]
    key: ServerKey = field(repr=False)


def read_credential(cert: Path, key: Path) -> Credential:
    """`cert` holds the certificate and its intermediates (PEM, ours first), `key` its private key; both may be the
    same file.

    Raises OSError where a file cannot be read, ValueError where it cannot serve; both name the file and what to do.
    """
    chain = _read_chain(cert)
    private = _read_key(key)
    own = _spki(private.public_key())
    if own != _spki(chain[0].public_key()):
        place = next((n for n, other in enumerate(chain, 1) if _is_for(other, own)), None)
        if place is not None:
            raise ValueError(
                f"{cert}: certificate {place} is the one of the key in {key}; it must stand first, its "
                "intermediates after it"
            )
        raise ValueError(
            f"{key}: is not the key of the first certificate in {cert}; our certificate must stand first, "
            "its intermediates after it"
        )
    return Credential(tuple(chain), _usable_key(private, key))


def server_context(cert: Path, key: Path, options: ServerOptions | None = None) -> SSL.Context:
    """For a listener with one certificate; raises as `read_credential` does."""
    try:
        return credential_context(read_credential(cert, key), options or ServerOptions())
    except (SSL.Error, crypto.Error) as error:
        raise ValueError(f"{cert}: cannot be used for TLS: {error}") from error


def credential_context(credential: Credential, options: ServerOptions) -> SSL.Context:
    """A context with ticket keys of its own, so that no ticket passes from one policy to another (STLS-20).
    Raises SSL.Error where OpenSSL does not take the certificate."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    _set_up(context, options.floor, _SERVER_CIPHERS)
    context.set_tls13_ciphersuites(_SERVER_SUITES)
    _set_list(context, "SSL_CTX_set1_curves_list", *_SERVER_GROUPS)
    _set_list(context, "SSL_CTX_set1_sigalgs_list", _SERVER_SIGNATURES)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    # Tickets are stateless; OpenSSL allows no early data unless told to (TLS-07).
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"smtpguard")
    context.set_timeout(TICKET_SECONDS)
    context.use_certificate(credential.chain[0])
    for issuer in credential.chain[1:]:
        context.add_extra_chain_cert(issuer)
    context.use_privatekey(credential.key)
    context.check_privatekey()
    if options.request_client_certificate:
        # A resumed session brings back the client's certificate without its issuers: always the whole handshake.
        context.set_options(SSL.OP_NO_TICKET)
        _request_certificate(context)
    return context


def _set_up(context: SSL.Context, floor: TlsVersion, ciphers: str) -> None:
    context.set_min_proto_version(_NUMBERS[floor])
    context.set_cipher_list(ciphers.encode())
    context.set_verify(SSL.VERIFY_NONE)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(_ENABLE_PARTIAL_WRITE | _ACCEPT_MOVING_WRITE_BUFFER | SSL.MODE_RELEASE_BUFFERS)


# --- what pyOpenSSL (26) has no public name for -----------------------------------------------------------------
#
# Its own way down is used: `_util.lib`, the OpenSSL that every Context runs on, and `Context._context`.  Where a
# later version lacks a name, OpenSSL's defaults stay, which are sound and merely wider; tests notice.


def _set_list(context: SSL.Context, function: str, *lists: bytes) -> None:
    """Sets the first of `lists` that this OpenSSL knows all names of."""
    setter = getattr(_util.lib, function, None)
    if setter is None:
        return
    for names in lists:
        if setter(context._context, names) == 1:
            return
        _util.lib.ERR_clear_error()


def _request_certificate(context: SSL.Context) -> None:
    """VERIFY_PEER, and every certificate passes.

    Without a callback OpenSSL breaks off the handshake of each client whose certificate it cannot verify, and
    ordinary mail hosts show such ones: their mail would come in clear or not at all.  A callback in Python needs
    memory that is writable and executable.  So OpenSSL gets a C function that is there already and always answers
    1: RAND_status, the generator being seeded.  It takes no arguments; that it is handed two is harmless under the
    calling conventions of the platforms that cryptography is built for, where the caller puts them in registers.
    """
    try:
        accept = _util.ffi.cast("int (*)(int, X509_STORE_CTX *)", _util.lib.RAND_status)
        _util.lib.SSL_CTX_set_verify(context._context, SSL.VERIFY_PEER, accept)
    except (AttributeError, TypeError) as error:
        raise ValueError("client certificates cannot be requested with this version of cryptography") from error


# --- files ------------------------------------------------------------------------------------------------------


def _octets(path: Path) -> bytes:
    with path.open("rb") as file:
        octets = file.read(MAX_FILE_OCTETS + 1)
    if len(octets) > MAX_FILE_OCTETS:
        raise ValueError(
            f"{path}: is longer than {MAX_FILE_OCTETS} octets; it must hold PEM certificates or a key only"
        )
    return octets


def _read_chain(path: Path) -> list[x509.Certificate]:
    octets = _octets(path)
    try:
        chain = x509.load_pem_x509_certificates(octets)
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
    octets = _octets(path)
    try:
        # Never left to OpenSSL, which would ask for a passphrase at the terminal.
        return load_pem_private_key(octets, password=None)
    except TypeError as error:
        raise ValueError(
            f"{path}: the private key is encrypted; write it without a passphrase (openssl pkey -in {path} -out ...)"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path}: holds no PEM private key that can be read (-----BEGIN PRIVATE KEY-----)") from error


def _usable_key(private: PrivateKeyTypes, path: Path) -> ServerKey:
    match private:
        case rsa.RSAPrivateKey() | ec.EllipticCurvePrivateKey() | ed25519.Ed25519PrivateKey():
            return private
        case _:
            raise ValueError(f"{path}: this kind of private key does not serve TLS; use RSA or EC P-256")


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_for(certificate: x509.Certificate, spki: bytes) -> bool:
    try:
        return _spki(certificate.public_key()) == spki
    except (ValueError, UnsupportedAlgorithm):
        return False

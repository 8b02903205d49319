"""Which octets of a certificate are its key, its names and its extensions?  (X.690 DER, RFC 5280 §4.1)

A reader of element boundaries, no more.  The digests of TLSA records (RFC 6698 §2.1.2) are taken over the
octets that the certificate really carries, which a parse and a re-encoding may change; and one odd SAN entry
must not hide the others, while the parsers of the libraries refuse the whole extension.
"""

from collections.abc import Iterator
from dataclasses import dataclass

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
SEQUENCE = 0x30
_VERSION = 0xA0
_EXTENSIONS = 0xA3
_MAX_ELEMENTS = 20_000


class MalformedDerError(ValueError):
    """The octets are not the DER structure that was expected."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element: its tag octet, its content, and the whole with its header."""

    tag: int
    content: bytes
    whole: bytes


@dataclass(frozen=True, slots=True)
class Extension:
    """An X.509 extension; `oid` and `value` are DER contents."""

    oid: bytes
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class CertificateFields:
    """The parts of a certificate that are read by their octets."""

    spki: bytes
    extensions: tuple[Extension, ...]


def elements(octets: bytes) -> Iterator[Element]:
    """The elements that follow each other in `octets`, which they must fill.  Raises MalformedDerError."""
    offset = 0
    for _ in range(_MAX_ELEMENTS):
        if offset == len(octets):
            return
        element = _element(octets, offset)
        offset += len(element.whole)
        yield element
    raise MalformedDerError("too many elements")


def read_one(octets: bytes, tag: int) -> Element:
    """The one element that fills `octets`.  Raises MalformedDerError."""
    element = _element(octets, 0)
    if element.tag != tag or len(element.whole) != len(octets):
        raise MalformedDerError(f"expected one element with tag {tag:#04x}")
    return element


def check_spki(octets: bytes) -> None:
    """`octets` are a SubjectPublicKeyInfo in form; the algorithm need not be known.  Raises
    MalformedDerError."""
    algorithm, key = _exactly(read_one(octets, SEQUENCE).content, SEQUENCE, BIT_STRING)
    if next(elements(algorithm.content), algorithm).tag != OBJECT_IDENTIFIER or not key.content:
        raise MalformedDerError("not a SubjectPublicKeyInfo")


def read_certificate(octets: bytes) -> CertificateFields:
    """The fields of a Certificate.  Raises MalformedDerError."""
    tbs, _, _ = _exactly(read_one(octets, SEQUENCE).content, SEQUENCE, SEQUENCE, BIT_STRING)
    parts = list(elements(tbs.content))
    if parts and parts[0].tag == _VERSION:
        del parts[0]
    # serialNumber signature issuer validity subject subjectPublicKeyInfo, then the optional ones
    if [part.tag for part in parts[:6]] != [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE]:
        raise MalformedDerError("not a TBSCertificate")
    spki = parts[5].whole
    check_spki(spki)
    extensions: tuple[Extension, ...] = ()
    for part in parts[6:]:
        if part.tag == _EXTENSIONS:
            listed = read_one(part.content, SEQUENCE).content
            extensions = tuple(_extension(element) for element in elements(listed))
    return CertificateFields(spki, extensions)


def _extension(element: Element) -> Extension:
    parts = list(elements(element.content)) if element.tag == SEQUENCE else []
    match [part.tag for part in parts]:
        case [0x06, 0x04]:
            return Extension(parts[0].content, critical=False, value=parts[1].content)
        case [0x06, 0x01, 0x04]:
            return Extension(parts[0].content, critical=parts[1].content != b"\0", value=parts[2].content)
        case _:
            raise MalformedDerError("not an Extension")


def _exactly(octets: bytes, *tags: int) -> list[Element]:
    found = list(elements(octets))
    if [element.tag for element in found] != list(tags):
        raise MalformedDerError("unexpected elements")
    return found


def _element(octets: bytes, offset: int) -> Element:
    if len(octets) - offset < 2:
        raise MalformedDerError("truncated")
    tag, length, start = octets[offset], octets[offset + 1], offset + 2
    if tag & 0x1F == 0x1F:
        raise MalformedDerError("a tag of more than one octet")
    if length >= 0x80:
        # Indefinite lengths (0x80) are BER; four octets hold more than any message of TLS.
        count = length & 0x7F
        if not 1 <= count <= 4 or len(octets) - start < count:
            raise MalformedDerError("bad length")
        length = int.from_bytes(octets[start : start + count], "big")
        if length < 0x80 or octets[start] == 0:
            raise MalformedDerError("a length that is not minimal")
        start += count
    end = start + length
    if end > len(octets):
        raise MalformedDerError("truncated")
    return Element(tag, octets[start:end], octets[offset:end])

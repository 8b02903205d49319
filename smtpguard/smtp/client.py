"""Which reply belongs to which request?  The client role: pipelined requests, replies matched by counting alone.

RFC 5321 §4.2, RFC 2920 §3.1 (EXT-22: never by code or text), RFC 3207 §4.2 (what was learnt before TLS is forgotten).
A reply nobody asked for is a protocol error (STLS-18).  No I/O.
"""

from smtpguard.smtp.extensions import Extensions
from smtpguard.smtp.framing import RemoteProtocolError, ReplyReader
from smtpguard.smtp.replies import Reply

NOTHING_OFFERED = Extensions.of_reply(None)


class ClientDialogue:
    """One dialogue with a server.  `extensions` are those of the last EHLO, empty before it and after STARTTLS."""

    __slots__ = ("_reader", "extensions", "owed")

    def __init__(self) -> None:
        self._reader = ReplyReader()
        self.extensions = NOTHING_OFFERED
        self.owed = 1  # the greeting

    def request(self, *lines: bytes) -> bytes:
        """The octets of these command lines (given without CRLF), to be written at once.

        Raises RemoteProtocolError where a reply nobody asked for is held: counting would be off by one from here on.
        """
        self._expect_silence()
        for line in lines:
            if b"\r" in line or b"\n" in line or b"\0" in line:
                raise ValueError("a command line holds CR, LF or NUL")
        self.owed += len(lines)
        return b"".join(line + b"\r\n" for line in lines)

    def expect_reply(self) -> None:
        """A reply is owed for what is no command line: end of data.  Raises as `request`."""
        self._expect_silence()
        self.owed += 1

    def _expect_silence(self) -> None:
        if not self.owed and self._reader.pending:
            raise RemoteProtocolError("a reply without a request")

    def receive(self, octets: bytes) -> None:
        """Octets came in; raises RemoteProtocolError where nothing is owed."""
        if not self.owed:
            raise RemoteProtocolError("octets without a request")
        self._reader.feed(octets)

    def next_reply(self) -> Reply | None:
        """The next reply, or None until it is whole.  Raises RemoteProtocolError."""
        if not self.owed:
            if self._reader.pending:
                raise RemoteProtocolError("a reply without a request")
            return None
        reply = self._reader.next_reply()
        if reply is not None:
            self.owed -= 1
        return reply

    @property
    def pending(self) -> bool:
        """Octets are held that no returned reply has used."""
        return bool(self._reader.pending)

    def tls_started(self) -> None:
        """The handshake is done: nothing of the clear phase counts any more (RFC 3207 §4.2)."""
        self._reader = ReplyReader()
        self.extensions = NOTHING_OFFERED
        self.owed = 0

"""The inbound half of the demo: what clients do at port 25, to a careless mail server and to smtpguard in front of it.

Each case is tried twice, at the server itself and through smtpguard, and what the server then holds is what counts.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import count
from pathlib import Path
from textwrap import shorten

import trio

from smtpguard.sandbox.careless import CarelessMta
from smtpguard.sandbox.certificates import CertificateMaker
from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.conversation import Lost

DOMAIN, PROTECTED = "inside.example", "secret.inside.example"
SECONDS = 20.0
REPLY_COLUMNS = 116


class Attempt(Enum):
    """What the client does."""

    TLS = "mail inside TLS"
    CLEAR = "mail in clear"
    PROTECTED_TLS = "mail to a protected domain inside TLS"
    PROTECTED_CLEAR = "mail to a protected domain in clear"
    SMUGGLING = "a second mail smuggled behind LF . CRLF"
    INJECTION = "a mail injected behind STARTTLS"


EXPECTED = {
    Attempt.TLS: "delivered, TLS",
    Attempt.CLEAR: "delivered, CLEAR",  # nothing forbids it: RFC 3207 §4
    Attempt.PROTECTED_TLS: "delivered, TLS",
    Attempt.PROTECTED_CLEAR: "refused",
    Attempt.SMUGGLING: "refused",
    Attempt.INJECTION: "refused",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the server holds of it, and the reply that decided."""

    seen: str
    reply: str


@dataclass(frozen=True, slots=True)
class InboundRow:
    """One attempt, at the server itself and through smtpguard."""

    attempt: Attempt
    direct: Outcome
    guarded: Outcome

    @property
    def is_as_expected(self) -> bool:
        """smtpguard made of it what it should."""
        return self.guarded.seen == EXPECTED[self.attempt]


@dataclass(slots=True)
class Inside:
    """The careless server, and smtpguard's inbound port in front of it."""

    mta: CarelessMta
    port: int
    pem_file: Path
    serials: "count[int]"

    @classmethod
    async def start(cls, nursery: trio.Nursery, certificates: CertificateMaker, port: int) -> "Inside":
        """Start the server in the caller's nursery; smtpguard will listen on `port`.  Raises OSError."""
        credential = certificates.leaf(None, [DOMAIN])
        mta = CarelessMta(DOMAIN, credential)
        await mta.start(nursery)
        return cls(mta, port, credential.pem_file, count(1))

    def configuration(self) -> str:
        """The tables that put smtpguard in front of it."""
        pem = json.dumps(str(self.pem_file))
        return f"""
[[listener]]
role = "inbound"
bind = ["127.0.0.1:{self.port}"]
certificate = {pem}
key = {pem}
upstream = "127.0.0.1:{self.mta.port}"
pass_client = "none"
upstream_has_no_trusted_networks = true

[[inbound_policy]]
recipient_domain = "{PROTECTED}"
require = "tls"
"""

    async def try_all(self) -> list[InboundRow]:
        """One round."""
        return [
            InboundRow(attempt, await self._try(attempt, self.mta.port), await self._try(attempt, self.port))
            for attempt in Attempt
        ]

    async def _try(self, attempt: Attempt, port: int) -> Outcome:
        mark = f"mark {next(self.serials)} end"
        client = await Client.connect("127.0.0.1", port)
        try:
            with trio.fail_after(SECONDS):
                reply = await _tried(attempt, client, mark)
                with suppress(*Lost):
                    await client.conversation.send(b"QUIT\r\n")
                    while (await client.reply()).code != 221:  # a smuggled mail has replies of its own
                        pass
        except (*Lost, trio.TooSlowError) as error:
            reply = f"session lost: {error!r}"
        finally:
            client.conversation.close()
        return Outcome(self._seen(attempt, mark.encode()), reply)

    def _seen(self, attempt: Attempt, mark: bytes) -> str:
        """A smuggled or injected mail counts where it begins with its own header and mark."""
        found = [message for message in self.mta.messages if mark in message.content]
        if attempt in (Attempt.SMUGGLING, Attempt.INJECTION):
            found = [message for message in found if message.content.startswith(b"Subject: forged")]
            return "forged mail taken" if found else "refused"
        if not found:
            return "refused"
        by_tls = found[0].over_tls or b" with ESMTPS " in found[0].content  # behind smtpguard its trace line tells
        return "delivered, TLS" if by_tls else "delivered, CLEAR"


async def _tried(attempt: Attempt, client: Client, mark: str) -> str:
    """The reply that decided.  Raises trio.BrokenResourceError."""
    await client.reply()
    await client.hello("client.example")
    recipient = f"bob@{PROTECTED if attempt in (Attempt.PROTECTED_TLS, Attempt.PROTECTED_CLEAR) else DOMAIN}"
    forged = (
        f"MAIL FROM:<president@bank.example>\r\nRCPT TO:<{recipient}>\r\nDATA\r\nSubject: forged\r\n\r\n{mark}\r\n.\r\n"
    )
    if attempt is Attempt.INJECTION:
        await client.conversation.send(b"STARTTLS\r\n" + forged.encode())
        reply = await client.reply()
        if reply.code == 220:
            await client.conversation.start_tls(unverifying_context(), server_side=False)
            while (await client.reply()).code != 354:  # MAIL, RCPT
                pass
            reply = await client.reply()
        return str(reply)
    if attempt in (Attempt.TLS, Attempt.PROTECTED_TLS):
        await client.start_tls(unverifying_context())
        await client.hello("client.example")
    content = f"Subject: demo\r\n\r\n{mark}\r\n"
    if attempt is Attempt.SMUGGLING:
        content = "Subject: innocent\r\n\r\nhello\n.\r\n" + forged.removesuffix(".\r\n")
    return str((await client.send("alice@client.example", [recipient], content.encode())).last_reply)


def table(rows: Sequence[InboundRow]) -> str:
    """The rows as text, smtpguard's reply under each, and a last line that counts."""
    lines = [("at port 25", "a careless server", "behind smtpguard", "")]
    lines += [(r.attempt.value, r.direct.seen, r.guarded.seen, "ok" if r.is_as_expected else "WRONG") for r in rows]
    replies = ["", *(shorten(row.guarded.reply, REPLY_COLUMNS, placeholder=" ...") for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = []
    for line, reply in zip(lines, replies, strict=True):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if reply:
            text.append(f"    {reply}")
    good = sum(row.is_as_expected for row in rows)
    return "\n".join([*text, f"{good} of {len(rows)} inbound rows as expected"])

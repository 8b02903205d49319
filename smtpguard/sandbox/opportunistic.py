"""What does an ordinary opportunistic sender do?  The demo's column of comparison, really tried.  (RFC 7435)

It looks up the MX as if the resolver did not validate (CD bit), takes STARTTLS where it is offered, verifies
nothing, and delivers in clear otherwise, as MTAs do by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rdatatype
import dns.rdtypes.ANY.MX
import dns.rdtypes.IN.A
import trio

from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.conversation import Lost

NAME = "opportunistic.example"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What happened to one message."""

    delivered: bool
    encrypted: bool
    mx_host: str  # "" where none was found
    address: str
    detail: str  # the last reply, or why it ended


@dataclass(frozen=True, slots=True)
class OpportunisticSender:
    """A sender that asks `resolver` and connects to `port`."""

    resolver: tuple[str, int]
    port: int
    timeout_seconds: float = 10.0

    async def send(self, sender: str, recipients: Sequence[str], content: bytes) -> Attempt:
        """Deliver to the domain of the first recipient; tries each MX address until one takes the message."""
        domain = recipients[0].rpartition("@")[2]
        attempt = Attempt(False, False, "", "", "no MX host was found")
        for host in await self._mx_hosts(domain):
            for address in await self._addresses(host):
                with trio.move_on_after(self.timeout_seconds) as scope:
                    attempt = await self._deliver(host, address, sender, recipients, content)
                if scope.cancelled_caught:
                    attempt = Attempt(False, False, host, address, "timed out")
                if attempt.delivered:
                    return attempt
        return attempt

    async def _deliver(
        self, host: str, address: str, sender: str, recipients: Sequence[str], content: bytes
    ) -> Attempt:
        encrypted = False
        try:
            client = await Client.connect(address, self.port)
        except OSError as error:
            return Attempt(False, False, host, address, str(error))
        try:
            greeting = await client.reply()
            if not greeting.is_positive:
                return Attempt(False, False, host, address, str(greeting))
            await client.hello(NAME)
            if client.offers("STARTTLS") and (await client.start_tls(unverifying_context(), host)).is_positive:
                encrypted = True
                await client.hello(NAME)
            sent = await client.send(sender, recipients, content)
            await client.quit()
        except Lost as error:
            return Attempt(False, encrypted, host, address, f"connection lost: {error.__cause__ or error}")
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await client.conversation.aclose()
        return Attempt(sent.is_delivered, encrypted, host, address, str(sent.last_reply))

    async def _mx_hosts(self, domain: str) -> list[str]:
        found = [
            record
            for record in await self._records(domain, dns.rdatatype.MX)
            if isinstance(record, dns.rdtypes.ANY.MX.MX)
        ]
        found.sort(key=lambda record: record.preference)
        return [record.exchange.to_text(omit_final_dot=True) for record in found] or [domain]

    async def _addresses(self, host: str) -> list[str]:
        records = await self._records(host, dns.rdatatype.A)
        return [record.address for record in records if isinstance(record, dns.rdtypes.IN.A.A)]

    async def _records(self, name: str, rdtype: dns.rdatatype.RdataType) -> list[object]:
        query = dns.message.make_query(name, rdtype)
        query.flags |= dns.flags.CD
        address, port = self.resolver
        try:
            response = await dns.asyncquery.tcp(query, address, timeout=self.timeout_seconds, port=port)
        except (dns.exception.DNSException, OSError, EOFError):
            return []
        return [record for rrset in response.answer if rrset.rdtype == rdtype for record in rrset]

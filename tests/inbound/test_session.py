"""The inbound dialogue over real sockets, in front of a scripted MTA."""

from pathlib import Path

from smtpguard.events import MessageRelayed
from tests.support.front import open_front

MESSAGE = b"Subject: hello\r\n\r\n.a line with a dot\r\nend\r\n"


async def test_a_message_arrives_octet_by_octet_below_one_trace_line(tmp_path: Path) -> None:
    """SMTP-27, INV-09, TRC-01."""
    async with open_front(tmp_path) as front:
        client = await front.client(tls=True)
        sent = await client.send("a@sender.example", ["b@front.example"], MESSAGE)
        await client.quit()
    assert [str(reply) for reply in sent.ends] == ["250 2.0.0 queued as 1"]
    (message,) = front.mta.messages
    received, _, rest = message.partition(b"\r\nSubject:")
    assert received.startswith(b"Received: from client.example ([127.0.0.1])")
    assert b"with ESMTPS" in received
    assert b"Subject:" + rest == MESSAGE.replace(b"\r\n.a", b"\r\n..a")
    (event,) = front.of(MessageRelayed)
    assert (event.recipients, event.tls_version, event.reply) == (1, "1.3", "250 2.0.0 queued as 1")

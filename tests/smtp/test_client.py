"""The client role: replies by counting, nothing kept from before TLS."""

import pytest

from smtpguard.smtp.client import ClientDialogue
from smtpguard.smtp.extensions import Extensions
from smtpguard.smtp.framing import RemoteProtocolError


def greeted() -> ClientDialogue:
    dialogue = ClientDialogue()
    dialogue.receive(b"220 mx ESMTP\r\n")
    assert dialogue.next_reply() is not None
    return dialogue


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_ext_22_replies_are_matched_by_counting(step: int) -> None:
    """EXT-22: a 354 to a RCPT is the reply to that RCPT."""
    dialogue = greeted()
    assert dialogue.request(b"MAIL FROM:<>", b"RCPT TO:<a@b>") == b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\n"
    octets = b"250 ok\r\n354-odd\r\n354 but counted\r\n"
    replies = []
    for start in range(0, len(octets), step):
        dialogue.receive(octets[start : start + step])
        while (reply := dialogue.next_reply()) is not None:
            replies.append(reply.code)
    assert replies == [250, 354]
    assert dialogue.owed == 0


def test_unsolicited_octets_are_an_error() -> None:
    """STLS-18: nobody asked."""
    dialogue = greeted()
    with pytest.raises(RemoteProtocolError):
        dialogue.receive(b"250 surprise\r\n")


def test_a_reply_too_many_is_an_error() -> None:
    """STLS-18: two replies to one request."""
    dialogue = greeted()
    dialogue.request(b"NOOP")
    dialogue.receive(b"250 one\r\n250 two\r\n")
    assert dialogue.next_reply() is not None
    assert dialogue.pending
    with pytest.raises(RemoteProtocolError):
        dialogue.next_reply()


def test_tls_forgets_everything() -> None:
    """STLS-10, STLS-17: extensions and octets of the clear phase are gone."""
    dialogue = greeted()
    dialogue.request(b"EHLO x")
    dialogue.receive(b"250-mx\r\n250 SIZE 1\r\n")
    reply = dialogue.next_reply()
    dialogue.extensions = Extensions.of_reply(reply)
    assert dialogue.extensions.has("SIZE")
    dialogue.request(b"STARTTLS")
    dialogue.receive(b"220 go\r\n250 injected\r\n")
    assert dialogue.next_reply() is not None
    assert dialogue.pending
    dialogue.tls_started()
    assert not dialogue.pending
    assert not dialogue.extensions.has("SIZE")


@pytest.mark.parametrize("line", [b"MAIL FROM:<a\r\nRCPT TO:<b>", b"NOOP\n", b"NOOP\0"])
def test_no_command_is_injected(line: bytes) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        greeted().request(line)

"""AUTH through us, to a scripted MTA."""

from pathlib import Path

import pytest

from tests.support.front import open_front
from tests.support.mta import CUT, OFFER, XCLIENT, Mta

AUTH_OFFER = (*OFFER, b"AUTH PLAIN LOGIN SCRAM-SHA-256-PLUS EXTERNAL GSSAPI DIGEST-MD5")


def auth_mta(reply: bytes = b"235 2.7.0 Ok") -> Mta:
    """LOGIN asks twice, PLAIN is answered at once."""
    asked: list[bytes] = []

    async def script(line: bytes) -> bytes | None:
        if line == b"AUTH LOGIN":
            asked.append(line)
            return b"334 VXNlcm5hbWU6"
        if line == b"*":
            asked.clear()
            return b"501 5.7.0 cancelled"
        if asked and line == b"dXNlcg==":
            return b"334 UGFzc3dvcmQ6"
        if (asked and line == b"cGFzcw==") or line.startswith(b"AUTH PLAIN"):
            asked.clear()
            return reply
        return None

    return Mta(offer=AUTH_OFFER, script=script)


async def test_mechanisms_are_filtered_and_only_in_tls(tmp_path: Path) -> None:
    """AUTH-01, AUTH-04."""
    async with open_front(tmp_path, auth_mta()) as front:
        client = await front.client()
        assert not client.offers("AUTH")
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == 530
        secured = await front.client(tls=True)
        assert "AUTH PLAIN LOGIN" in secured.extensions
        await client.conversation.aclose()
        await secured.conversation.aclose()
    assert not any(heard.of(b"AUTH") for heard in front.mta.heard)


@pytest.mark.parametrize("mechanism", ["EXTERNAL", "GSSAPI", "SCRAM-SHA-256-PLUS", "digest-md5", "NTLM"])
async def test_a_mechanism_that_is_not_offered_does_not_reach_the_mta(tmp_path: Path, mechanism: str) -> None:
    """AUTH-04: hiding it is not enough, a client need not have been told of it to try it."""
    async with open_front(tmp_path, auth_mta()) as front:
        client = await front.client(tls=True)
        assert str(await client.command(f"AUTH {mechanism} =")).startswith("504 5.5.4")
        assert (await client.command("auth plain AGEAYg==")).code == 235
        await client.conversation.aclose()
    assert [heard.of(b"AUTH") for heard in front.mta.clients] == [[b"AUTH PLAIN AGEAYg=="]]


async def test_plain_with_initial_response_and_again(tmp_path: Path) -> None:
    """AUTH-03."""
    async with open_front(tmp_path, auth_mta()) as front:
        client = await front.client(tls=True)
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == 235
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == 503
        await client.conversation.aclose()
    assert [heard.of(b"AUTH") for heard in front.mta.clients] == [[b"AUTH PLAIN AGEAYg=="]]


async def test_login_challenges_pass_one_to_one(tmp_path: Path) -> None:
    """AUTH-02."""
    async with open_front(tmp_path, auth_mta()) as front:
        client = await front.client(tls=True)
        assert str(await client.command("AUTH LOGIN")) == "334 VXNlcm5hbWU6"
        assert str(await client.command("dXNlcg==")) == "334 UGFzc3dvcmQ6"
        assert (await client.command("cGFzcw==")).code == 235
        await client.conversation.aclose()


@pytest.mark.parametrize(("line", "code"), [("*", 501), ("not base64!", 501), ("A" * 13000, 500)])
async def test_auth_02_given_up_and_in_step(tmp_path: Path, line: str, code: int) -> None:
    async with open_front(tmp_path, auth_mta()) as front:
        client = await front.client(tls=True)
        assert (await client.command("AUTH LOGIN")).code == 334
        assert (await client.command(line)).code == code
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == 235
        await client.conversation.aclose()


@pytest.mark.parametrize(("reply", "code"), [(b"535 5.7.8 no", 535), (CUT, 451)])
async def test_auth_02_refused_or_lost(tmp_path: Path, reply: bytes, code: int) -> None:
    async with open_front(tmp_path, auth_mta(reply)) as front:
        client = await front.client(tls=True)
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == code
        await client.conversation.aclose()


@pytest.mark.parametrize("authenticated", [False, True])
async def test_the_identity_in_mail_is_for_the_authenticated(tmp_path: Path, authenticated: bool) -> None:
    """AUTH-05 (RFC 4954 §5): a stranger's AUTH= is left out."""
    async with open_front(tmp_path, auth_mta()) as front:
        client = await front.client(tls=True)
        if authenticated:
            assert (await client.command("AUTH PLAIN AGEAYg==")).code == 235
        assert (await client.command("MAIL FROM:<a@a.example> AUTH=e+3Dmc2@x.example SIZE=10")).code == 250
        await client.conversation.aclose()
    (line,) = front.mta.clients[0].of(b"MAIL")
    kept = b" AUTH=e+3Dmc2@x.example" if authenticated else b""
    assert line == b"MAIL FROM:<a@a.example>" + kept + b" SIZE=10"


@pytest.mark.parametrize("identity_by", ["none", "xclient"])
async def test_who_must_authenticate_is_for_the_mta(tmp_path: Path, identity_by: str) -> None:
    """AUTH-06 (RFC 6409 §4.3): its 530 is relayed, and XCLIENT names nobody who would be let off it."""
    known = False

    async def script(line: bytes) -> bytes | None:
        nonlocal known
        if line.startswith(b"AUTH PLAIN"):
            known = True
            return b"235 2.7.0 Ok"
        if line.startswith(b"MAIL FROM:<a") and not known:
            return b"530 5.7.0 Authentication required"
        return None

    mta = Mta((*AUTH_OFFER, XCLIENT), script=script)
    async with open_front(tmp_path, mta, submission=True, identity_by=identity_by) as front:
        client = await front.client(tls=True)
        assert str(await client.command("MAIL FROM:<a@a.example>")) == "530 5.7.0 Authentication required"
        assert (await client.command("RCPT TO:<b@front.example>")).code == 503
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == 235
        assert (await client.send("a@a.example", ["b@front.example"], b"Subject: x\r\n\r\n")).is_delivered
        await client.quit()
    (heard,) = front.mta.clients
    assert not any(b"LOGIN=" in line for line in heard.of(b"XCLIENT"))
    assert len(heard.of(b"XCLIENT")) == (identity_by == "xclient")

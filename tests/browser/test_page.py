"""The live page in a real browser: a real process, real mail, and what a reader sees, with mouse or keyboard."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.browser.chromium import Page, open_page
from tests.browser.site import HOSTILE, Guard, open_guard

TOKEN = "t0ken/of+the~browser.test=="
LIVE = "document.querySelector('#state')?.dataset.state === 'live'"
LOST = "document.querySelector('#state')?.dataset.state === 'lost'"


@asynccontextmanager
async def opened(directory: Path, *, host: str = "127.0.0.1", more: str = "") -> AsyncIterator[tuple[Guard, Page]]:
    """The process, and a browser that looks at its page."""
    async with open_guard(directory, more=more) as guard:
        (directory / "profile").mkdir()
        async with open_page(directory / "profile") as page:
            await page.look()
            await page.open(f"http://{host}:{await guard.port('admin')}/")
            yield guard, page


def rows(condition: str = "") -> str:
    """JavaScript: how many rows of the feed have this text in them."""
    found = f".filter(row => row.textContent.includes({condition!r}))" if condition else ""
    return f"[...document.querySelectorAll('#events li')]{found}.length"


async def focused(page: Page) -> str:
    """What has the focus: its id, name or text."""
    return str(
        await page.value(
            "(e => e.id || e.name || e.textContent.trim().slice(0, 40))(document.activeElement)",
        )
    )


async def tab_to(page: Page, wanted: str, *, back: bool = False) -> None:
    """Press Tab until this has the focus."""
    for _ in range(40):
        if await focused(page) == wanted:
            return
        await page.press("Tab", shift=back)
    raise AssertionError(f"no way to {wanted} by keyboard; the focus is on {await focused(page)}")


async def test_what_became_of_the_mail(tmp_path: Path) -> None:
    """Totals, shares, refusals with words and way out, and the feed, all from mail of this moment."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        assert "no mail yet" in await page.text("#outbound-tls")
        await guard.traffic()
        await page.until(f"{rows('hostile.example')} && {rows('secret.example')}")
        await page.until("document.querySelector('#inbound').innerText.includes('3')")
        assert await page.text("#outbound") == "delivered 4 deferred 2 refused 1 reply lost 0"
        assert await page.text("#inbound") == "delivered 3 deferred 0 refused 1 reply lost 0"
        assert await page.text("#outbound-tls") == "Delivered over TLS 75 % (3 of 4)"
        assert await page.text("#outbound-auth") == "Receiving host authenticated 50 % (2 of 4)"
        assert await page.text("#inbound-tls") == "Received over TLS 66.6 % (2 of 3)"
        refusals = await page.text("#refusals")
        assert "1 × outbound no TLSA record matches the certificate dane/no-match latest swapped.example," in refusals
        assert "1 × inbound TLS is required, issue STARTTLS first inbound/tls-required latest secret." in refusals
        assert "refused by the receiving server itself relayed/5xx latest hostile.example" in refusals
        feed = await page.text("#events")
        assert "delivered dane.example mx.dane.example [127.10.1.1] · TLS 1.3 · authenticated by DANE" in feed
        assert "delivered clear.example mx.clear.example [127.10.4.1] · in clear" in feed
        assert page.complaints == []


async def test_what_a_peer_says_is_text(tmp_path: Path) -> None:
    """A reply with HTML in it is shown as it was written, in the row and in its details; and if our code ever made HTML
    of a string, the page's policy would not let it."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        guard.say("hostile.example", rcpt=f"550 5.1.1 {HOSTILE}")
        await guard.send("bob@hostile.example")
        await page.until(rows("hostile.example"))
        await page.value("document.querySelectorAll('#events details').forEach(one => one.open = true)")
        await page.until("document.querySelector('#events dd')")
        assert HOSTILE in await page.text("#events summary")
        assert HOSTILE in await page.text("#events dl")
        assert await page.value("document.querySelectorAll('#events img, #events script').length") == 0
        assert await page.value("document.title") == "smtpguard"
        assert page.complaints == []
        blocked = "(() => { try { document.body.innerHTML = '<p>' } catch (e) { return e.name } })()"
        assert await page.value(blocked) == "TypeError"


async def test_filters_by_keyboard(tmp_path: Path) -> None:
    """From the skip link to the filters; the server filters, earlier events come again, and the address keeps it."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        await guard.traffic()
        await page.until(rows("secret.example"))
        await page.press("Tab")
        assert await focused(page) == "Skip to the live feed"
        await page.press("Enter")
        assert await focused(page) == "feed"
        await tab_to(page, "direction")
        await page.press("i")
        await page.until(f"{rows('secret.example')} && !{rows('outbound')}")
        await tab_to(page, "outcome")
        await page.press("d")
        await page.until(f"{rows()} === 3 && {rows('delivered')} === 3")
        await tab_to(page, "direction", back=True)
        await page.press("o")
        await tab_to(page, "domain")
        await page.write("dane.example")
        await page.press("Enter")
        await page.until(f"{rows()} === 1 && {rows('authenticated by DANE')}")
        await guard.send("bob@plain.example")
        await guard.send("bob@dane.example")
        await page.until(f"{rows()} === 2 && !{rows('plain.example')}")
        assert await page.value("location.search") == "?direction=outbound&outcome=delivered&domain=dane.example"
        await page.reload()
        await page.until(f"{LIVE} && {rows()} === 2")
        assert await page.value("document.querySelector('[name=domain]').value") == "dane.example"


async def test_a_filter_that_is_none(tmp_path: Path) -> None:
    """It is said where it was typed, and what would be right."""
    async with opened(tmp_path) as (_, page):
        await page.until(LIVE)
        await page.value("document.querySelector('[name=domain]').focus()")
        await page.write("not..a.domain")
        await page.press("Enter")
        await page.until("document.querySelector('#filter-wrong').textContent.includes('right would be')")
        assert await page.text("#state") == "Filter not understood"
        await page.value("document.querySelector('[name=domain]').select()")
        await page.write("dane.example")
        await page.press("Enter")
        await page.until(LIVE)
        assert await page.text("#filter-wrong") == ""


async def test_one_connection_however_fast_the_filters_change(tmp_path: Path) -> None:
    """Each connection is one of the few places for subscribers, and one that the page forgot would keep it."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        await page.value(
            "window.made = []; window.WebSocket = class extends WebSocket {"
            " constructor(...given) { super(...given); made.push(this); } }; 0"
        )
        change = "document.querySelector('#filters').dispatchEvent(new Event('change'))"
        await page.value(f"{change}; {change}; {change}")
        await page.until(f"made.length && {LIVE}")
        await guard.send("bob@dane.example")
        await page.until(rows("dane.example"))
        assert await page.value("made.filter(socket => socket.readyState < WebSocket.CLOSING).length") == 1


async def test_pause_by_keyboard(tmp_path: Path) -> None:
    """Nothing moves while one reads, and nothing is lost by it; details open by keyboard."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        await page.until(rows())
        before = await page.value(rows())
        await tab_to(page, "pause")
        await page.press("Space")
        assert await page.text("#state") == "Paused"
        await guard.send("bob@dane.example")
        await page.until("document.querySelector('#pause').textContent.includes('new')")
        assert await page.value(rows()) == before
        await page.press("Space")
        await page.until(f"{LIVE} && {rows('dane.example')}")
        await page.press("Tab")
        assert await focused(page) == "clear"
        await page.press("Tab")
        await page.press("Enter")
        await page.until("document.querySelector('#events li dl')?.innerText.includes('explained by')")
        await page.press("Tab", shift=True)
        await page.press("Enter")
        assert await page.value(rows()) == 0
        assert "No events yet." in await page.text("#feed")
        assert page.complaints == []


async def test_a_process_that_goes_and_comes_back(tmp_path: Path) -> None:
    """The page says so at once and since when, keeps what it knew, and finds the next process by itself; what somebody
    reads does not vanish under him."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        await guard.send("bob@dane.example")
        await page.until(rows("dane.example"))
        port = await guard.port("admin")
        await page.value("document.querySelector('#pause').click()")
        await guard.stop()
        await page.until(f"{LOST} && !document.querySelector('#lost').hidden")
        said = await page.text("#lost")
        assert said.startswith("The live feed is lost. smtpguard ")
        assert "What you see below is as of " in said
        assert await page.value(rows("dane.example"))
        assert await page.value("document.querySelector('#lost').getAttribute('role')") == "alert"
        await page.until("document.querySelector('#lost').innerText.includes('does not answer')")
        await guard.restart(f"127.0.0.1:{port}")
        await page.until("document.querySelector('#lost').hidden")
        assert await page.text("#state") == "Paused"
        assert await page.value(rows("dane.example")), "what is being read stays until the reader goes on"
        await page.value("document.querySelector('#pause').click()")
        await page.until(f"{LIVE} && !{rows('dane.example')}")
        await guard.send("bob@plain.example")
        await page.until(rows("plain.example"))


async def test_a_process_that_hangs(tmp_path: Path) -> None:
    """No answer is no feed, although no connection broke."""
    async with opened(tmp_path) as (guard, page):
        await page.until(LIVE)
        guard.process.send_signal(signal.SIGSTOP)
        try:
            await page.until(f"{LOST} && document.querySelector('#lost').innerText.includes('does not answer')")
        finally:
            guard.process.send_signal(signal.SIGCONT)
        await page.until(LIVE)


async def test_a_token_is_asked_for(tmp_path: Path) -> None:
    """By a name that is not this host's own: first without, then with a wrong one, then with the right one."""
    (tmp_path / "token").write_text(TOKEN)
    async with opened(tmp_path, host="guard.test", more=f'token_file = "{tmp_path}/token"') as (guard, page):
        await page.until("!document.querySelector('#token-form').hidden")
        assert await page.text("#state") == "Token needed"
        assert await focused(page) == "token"
        await page.write("wrong-token-0123456789")
        await page.press("Enter")
        await page.until("document.querySelector('#token-form').innerText.includes('not the right one')")
        await page.write(TOKEN)
        await page.press("Enter")
        await page.until(LIVE)
        assert await page.value("document.querySelector('#token-form').hidden")
        await guard.send("bob@dane.example")
        await page.until(rows("dane.example"))
        assert TOKEN not in str(await page.value("location.href + document.documentElement.outerHTML"))
        await page.reload()
        await page.until(LIVE)
        assert TOKEN not in guard.log.read_text()


CONTRASTS = """
(() => {
  const parse = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text && !["INPUT"].includes(element.tagName)) continue;
    if (!element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) poor.push(`${element.tagName}.${element.className} ${contrast.toFixed(2)}`);
  }
  return poor;
})()
"""
"""Texts whose contrast is below WCAG 2.2 §1.4.3 (AA)."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_it_can_be_read(tmp_path: Path, dark: bool) -> None:
    """Contrast in both schemes, also when the feed is lost; no sideways scrolling down to 320 px (WCAG 2.2 §1.4.10);
    every control has a name."""
    async with opened(tmp_path) as (guard, page):
        await page.look(dark=dark)
        await page.until(LIVE)
        await guard.traffic()
        await page.until(f"{rows('secret.example')} && document.querySelectorAll('#refusals li').length === 4")
        await page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
        await page.until("document.querySelector('#events dd')")
        assert await page.value("getComputedStyle(document.body).backgroundColor") == (
            "rgb(16, 21, 28)" if dark else "rgb(243, 245, 248)"
        )
        assert await page.value(CONTRASTS) == []
        for width in (1280, 900, 600, 320):
            await page.look(dark=dark, width=width)
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await page.value(overflow) == 0, width
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        controls = {"button", "textbox", "combobox", "link"}
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree
            if node.get("role", {}).get("value") in controls
        ]
        assert {name for _, name in named} >= {
            "Skip to the live feed", "Direction", "Outcome", "Severity", "Domain", "Pause", "Clear",
        }  # fmt: skip
        assert all(name for _, name in named), named
        await guard.stop()
        await page.until(f"{LOST} && !document.querySelector('#lost').hidden")
        assert await page.value(CONTRASTS) == []

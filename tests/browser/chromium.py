"""A real browser without a window: Chromium, driven by its DevTools protocol over a WebSocket."""

import base64
import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

SECONDS = 20.0
_MAX_MESSAGE = 64 * 1024 * 1024  # a screenshot is one
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)  # fmt: skip


class Page:
    """One tab."""

    def __init__(self, socket: WebSocketConnection, nursery: trio.Nursery) -> None:
        self.complaints: list[str] = []
        """What the browser logged as an error, refused by policy, or threw."""
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[trio.Event, dict[str, Any]]] = {}
        self._session = ""
        nursery.start_soon(self._hear)

    async def attach(self) -> None:
        """Open the tab."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command."""
        number = next(self._numbers)
        answered, box = trio.Event(), dict[str, Any]()
        self._waiting[number] = (answered, box)
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_message(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        with trio.fail_after(SECONDS):
            await answered.wait()
        assert "result" in box, (method, box)
        result: dict[str, Any] = box["result"]
        return result

    async def open(self, url: str) -> None:
        """Go there; the page is read, its script has begun."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.protocol === 'http:'")

    async def reload(self) -> None:
        """Read it anew."""
        await self.value("window.isOld = true")
        await self.call("Page.reload")
        await self.until("document.readyState === 'complete' && !window.isOld")

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        got = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, (expression, got)
        return got["result"].get("value")

    async def until(self, condition: str, seconds: float = SECONDS) -> None:
        """Wait until it holds; the browser is another process, so it is asked again and again."""
        with trio.move_on_after(seconds):
            while not await self.value(f"Boolean({condition})"):
                await trio.sleep(0.02)
            return
        shown = (await self.text("body"))[:3000]
        raise AssertionError(f"not within {seconds:g} s: {condition}\n{shown}\n{self.complaints}")

    async def text(self, selector: str) -> str:
        """What a reader sees of the first element, blanks folded."""
        shown = await self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return " ".join(str(shown).split())

    async def press(self, key: str, *, shift: bool = False) -> None:
        """One key, as from a keyboard."""
        text = {"Enter": "\r", "Space": " "}.get(key, key if len(key) == 1 else "")
        name = " " if key == "Space" else key
        codes = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowDown": 40, "ArrowUp": 38}
        code = codes.get(key, ord(key.upper()) if len(key) == 1 else 0)
        common = {"key": name, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def write(self, text: str) -> None:
        """Into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def look(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """Show the page in this scheme and size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        got = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(got["data"]))

    async def _hear(self) -> None:
        while True:
            try:
                message = json.loads(await self._socket.get_message())
            except ConnectionClosed:
                return
            if (waiting := self._waiting.pop(message.get("id", 0), None)) is not None:
                waiting[1].update(message)
                waiting[0].set()
            parameters = message.get("params", {})
            match message.get("method"):
                case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                    self.complaints.append(parameters["entry"]["text"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(json.dumps(parameters["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                    self.complaints.append(json.dumps(parameters["args"]))


@asynccontextmanager
async def open_page(directory: Path) -> AsyncIterator[Page]:
    """A browser with one tab; its profile goes to `directory`, which must be fresh."""
    command = ["chromium", *_OPTIONS, f"--user-data-dir={directory}", "about:blank"]
    with (directory.parent / "chromium.log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = await _address(directory, process)
        async with open_websocket_url(address, max_message_size=_MAX_MESSAGE) as socket, trio.open_nursery() as nursery:
            page = Page(socket, nursery)
            await page.attach()
            yield page
            nursery.cancel_scope.cancel()
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(10):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()


async def _address(directory: Path, process: trio.Process) -> str:
    """Where it takes commands: it writes that to a file of its profile."""
    path = directory / "DevToolsActivePort"
    with trio.fail_after(SECONDS):
        while True:
            assert process.poll() is None, (directory.parent / "chromium.log").read_text()
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await trio.sleep(0.05)

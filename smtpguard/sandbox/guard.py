"""The smtpguard that the demo tries: a subprocess, and ports that are kept free for it."""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from smtpguard.sandbox.conversation import Lost, open_conversation

READY_SECONDS = 30.0


class NotReady(Exception):
    """smtpguard ended, or did not become ready."""


@asynccontextmanager
async def running(config: Path, log: Path, admin_port: int) -> AsyncIterator[None]:
    """smtpguard as a subprocess, ready; ended with TERM, then KILL."""
    command = [sys.executable, "-m", "smtpguard", "run", "--config", str(config)]
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=None, stdout=output, stderr=output, env=dict(os.environ)
        )
    try:
        with trio.move_on_after(READY_SECONDS):
            # Another process: there is no event to wait for, only the port to ask.
            while process.poll() is None and not await _is_ready(admin_port):  # noqa: ASYNC110
                await trio.sleep(0.05)
        if process.poll() is not None or not await _is_ready(admin_port):
            said = await trio.Path(log).read_text("utf-8", "replace")
            raise NotReady(f"smtpguard did not become ready:\n{said[-4000:]}")
        yield
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(10):
                    await process.wait()
            if process.poll() is None:
                process.kill()
            await process.wait()


async def _is_ready(admin_port: int) -> bool:
    try:
        conversation = await open_conversation("127.0.0.1", admin_port)
    except OSError:
        return False
    try:
        await conversation.send(b"GET /healthz/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return b" 200" in await conversation.receive_line()
    except Lost:
        return False
    finally:
        conversation.close()


@contextmanager
def held_port() -> Iterator[int]:
    """A free port that the kernel gives to nobody else until the end of the block.

    It is bound here and not listened on, so that smtpguard may (SO_REUSEADDR on both sides).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port

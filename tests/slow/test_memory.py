"""A big message to ten next hops must not grow the process: one streamed pass, nothing kept (DATA-09, LMTP-05).

The real `smtpguard run` as a subprocess; the sandbox name server and ten discarding hosts in this process.
"""

import sys
from functools import partial
from pathlib import Path

import trio

from smtpguard.sandbox.dns import Names, NameServer, Security
from tests.support.rig import CONFIG

HOPS = 10
OCTETS = 1024 * 1024 * 1024
GROWTH_LIMIT = 64 * 1024 * 1024
LINE = b"x" * 998 + b"\r\n"


async def discard(taken: list[int], stream: trio.SocketStream) -> None:
    """A host that accepts everything, keeps nothing and adds the octets of each body to `taken`."""
    buffer = b""
    await stream.send_all(b"220 sink ESMTP\r\n")
    while chunk := await stream.receive_some(65536):
        buffer += chunk
        while (end := buffer.find(b"\r\n")) >= 0:
            line, buffer = buffer[:end].upper(), buffer[end + 2 :]
            if line.startswith(b"EHLO"):
                await stream.send_all(b"250-sink\r\n250 PIPELINING\r\n")
            elif line == b"DATA":
                await stream.send_all(b"354 go\r\n")
                tail, octets = buffer, len(buffer)
                while not tail.endswith(b"\r\n.\r\n"):
                    chunk = await stream.receive_some(1024 * 1024)
                    octets += len(chunk)
                    tail = tail[-4:] + chunk
                taken.append(octets)
                buffer = b""
                await stream.send_all(b"250 2.0.0 gone\r\n")
            elif line == b"QUIT":
                await stream.send_all(b"221 bye\r\n")
                return
            else:
                await stream.send_all(b"250 2.0.0 ok\r\n")


def resident(pid: int) -> int:
    """Octets of resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


async def test_one_gibibyte_to_ten_next_hops(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        names = Names()
        server = NameServer(names)
        await server.start(nursery, "127.0.0.1")
        listeners = await trio.open_tcp_listeners(0, host="127.20.0.1")
        port = listeners[0].socket.getsockname()[1]
        for number in range(2, HOPS + 1):
            listeners += await trio.open_tcp_listeners(port, host=f"127.20.0.{number}")
        taken: list[int] = []
        nursery.start_soon(trio.serve_listeners, partial(discard, taken), listeners)
        for number in range(1, HOPS + 1):
            domain = f"big{number}.example"
            names.zone(domain, Security.INSECURE)
            names.put(domain, "MX", f"10 mx.{domain}.")
            names.put(f"mx.{domain}", "A", f"127.20.0.{number}")
        socket_path = tmp_path / "lmtp.sock"
        text = CONFIG.format(
            directory=tmp_path,
            port=port,
            resolver=f"{server.address}:{server.port}",
            signed="signed.canary",
            unsigned="unsigned.canary",
            broken="broken.canary",
            policy_port=443,
            ca_file="",
            dns_seconds=5,
            outbound="",
            extra="",
        ).replace('bind = ["127.0.0.1:0"]\nprotocol = "lmtp"', f'bind = ["unix:{socket_path}"]\nprotocol = "lmtp"')
        config = tmp_path / "smtpguard.toml"
        config.write_text(text)
        with (tmp_path / "log").open("wb") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "smtpguard", "run", "--config", str(config)], stdout=log
            )
        try:
            with trio.fail_after(20):
                while not socket_path.exists():
                    await trio.sleep(0.05)
            with trio.fail_after(600):
                grown = await send_big(str(socket_path), process.pid)
        finally:
            process.terminate()
            await process.wait()
        nursery.cancel_scope.cancel()
    assert len(taken) == HOPS
    assert min(taken) >= OCTETS // len(LINE) * len(LINE)
    assert grown <= GROWTH_LIMIT, f"grew by {grown / 1048576:.1f} MiB"


async def send_big(path: str, pid: int) -> int:
    """One message to all hops; the largest growth of resident memory while it ran."""
    stream = await trio.open_unix_socket(path)
    received = b""

    async def expect(replies: int) -> bytes:
        nonlocal received
        lines: list[bytes] = []
        while len([line for line in lines if line[3:4] == b" "]) < replies:
            while b"\r\n" not in received:
                received += await stream.receive_some(65536)
            line, _, received = received.partition(b"\r\n")
            lines.append(line)
        return b"\n".join(lines)

    await expect(1)
    await stream.send_all(b"LHLO mta.example\r\n")
    await expect(1)
    rcpts = b"".join(b"RCPT TO:<a@big%d.example>\r\n" % number for number in range(1, HOPS + 1))
    await stream.send_all(b"MAIL FROM:<s@sender.example>\r\n" + rcpts + b"DATA\r\n")
    replies = await expect(HOPS + 2)
    assert b"354" in replies, replies
    start = largest = resident(pid)
    chunk = LINE * 256
    left = OCTETS // len(LINE) * len(LINE)
    while left > 0:
        await stream.send_all(chunk[:left])
        left -= len(chunk)
        largest = max(largest, resident(pid))
    await stream.send_all(b".\r\n")
    finals = await expect(HOPS)
    assert finals.count(b"250 ") == HOPS, finals
    await stream.aclose()
    sys.stderr.write(f"grown {(largest - start) / 1048576:.1f} MiB\n")
    return largest - start

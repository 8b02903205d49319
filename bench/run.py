"""How much CPU time and memory does smtpguard need beside nginx's mail proxy and Postfix?  See bench/README.md.

All peers run at once and take their turns in short slices, A B C then C B A, so that the machine's mood hits them
alike: trust the ratios of one run, not the milliseconds of two.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import hotspots
import peers
from meter import Server
from report import Idle, Slice, case_table, idle_table
from stand import Bench, Talker, open_bench, running

MAX_PROCESS_SESSIONS = 200
"""Postfix needs a process for each session: so many are enough to divide by."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    description: str
    connections: int
    per_connection: int
    octets: int = 4096
    peers: str = "inbound"

    def arguments(self) -> list[str]:
        return ["-c", str(self.connections), "-m", str(self.per_connection), "-s", str(self.octets)]


CASES: Mapping[str, Case] = {
    "new": Case("a new STARTTLS connection for each 4 KiB message", 16, 1),
    "kept": Case("50 messages of 4 KiB on each STARTTLS connection", 8, 50),
    "bulk": Case("messages of 10 MiB, connections kept", 4, 0, 10 << 20),
    "out-kept": Case("outbound, 50 messages of 4 KiB on each connection of the MTA", 8, 50, peers="outbound"),
    "out-new": Case("outbound, a new connection of the MTA for each 4 KiB message", 16, 1, peers="outbound"),
    "out-bulk": Case("outbound, messages of 10 MiB, connections kept", 4, 0, 10 << 20, peers="outbound"),
}
INBOUND_CASES = tuple(name for name, case in CASES.items() if case.peers == "inbound")


def take_slice(bench: Bench, server: Server, setup: peers.Setup, case: Case, seconds: float) -> Slice:
    """Load for so long, and what it cost.  Every message must have reached the sink."""
    count, octets = bench.received()
    used = server.cpu_seconds()
    command = bench.generator(setup, *case.arguments(), "-t", f"{seconds:g}")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 300)
    result = json.loads(done.stdout)
    time.sleep(0.05)  # the peer's last QUIT
    used = server.cpu_seconds() - used
    new_count, new_octets = bench.received()
    messages, errors, error = result["messages"], result["errors"], result["error"]
    if new_count - count < messages or new_octets - octets < result["octets"]:
        errors += 1
        error = error or f"{messages} messages were accepted, {new_count - count} reached the sink"
    return Slice(
        cpu_ms=used * 1e3 / max(messages, 1),
        messages_per_second=messages / result["seconds"],
        p50_ms=result["p50_ms"],
        p99_ms=result["p99_ms"],
        messages=messages,
        errors=errors,
        error=error,
    )


def compare(
    bench: Bench,
    setups: Mapping[str, peers.Setup],
    cases: Sequence[str],
    rounds: int,
    seconds: float,
    record: Callable[[str, str, Slice], None],
) -> dict[str, dict[str, list[Slice]]]:
    """All peers up, slices in turn; a slice without a message is kept out and its error told."""
    found: dict[str, dict[str, list[Slice]]] = {case: {name: [] for name in setups} for case in cases}
    with ExitStack() as stack:
        servers = {}
        for name, setup in list(setups.items()):
            try:
                servers[name] = stack.enter_context(running(bench, name, setup))
            except peers.Unavailable as why:
                print(f"{name}: left out: {why}", file=sys.stderr)
                for case in cases:
                    del found[case][name]
        for name, server in servers.items():
            print(f"{name}: CPU time by {server.meter.kind}", file=sys.stderr)
            for case in cases:  # warm
                take_slice(bench, server, setups[name], CASES[case], 0.3)
        for number in range(rounds):
            for case in cases:
                for name in list(servers) if number % 2 == 0 else list(reversed(servers)):
                    one = take_slice(bench, servers[name], setups[name], CASES[case], seconds)
                    record(case, name, one)
                    if one.messages:
                        found[case][name].append(one)
                    else:
                        print(f"{case} {name}: no message went through: {one.error}", file=sys.stderr)
    return found


def hold_idle(bench: Bench, name: str, setup: peers.Setup, count: int, seconds: float) -> Idle:
    """Memory per held session, live traffic beside them, and that every one of them still answers."""
    if name == "postfix":
        count = min(count, MAX_PROCESS_SESSIONS)
    with running(bench, name, setup) as server:
        take_slice(bench, server, setup, CASES["kept"], min(seconds, 1.0))
        before = server.memory_kib()
        holder = Talker(bench.generator(setup, "-H", str(count)))
        try:
            opened = json.loads(holder.line())
            kib = (server.memory_kib() - before) / max(opened["held"], 1)
            live = take_slice(bench, server, setup, CASES["kept"], seconds)
            answered = holder.ask()
        finally:
            holder.close()
    return Idle(
        held=opened["held"],
        kib_per_session=kib,
        answered=answered["answered"],
        live_per_second=live.messages_per_second,
        live_p99_ms=live.p99_ms,
        errors=live.errors + count - answered["answered"],
        error=opened["error"] or live.error or answered["error"],
    )


def profile(
    bench: Bench, name: str, setup: peers.Setup, case: str, seconds: float, top: int, keep: Path | None
) -> list[str]:
    """One case against smtpguard under cProfile, then again without, under perf."""
    output = (keep.resolve() if keep else bench.lab.directory) / f"{name}-{case}.profile"
    profiled = replace(setup, command=hotspots.under_profile(setup.command, output))
    with running(bench, name, profiled) as server:
        one = take_slice(bench, server, setup, CASES[case], seconds)
    lines = [f"{case} ({name}): {CASES[case].description}; {one.messages} messages under cProfile {one.error}"]
    lines += hotspots.by_function(output, max(one.messages, 1), top)
    with running(bench, name, setup) as server:
        take_slice(bench, server, setup, CASES[case], 0.3)
        libraries = hotspots.LibraryProfile(server.process.pid, bench.lab.directory)
        before = hotspots.thread_seconds(server.process.pid)
        one = take_slice(bench, server, setup, CASES[case], seconds)
        after = hotspots.thread_seconds(server.process.pid)
        spent = {task: (used - before.get(task, 0.0)) * 1e3 / max(one.messages, 1) for task, used in after.items()}
        main = spent.pop(server.process.pid, 0.0)
        lines.append(
            f"  without cProfile: {one.cpu_ms:.3f} CPU-ms/message (main thread {main:.3f}, "
            f"others {sum(spent.values()):.3f}), {one.messages_per_second:.0f} msg/s"
        )
        lines += libraries.finish(top)
    return lines


def _allow_descriptors(wanted: int) -> None:
    """Raise the limit on open descriptors for us and our children, as far as we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(wanted, hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (ValueError, OSError):
            continue
        return


def _setups(
    bench: Bench, names: Sequence[str], known: Mapping[str, Callable[[peers.Lab], peers.Setup]]
) -> dict[str, peers.Setup]:
    setups = {}
    for name in names:
        try:
            setups[name] = known[name](bench.lab)
        except peers.Unavailable as why:
            print(f"{name}: left out: {why}", file=sys.stderr)
    return setups


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = text.split(",")
        if unknown := set(words) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return words

    return parse


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="smtpguard beside nginx and Postfix: CPU-ms per message, KiB per idle session"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of half a second, 200 idle sessions: does it all run?"
    )
    parser.add_argument("--cases", type=_words(tuple(CASES)), default=list(INBOUND_CASES), help=",".join(CASES))
    everyone = (*peers.INBOUND_PEERS, *peers.OUTBOUND_PEERS)
    parser.add_argument("--peers", type=_words(everyone), default=list(everyone), help=",".join(everyone))
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="another checkout of smtpguard, as a further peer")
    parser.add_argument("--tree", type=Path, default=peers.REPOSITORY, metavar="DIR", help="the checkout to measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a slice")
    parser.add_argument("--idle", type=int, default=1000, metavar="N", help="TLS sessions to hold; 0: none")
    parser.add_argument("--profile", action="store_true", help="only smtpguard: where its time goes, case by case")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="with --profile: keep the cProfile files there, for pstats"
    )
    parser.add_argument("--top", type=int, default=15, help="lines of each profile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every slice as a JSON line")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.idle = 2, 0.5, min(arguments.idle, 200)
    return arguments


def main() -> int:
    """The command; 0, or 1 where no peer could be measured."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _allow_descriptors(max(65536, 4 * arguments.idle))
    with ExitStack() as stack:
        output = stack.enter_context(arguments.json.open("a")) if arguments.json else None
        bench = stack.enter_context(open_bench())
        return _profile(bench, arguments) if arguments.profile else _compare(bench, arguments, output)


def _known(side: str, arguments: argparse.Namespace) -> dict[str, Callable[[peers.Lab], peers.Setup]]:
    """The peers of one side; smtpguard from the trees that were asked for."""
    tree = arguments.tree.resolve()
    if side == "outbound":
        found: dict[str, Callable[[peers.Lab], peers.Setup]] = {}
        for name, make in peers.OUTBOUND_PEERS.items():
            found[name] = partial(make, tree=tree)
            if arguments.baseline:
                older = f"{name}-baseline"
                found[older] = partial(make, tree=arguments.baseline.resolve(), name=older)
        return found
    known: dict[str, Callable[[peers.Lab], peers.Setup]] = {
        **peers.INBOUND_PEERS,
        "smtpguard": partial(peers.smtpguard_inbound, tree=tree),
    }
    if arguments.baseline:
        name = "smtpguard-baseline"
        known[name] = partial(peers.smtpguard_inbound, tree=arguments.baseline.resolve(), name=name)
    return known


def _profile(bench: Bench, arguments: argparse.Namespace) -> int:
    for case in arguments.cases:
        known = _known(CASES[case].peers, arguments)
        for name, make in known.items():
            if name in {"nginx", "postfix"} or name not in arguments.peers:
                continue
            lab = replace(bench.lab, directory=Path(tempfile.mkdtemp(dir=bench.lab.directory)))
            try:
                lines = profile(bench, name, make(lab), case, arguments.seconds, arguments.top, arguments.keep)
                print("\n".join(lines), flush=True)
            except peers.Unavailable as why:
                print(f"{name}: left out: {why}", file=sys.stderr)
    return 0


def _compare(bench: Bench, arguments: argparse.Namespace, output: IO[str] | None) -> int:
    def record(case: str, name: str, one: Slice) -> None:
        if output is not None:
            print(json.dumps({"case": case, "peer": name, **asdict(one)}), file=output, flush=True)

    measured = False
    tables: list[str] = []
    for side in ("inbound", "outbound"):
        cases = [name for name in arguments.cases if CASES[name].peers == side]
        known = _known(side, arguments)
        names = [name for name in known if name.removesuffix("-baseline") in arguments.peers]
        if not cases:
            continue
        setups = _setups(bench, names, known)
        found = compare(bench, setups, cases, arguments.rounds, arguments.seconds, record)
        for case in cases:
            tables += [*case_table(case, CASES[case].description, found[case]), ""]
            measured = measured or any(found[case].values())
        if side == "inbound" and arguments.idle:
            idle = {}
            for name, setup in setups.items():
                try:
                    idle[name] = hold_idle(bench, name, setup, arguments.idle, arguments.seconds)
                except peers.Unavailable:
                    continue  # it was told above
            tables += [*idle_table(idle), ""]
    print("\n".join(tables))
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())

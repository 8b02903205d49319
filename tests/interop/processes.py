"""The programs of the lab as child processes: run to the end, waited for, or kept."""

import http.client
import os
import re
import shlex
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], seconds: float = 20.0) -> T:
    """Poll until `condition()` is true and give its value; the servers are other processes."""
    end = time.monotonic() + seconds  # noqa: TID251
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:  # noqa: TID251
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def run(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def lab_directory(name: str) -> Iterator[Path]:
    """A directory for a lab's files, which every user may enter; gone at the end.  Root only, as what lives there."""
    assert os.geteuid() == 0, "the interop tests make network namespaces and start Postfix: run them as root"
    directory = Path(run("mktemp", "-d", f"/var/tmp/smtpguard-{name}.XXXXXX").strip())
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def messages_in(directory: Path, marker: bytes) -> list[bytes]:
    """The messages in the mailboxes of a lab's MTAs that hold `marker`."""
    boxes = ("mail/all/new/*", "exim/mail/new/*", "osmtpd/mail/new/*")
    found = [path.read_bytes() for box in boxes for path in directory.glob(box)]
    return [octets for octets in found if marker in octets]


def spawn(
    processes: list[subprocess.Popen[bytes]], log: Path, *command: str | Path, ready: Callable[[], bool]
) -> subprocess.Popen[bytes]:
    """Start a server that stays in the foreground, add it to `processes`, and wait until it is ready."""
    with log.open("wb") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out)
    processes.append(process)
    try:
        wait_for(f"{log.stem} is ready", ready)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-4000:]}") from error
    return process


TOOLS = Path("/var/lib/smtpguard-interop")
EXIM = TOOLS / "exim" / "usr" / "sbin" / "exim4"
OPENSMTPD = TOOLS / "opensmtpd" / "usr" / "sbin" / "smtpd"


def resolving_by(resolver: str, directory: Path) -> str:
    """The beginning of a shell script in a mount namespace of its own: what /etc/resolv.conf says after `nameserver`;
    empty: it stays as it is."""
    if not resolver:
        return ""
    own = directory / "resolv.conf"
    own.write_text(f"nameserver {resolver}\n")
    return f"mount --bind {own} /etc/resolv.conf && "


def spawn_exim(
    processes: list[subprocess.Popen[bytes]], directory: Path, main: str, sections: str, resolver: str = ""
) -> subprocess.Popen[bytes]:
    """Exim in `directory` with these lines of the main section, and the sections from `begin acl` on."""
    for name in ("spool", "log", "mail"):
        (directory / name).mkdir(parents=True)
        shutil.chown(directory / name, "Debian-exim", "Debian-exim")
    config = directory / "exim.conf"
    config.write_text(
        f"exim_path = {EXIM}\nspool_directory = {directory}/spool\nlog_file_path = {directory}/log/%slog\n"
        f"pid_file_path = {directory}/spool/pid\nkeep_environment =\n{main}{sections}"
    )
    log = directory.with_name(f"{directory.name}.log")
    script = resolving_by(resolver, directory) + f"exec {EXIM} -C {config} -bdf -q1m"
    ready = (directory / "spool" / "pid").exists
    return spawn(processes, log, "unshare", "--mount", "sh", "-c", script, ready=ready)


def spawn_opensmtpd(
    processes: list[subprocess.Popen[bytes]], directory: Path, config: str, ready: tuple[str, int], resolver: str = ""
) -> subprocess.Popen[bytes]:
    """OpenSMTPD, with a spool of its own; `ready` is where it listens.  Its log is `<directory>.log`."""
    directory.mkdir(exist_ok=True)
    (directory / "mail").mkdir()
    shutil.chown(directory / "mail", "nobody", "nogroup")
    path = directory / "smtpd.conf"
    path.write_text(config)
    spool = "/var/spool/smtpd"
    script = resolving_by(resolver, directory) + (
        f"mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs {spool} && chmod 711 {spool} && "
        f"mkdir -m 700 {spool}/purge && chown opensmtpq {spool}/purge && exec {OPENSMTPD} -d -f {path}"
    )
    log = directory.with_name(f"{directory.name}.log")
    return spawn(processes, log, "unshare", "--mount", "sh", "-c", script, ready=lambda: listens(*ready))


def listens(address: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((address, port)) == 0


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all of them to end, and see to it."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Postfix:
    """One Postfix instance of its own directories; `address` is where its smtpd listens for mail clients."""

    directory: Path
    address: str = ""
    resolver: str = ""
    protocols: str = "ipv4"
    _start: list[str] = field(default_factory=list, repr=False)

    @property
    def config(self) -> Path:
        return self.directory / "etc"

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def start(self, main: str, services: str, copied: Sequence[Path] = ()) -> None:
        """Run it with these parts of main.cf and master.cf, and files copied beside them."""
        for name in ("etc", "queue", "data"):
            (self.directory / name).mkdir(parents=True)
        shutil.chown(self.directory / "data", "postfix")
        (self.config / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {self.directory}/queue\n"
            f"data_directory = {self.directory}/data\nmaillog_file = {self.directory}/log\n"
            f"maillog_file_prefixes = {self.directory}\ninet_protocols = {self.protocols}\n"
            "alias_maps =\nalias_database =\nbiff = no\nsmtputf8_enable = yes\nlocal_recipient_maps =\n" + main
        )
        master = Path("/etc/postfix/master.cf.proto").read_text()
        master = re.sub(r"(?m)^smtp +inet .*\n", "", master)
        master = re.sub(r"(?m)^(\S+ +(?:inet|unix|unix-dgram|fifo) +\S+ +\S+ +)y", r"\1n", master)
        (self.config / "master.cf").write_text(master + services)
        shutil.copy("/etc/postfix/dynamicmaps.cf", self.config)
        if Path("/etc/postfix/dynamicmaps.cf.d").is_dir():
            shutil.copytree("/etc/postfix/dynamicmaps.cf.d", self.config / "dynamicmaps.cf.d")
        for path in (Path("/etc/postfix/postfix-files"), *copied):
            shutil.copy(path, self.config)
        start = ["postfix", "-c", str(self.config), "start"]
        if self.resolver:
            script = resolving_by(self.resolver, self.directory) + f"exec {shlex.join(start)}"
            start = ["unshare", "--mount", "sh", "-c", script]
        self._start = start
        self.restart()

    def restart(self) -> None:
        """Start it again after `stop`."""
        try:
            run(*self._start)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from error

    def stop(self) -> None:
        subprocess.run(["postfix", "-c", str(self.config), "stop"], capture_output=True, check=False)

    def send(self, *recipients: str, content: bytes, port: int) -> None:
        """Hand a message over, as a mail client would."""
        with smtplib.SMTP(self.address, port, timeout=60) as client:
            refused = client.sendmail("user@sender.test", recipients, content)
            assert not refused, refused

    def flush(self) -> None:
        run("postqueue", "-c", self.config, "-f")

    def hang_up(self) -> None:
        """Close the connections that it keeps: after two mails within a second a third one to the same host takes the
        connection of the second, for 2 s (smtp_connection_cache_on_demand)."""
        master = (self.directory / "queue" / "pid" / "master.pid").read_text().strip()
        subprocess.run(["pkill", "--parent", master, "scache"], check=False)

    def queue(self) -> str:
        return run("postqueue", "-c", self.config, "-p")

    def purge(self) -> None:
        """Delete all mail, whatever is being done with it."""
        run("postsuper", "-c", self.config, "-d", "ALL")

    @contextmanager
    def settings(self, **values: str) -> Iterator[None]:
        """Other values in main.cf for a while; "" takes the setting away."""
        before = (self.config / "main.cf").read_text()
        try:
            if values:
                run("postconf", "-c", self.config, "-e", *(f"{name}={value}" for name, value in values.items()))
            run("postfix", "-c", self.config, "reload")
            yield
        finally:
            (self.config / "main.cf").write_text(before)
            run("postfix", "-c", self.config, "reload")

    def lines_about(self, recipient: str) -> list[str]:
        """The log's lines about deliveries to this recipient."""
        return [line for line in self.log.splitlines() if f"to=<{recipient}>" in line]

    def last_line(self, recipient: str) -> str:
        """The last of `lines_about`, or nothing."""
        lines = self.lines_about(recipient)
        return lines[-1] if lines else ""


@dataclass
class Smtpguard:
    """The proxy as a process; `prefix` is the command that runs it, as another user for example."""

    config: Path
    log_path: Path
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    handed_over: bool = False
    admin_port: int = 9825

    def start(self, sockets: Sequence[socket.socket] = (), *, ready: bool = True) -> None:
        """Run it; `sockets` are handed over as systemd would (LISTEN_FDS), the first as descriptor 3.

        `ready` False: wait for its admin address only.
        """
        command = [*self.prefix, sys.executable, "-m", "smtpguard", "run", "--config", str(self.config)]
        self.handed_over = bool(sockets)
        if sockets:
            moves = " ".join(f"{number}<&{sock.fileno()}" for number, sock in enumerate(sockets, 3))
            script = f"exec {moves}; export LISTEN_FDS={len(sockets)} LISTEN_PID=$$; exec {shlex.join(command)}"
            command = ["bash", "-c", script]
        with self.log_path.open("ab") as log:
            handed = [sock.fileno() for sock in sockets]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=handed)
        wait_for("smtpguard is ready" if ready else "smtpguard answers", self.is_ready if ready else self.is_alive)

    def is_alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log[-4000:]
        try:
            return self.get("/healthz/live")[0] == 200
        except OSError:
            return False

    def is_ready(self) -> bool:
        return self.is_alive() and self.get("/healthz/ready")[0] == 200

    def ensure(self) -> None:
        """Run as at the lab's start, whatever a test left."""
        if self.process is not None and (self.process.poll() is not None or self.handed_over):
            self.stop()
            self.start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def logged(self, pattern: str, since: int = 0) -> None:
        """Wait for a line: they are written up to a tenth of a second after what they tell of."""
        wait_for(f"a line like {pattern}", lambda: re.search(pattern, self.log[since:]))

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of the admin server's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def counted(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        found = re.findall(rf"(?m)^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics")[1])
        return sum(float(value) for value in found)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another smtpguard command with this configuration."""
        command = [sys.executable, "-m", "smtpguard", *arguments, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

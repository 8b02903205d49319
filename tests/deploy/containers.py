"""Images built and run without a daemon, without systemd and without a registry.

buildah with chroot isolation, podman with runc; storage and settings are the tests' own, the base is what
tests/deploy/install.sh made by debootstrap.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = Path("/var/lib/smtpguard-deploy")
TOOLS = HOME / "tools" / "bin"
DOCKER_COMPOSE = HOME / "docker-compose"
BASE = "localhost/debian:smtpguard-test"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

HARDENED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=host",
)  # fmt: skip
"""How the image is meant to run.  (`host` is the network namespace of the calling test.)"""

_STORAGE = """
[storage]
driver = "{driver}"
runroot = "{directory}/run"
graphroot = "{directory}/graph"
[storage.options.overlay]
skip_mount_home = "true"
"""
# runc takes part where cgroups are in hybrid mode and RLIMITs cannot be raised; crun does not.
_CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "{directory}/networks"
"""


class Failed(AssertionError):
    """A command failed; the message has its output."""


def output(command: Sequence[str | Path], *, cwd: Path = ROOT, stdin: str = "", **environment: str) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        input=stdin,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=500,
    )
    if done.returncode != 0:
        raise Failed(
            f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-8000:]}{done.stderr[-8000:]}"
        )
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """podman and buildah over one directory of images and containers."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
        }

    def buildah(self, *words: str | Path) -> str:
        return output(["buildah", *words], **self.environment).strip()

    def podman(self, *words: str | Path) -> str:
        return output(["podman", "--log-level=fatal", *words], **self.environment).strip()

    def import_base(self) -> None:
        """The image BASE."""
        container = self.buildah("from", "scratch")
        self.buildah("add", "-q", container, HOME / "base.tar", "/")
        self.buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.buildah("commit", "-q", "--rm", container, BASE)

    def build(self, name: str, *options: str, file: str = "Dockerfile", context: Path = ROOT) -> "Image":
        """Build an image of this repository, or of another directory."""
        self.buildah(
            "build", "--isolation=chroot", "--pull-never", "--network=host", "--format=docker", f"--file={file}",
            f"--volume={AUTHORITIES}:/run/authorities.pem:ro", "--build-arg=PIP_CERT=/run/authorities.pem",
            f"--build-arg=BASE={BASE}", f"--tag={name}", *options, context,
        )  # fmt: skip
        return Image(self, name)

    @contextmanager
    def container(self, image: str, *options: str, command: Sequence[str] = ()) -> Iterator["Container"]:
        """A started container, removed at the end."""
        container = Container(self, self.podman("create", *options, image, *command))
        try:
            self.podman("start", container.id)
            yield container
        finally:
            self.podman("rm", "--force", "--time=0", "--volumes", container.id)


@dataclass(frozen=True)
class Image:
    """A built image."""

    engine: Engine
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """`podman image inspect`."""
        (found,) = json.loads(self.engine.podman("image", "inspect", self.name))
        assert isinstance(found, dict)
        return found

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Its file system."""
        try:
            yield Path(self.engine.podman("image", "mount", self.name))
        finally:
            self.engine.podman("image", "unmount", self.name)


@dataclass(frozen=True)
class Container:
    """A container, by its id."""

    engine: Engine
    id: str

    @property
    def log(self) -> str:
        """What it wrote."""
        path = self.engine.podman("inspect", "--format={{.HostConfig.LogConfig.Path}}", self.id)
        return "\n".join(line.split(" ", 3)[-1] for line in Path(path).read_text().splitlines())

    @property
    def state(self) -> dict[str, Any]:
        """`podman inspect`, its State."""
        (found,) = json.loads(self.engine.podman("inspect", self.id))
        state = found["State"]
        assert isinstance(state, dict)
        return state

    def is_healthy(self) -> bool:
        """Run the image's own HEALTHCHECK in it, as Docker would.

        podman's exit code says nothing: while the start period lasts it is 0 for a failed check, too.
        """
        try:
            self.engine.podman("healthcheck", "run", self.id)
        except Failed:
            return False
        status = self.engine.podman("inspect", "--format={{.State.Health.Status}}", self.id)
        return status == "healthy"

    def run(self, script: str) -> str:
        """What a script in it prints."""
        return self.engine.podman("exec", self.id, "sh", "-euc", script)

    def kill(self, name: str) -> None:
        self.engine.podman("kill", f"--signal={name}", self.id)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return int(self.engine.podman("wait", self.id))


@contextmanager
def open_engine() -> Iterator[Engine]:
    """An engine without images, and without a trace at the end."""
    directory = Path(tempfile.mkdtemp(prefix="smtpguard-containers-", dir="/var/tmp"))
    try:
        (directory / "storage.conf").write_text(_STORAGE.format(directory=directory, driver=_driver(directory)))
        (directory / "containers.conf").write_text(_CONTAINERS.format(directory=directory))
        yield Engine(directory)
    finally:
        # buildah leaves one mounted where a stage of a Dockerfile has nothing but FROM.
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            if (path := mount.split()[1]).startswith(str(directory)):
                output(["umount", path])
        shutil.rmtree(directory, ignore_errors=True)


def _driver(directory: Path) -> str:
    """overlay, where a file system here can be laid over another: vfs copies the whole image for each container."""
    lower, upper, work, merged = (directory / "trial" / name for name in ("lower", "upper", "work", "merged"))
    for layer in (lower, upper, work, merged):
        layer.mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    if subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=False).returncode != 0:
        return "vfs"
    output(["umount", merged])
    return "overlay"

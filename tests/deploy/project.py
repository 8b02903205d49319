"""A project of docker compose on podman, which speaks Docker's API; healthy or not is asked here.

podman leaves the beat of health checks to timers of systemd, and there is none.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.containers import DOCKER_COMPOSE, Container, Engine, Failed, output
from tests.interop.namespace import Network
from tests.interop.processes import end, wait_for

SECONDS = 90.0


@dataclass(frozen=True)
class Project:
    """compose.yaml in `directory`, on a host of its own network."""

    engine: Engine
    directory: Path
    host: Network
    variables: dict[str, str]

    @property
    def socket(self) -> Path:
        return self.directory / "podman.sock"

    def compose(self, *words: str) -> str:
        """A command that needs nobody's health."""
        with self.host.entered():
            return output([DOCKER_COMPOSE, *words], cwd=self.directory, **self._environment)

    def up(self, *words: str) -> None:
        """`docker compose up --detach`, with health checks while it waits for them."""
        command = [str(DOCKER_COMPOSE), "up", "--detach", "--no-build", *words]
        log = self.directory / "up.log"
        with log.open("wb") as out, self.host.entered():
            process = subprocess.Popen(
                command, cwd=self.directory, env={**os.environ, **self._environment}, stdout=out, stderr=out
            )
        try:
            wait_for("compose up", lambda: self._beat() or process.poll() is not None, SECONDS)
            assert process.returncode == 0, f"{log.read_text()}\n{self.explanation()}"
        finally:
            process.kill()
            process.wait()

    def container(self, service: str) -> Container:
        return Container(self.engine, self.compose("ps", "--all", "--quiet", service).strip())

    def log(self, service: str) -> str:
        return self.container(service).log

    def explanation(self) -> str:
        """The last lines of every service."""
        return self.compose("logs", "--no-color", "--tail=15")

    @property
    def _environment(self) -> dict[str, str]:
        return {"DOCKER_HOST": f"unix://{self.socket}", **self.variables}

    def _beat(self) -> None:
        for container in self.engine.podman("ps", "--quiet", "--filter=health=starting").split():
            with suppress(Failed):  # not yet, or there no more
                self.engine.podman("healthcheck", "run", container)


@contextmanager
def open_project(engine: Engine, directory: Path, host: Network, **variables: str) -> Iterator[Project]:
    """The project, not yet up; at the end it is down, and nothing remains of it."""
    project = Project(engine, directory, host, variables)
    # podman's run-time files about networks have one place, which other projects on this machine must not share.
    own = ["unshare", "--mount", "sh", "-ec", 'mkdir -p "$0"; mount -t tmpfs tmpfs "$0"; exec "$@"', "/run/containers"]
    api = [*own, "podman", "--log-level=fatal", "system", "service", "--time=0", f"unix://{project.socket}"]
    with (directory / "podman.log").open("wb") as log, host.entered():
        service = subprocess.Popen(api, env={**os.environ, **engine.environment}, stdout=log, stderr=log)
    try:
        wait_for("podman's API", project.socket.exists)
        try:
            yield project
        except AssertionError as error:
            raise AssertionError(f"{error}\n{project.explanation()}") from error
        finally:
            project.compose("down", "--volumes")
    finally:
        end([service])

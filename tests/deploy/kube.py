"""A pod of deploy/kubernetes as podman plays it: the manifests by kustomize, the least that podman 4.3 needs changed.

`pod_of` has all of that, each with its reason; whatever it does not name is played as it stands.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.containers import TOOLS, Container, Engine, output
from tests.interop.processes import run

Document = dict[str, Any]
GROUP = 10125
"""fsGroup of the pod."""


def kustomized(directory: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a directory."""
    script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
    built = output([TOOLS / "kubectl", "kustomize", directory])
    documents = json.loads(output([TOOLS / "python", "-c", script], stdin=built))
    assert isinstance(documents, list)
    return documents


def write_tls_secret(directory: Path, pair: Path) -> None:
    """The volume of a Secret of type kubernetes.io/tls as the kubelet makes it: defaultMode 0440, and the fsGroup's."""
    directory.mkdir(parents=True)
    for name in ("tls.crt", "tls.key"):
        shutil.copy(pair, directory / name)
        shutil.chown(directory / name, group=GROUP)
        (directory / name).chmod(0o440)


def pod_of(documents: Sequence[Document], directory: Path) -> list[Document]:
    """The first pod of the StatefulSet, and the ConfigMaps beside it.

    `directory` has what the cluster would give it: claims are bound to `storage`, Secrets lie in `secrets`, and
    `resolv.conf` tells containers the cluster's resolver.
    """
    (found,) = (one for one in documents if one["kind"] == "StatefulSet")
    template = found["spec"]["template"]
    spec = template["spec"]
    name = f"{found['metadata']['name']}-0"
    # 4.3 knows no native sidecars: they become ordinary containers, and the order in which they start is lost.
    starting = spec.pop("initContainers", [])
    spec["initContainers"] = [one for one in starting if one.get("restartPolicy") != "Always"]
    sidecars = [one for one in starting if one.pop("restartPolicy", None) == "Always"]
    spec["containers"] = sidecars + spec["containers"]
    # Else 4.3 removes an init container before it has run.  (It waits 20 s for one that has ended: its clean-up cannot
    # get the lock of the pod that is being started.)
    template["metadata"]["annotations"]["io.podman.annotations.init.container.type"] = "always"
    # 4.3 mounts a Secret in base64, as it stands in the manifest.
    for volume in spec["volumes"]:
        if secret := volume.pop("secret", None):
            volume["hostPath"] = {"path": str(directory / "secrets" / secret["secretName"]), "type": "Directory"}
    # To podman they are ports of the host.
    for container in spec["containers"]:
        container.pop("ports", None)
    _claims(found, spec, directory / "storage")
    # dnsConfig is not heeded where podman makes no network.
    resolver = {"path": str(directory / "resolv.conf"), "type": "File"}
    spec["volumes"].append({"name": "resolver", "hostPath": resolver})
    for container in spec["containers"]:
        container.setdefault("volumeMounts", []).append({"name": "resolver", "mountPath": "/etc/resolv.conf"})
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}, "spec": spec}
    return [*(one for one in documents if one["kind"] == "ConfigMap"), pod]


def _claims(found: Document, spec: Document, storage: Path) -> None:
    """Directories in place of the claims; 4.3 does not heed subPath, so each is a volume of its own."""
    claims = {one["metadata"]["name"] for one in found["spec"]["volumeClaimTemplates"]}
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] in claims:
                path = storage / mount["name"] / mount.pop("subPath")
                path.mkdir(parents=True, exist_ok=True)
                mount["name"] = f"{mount['name']}-{path.name}"
                spec["volumes"].append({"name": mount["name"], "hostPath": {"path": str(path), "type": "Directory"}})


def give_to_group(storage: Path) -> None:
    """What the kubelet does with fsGroup before each start, by OnRootMismatch: to all of a volume, or to nothing."""
    for volume in storage.iterdir():
        if volume.stat().st_gid != GROUP:
            for path in (volume, *volume.rglob("*")):
                shutil.chown(path, group=GROUP)
                path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))


@dataclass(frozen=True)
class Pod:
    """A pod that podman plays."""

    engine: Engine
    name: str
    containers: tuple[str, ...]
    pid: int

    def container(self, name: str) -> Container:
        return Container(self.engine, f"{self.name}-{name}")

    def log(self, container: str) -> str:
        return self.container(container).log

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What fails is told together with the last lines of each container."""
        try:
            yield
        except AssertionError as error:
            logs = (f"== {name}\n{self.log(name)[-3000:]}" for name in self.containers)
            raise AssertionError("\n".join([str(error), *logs])) from error

    def in_network(self, *command: str) -> str:
        """A command of this machine in the pod's network."""
        return run("nsenter", f"--net=/proc/{self.pid}/ns/net", *command)

    def status(self, container: str) -> Mapping[str, str]:
        """What the kernel holds of a container's first process."""
        pid = self.container(container).state["Pid"]
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@contextmanager
def played(engine: Engine, documents: Sequence[Document], directory: Path) -> Iterator[Pod]:
    """The pod, its init containers run to their end; stopped as its grace period says, and removed."""
    file = directory / "play.yaml"
    file.write_text("\n---\n".join(json.dumps(one) for one in documents))  # JSON is YAML
    (pod,) = (one for one in documents if one["kind"] == "Pod")
    name = pod["metadata"]["name"]
    containers = tuple(one["name"] for one in pod["spec"]["containers"])
    try:
        engine.podman("kube", "play", "--network=none", file)
        infra = engine.podman("pod", "inspect", "--format={{.InfraContainerID}}", name)
        yield Pod(engine, name, containers, Container(engine, infra).state["Pid"])
    finally:
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        engine.podman("pod", "stop", "--ignore", f"--time={grace}", name)
        engine.podman("pod", "rm", "--ignore", "--force", name)
        # ConfigMaps and emptyDirs are volumes to podman, and outlive the pod.
        engine.podman("volume", "prune", "--force")

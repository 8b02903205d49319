"""The init container that redirects port 25: one program, run as the manifest runs it, and its word when it cannot.

tests/interop tells what the rules do to connections; here they are loaded.
"""

import os
from pathlib import Path

import pytest

from tests.deploy.containers import HARDENED, Engine, Image
from tests.deploy.kube import Document, kustomized
from tests.deploy.test_manifests import DEPLOY
from tests.interop.processes import run

INTERCEPTING = DEPLOY / "kubernetes" / "sidecar-intercepting"
RULES = INTERCEPTING / "redirect.nft"
ALLOWED = "--cap-add=NET_ADMIN"


@pytest.fixture(scope="module")
def manifest() -> Document:
    """The container as the StatefulSet has it."""
    (workload,) = (one for one in kustomized(INTERCEPTING) if one["kind"] == "StatefulSet")
    found = workload["spec"]["template"]["spec"]["initContainers"][0]
    assert isinstance(found, dict)
    return found


def ended(engine: Engine, image: Image, rules: Path, *options: str, arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of one run, in the network of the test."""
    mounted = f"--volume={rules}:/etc/smtpguard/redirect.nft:ro"
    with engine.container(image.name, *HARDENED, *options, mounted, command=arguments) as container:
        return container.wait(), container.log


def test_it_is_one_program(interception_image: Image) -> None:
    """No shell beside the one that may change the network; no setuid file, labels, and its size is printed."""
    labels = interception_image.config["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "smtpguard-interception"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    with interception_image.mounted() as root:
        programs = [path.name for name in ("bin", "sbin") for path in (root / "usr" / name).iterdir()]
        assert programs == ["nft"]
        found = [Path(directory, name) for directory, _, names in os.walk(root) for name in names]
        assert not [path for path in found if path.lstat().st_mode & 0o6000]
    size = interception_image.config["Size"] / 1e6
    print(f"\nsize of the interception image: {size:.0f} MB")
    assert size < 25


def test_what_the_manifest_gives_it(manifest: Document) -> None:
    """Root, since NET_ADMIN is root's here, with this capability and no other, and nothing to write."""
    assert manifest["name"] == "interception"
    assert "restartPolicy" not in manifest
    assert manifest["securityContext"] == {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }


@pytest.mark.usefixtures("network")
def test_it_loads_the_rules_and_ends(engine: Engine, interception_image: Image, manifest: Document) -> None:
    """Twice, as when a pod's sandbox is made anew: the rules are there once."""
    for _ in range(2):
        assert ended(engine, interception_image, RULES, ALLOWED, arguments=manifest["args"]) == (0, "")
    assert run("nft", "list", "ruleset").split("\n")[:7] == [
        "table inet smtpguard {",
        "\tchain output {",
        "\t\ttype nat hook output priority -100; policy accept;",
        "\t\tmeta skuid 10125 return",
        "\t\tfib daddr type local return",
        "\t\ttcp dport 25 redirect to :10025",
        "\t}",
    ]


@pytest.mark.usefixtures("network")
def test_a_pod_without_its_rules_does_not_start(
    engine: Engine, interception_image: Image, manifest: Document, tmp_path: Path
) -> None:
    """Mistakes end it with a code that is not 0, a line that names the place, and no half of the rules."""
    broken = tmp_path / "redirect.nft"
    broken.write_text(RULES.read_text().replace("redirect to :10025", "redirect too :10025"))
    broken.chmod(0o644)
    code, said = ended(engine, interception_image, broken, ALLOWED, arguments=manifest["args"])
    assert code == 1
    assert "/etc/smtpguard/redirect.nft:17:" in said
    assert "syntax error" in said
    code, said = ended(engine, interception_image, RULES, arguments=manifest["args"])
    assert code == 1
    assert "Operation not permitted" in said
    assert run("nft", "list", "ruleset") == ""

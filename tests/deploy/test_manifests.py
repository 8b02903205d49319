"""What deploy/ ships for others to read is read here by their own tools; what smtpguard reads, by smtpguard."""

import re
from pathlib import Path

import pytest

from smtpguard.config.build import Settings, load
from smtpguard.sandbox.certificates import CertificateMaker
from tests.deploy.containers import ROOT, TOOLS, output

DEPLOY = ROOT / "deploy"
KUSTOMIZATIONS = sorted(path.parent for path in DEPLOY.glob("kubernetes/**/kustomization.yaml"))
DOCKERFILES = sorted(path for path in [ROOT / "Dockerfile", *DEPLOY.rglob("Dockerfile")])
CONFIGS = sorted(DEPLOY.rglob("smtpguard.toml"))
SCRIPTS = sorted(
    path
    for pattern in ("deploy/**/*", "tests/**/*.sh", "tools/*.sh", "bench/*.sh", ".ci/run")
    for path in ROOT.glob(pattern)
    if path.is_file() and re.match(rb"#!.*sh\n", path.read_bytes())
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=relative)
def test_hadolint(dockerfile: Path) -> None:
    output([TOOLS / "hadolint", "--failure-threshold=info", dockerfile])


def test_every_base_is_the_same_and_pinned() -> None:
    """By digest, by one ARG that a build can replace."""
    bases = {line for path in DOCKERFILES for line in path.read_text().splitlines() if line.startswith("ARG BASE=")}
    assert len(bases) == 1
    assert re.fullmatch(r"ARG BASE=docker\.io/library/debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", bases.pop())
    for path in DOCKERFILES:
        text = path.read_text()
        stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {"${BASE}", "scratch", *stages}


@pytest.mark.parametrize("script", SCRIPTS, ids=relative)
def test_shellcheck(script: Path) -> None:
    output(["shellcheck", script])


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=relative)
def test_kubernetes(directory: Path, tmp_path: Path) -> None:
    """kustomize builds it, the schemas of the API accept every field of it."""
    built = tmp_path / "built.yaml"
    built.write_text(output([TOOLS / "kubectl", "kustomize", directory]))
    said = output([TOOLS / "kubernetes-validate", "--strict", built])
    assert said == "" or "passed" in said
    text = built.read_text()
    # Each process of ours: no root (but the one-shot init container), nothing writable, no capabilities.
    ours = text.count("image: smtpguard:") + text.count("image: smtpguard-unbound:")
    assert ours == 2
    assert text.count("runAsNonRoot: true") == ours
    assert "startupProbe" in text
    assert "restartPolicy: Always" in text


def test_the_pod_monitor() -> None:
    """The operator's own resource, as its CRD has it: of what was given nothing is wrong, and nothing is unknown."""
    script = """if True:
        import json, sys, yaml
        from cloudcoil.models.prometheus_operator.v1 import PodMonitor
        given = yaml.safe_load(sys.stdin)
        found = PodMonitor.model_validate_json(json.dumps(given), strict=True)
        understood = json.loads(found.model_dump_json(by_alias=True, exclude_unset=True))
        sys.exit(f"lost: {given}\\nof which remains: {understood}" if understood != given else 0)
    """
    text = (DEPLOY / "kubernetes" / "podmonitor.yaml").read_text()
    output([TOOLS / "python", "-c", script], stdin=text)
    for name, file in (("mail", "sidecar/mail.yaml"), ("smtpguard", "standalone/smtpguard.yaml")):
        pod = (DEPLOY / "kubernetes" / file).read_text()
        assert f"labels: {{app.kubernetes.io/name: {name}}}" in pod
        assert "{name: metrics, containerPort: 9826}" in pod


@pytest.mark.parametrize("config", CONFIGS, ids=relative)
def test_smtpguard_reads_the_configurations(config: Path, tmp_path: Path) -> None:
    """With the variables that the manifests set; the certificates are the test's own."""
    maker = CertificateMaker(tmp_path)
    pair = maker.leaf(maker.root("Test Root"), ["mx1.example.org"]).pem_file
    text = re.sub(r'^(certificate|key) = ".*"$', rf'\1 = "{pair}"', config.read_text(), flags=re.MULTILINE)
    path = tmp_path / "smtpguard.toml"
    path.write_text(text)
    environ = {} if re.search("^hostname", text, re.MULTILINE) else {"SMTPGUARD_HOSTNAME": "mx1.example.org"}
    found = load(path, environ)
    assert isinstance(found, Settings), [str(error) for error in found]


def test_sockets_and_listeners_meet() -> None:
    """Each shipped socket unit is one that the documentation's listeners bind, under a name of its own."""
    names = {}
    for path in sorted((DEPLOY / "systemd").glob("*.socket")):
        text = path.read_text()
        (name,) = re.findall(r"^FileDescriptorName=(\S+)$", text, re.MULTILINE)
        assert path.name == f"smtpguard-{name}.socket"
        assert re.findall(r"^Service=(\S+)$", text, re.MULTILINE) == ["smtpguard.service"]
        names[name] = re.findall(r"^ListenStream=(\S+)$", text, re.MULTILINE)
    shipped = (DEPLOY / "smtpguard.toml").read_text()
    for name in ("lmtp", "smtp"):
        assert all(f'"{stream}"' in shipped for stream in names[name])
    assert names["mx"] == ["0.0.0.0:25", "[::]:25"]


def test_interception_has_one_set_of_rules() -> None:
    """kustomize cannot read a file outside of its directory, so the rules stand twice; and the user is the image's."""
    texts = {path.read_text() for path in DEPLOY.rglob("redirect.nft")}
    assert len(texts) == 1
    assert "define smtpguard = 10125\n" in texts.pop()
    assert "\nUSER 10125:10125\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("file", ["main.cf.smtpguard", "master.cf.smtpguard"])
def test_the_mta_of_compose_has_the_settings_for_postfix(file: str) -> None:
    """deploy/postfix, word for word."""
    settings = [line for line in (DEPLOY / "postfix" / file).read_text().splitlines() if not line.startswith("#")]
    assert "\n".join(settings) in (DEPLOY / "compose" / "mta" / file.removesuffix(".smtpguard")).read_text()

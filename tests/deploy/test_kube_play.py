"""The pods of deploy/kubernetes played by podman, with mail out and in, and an Internet that they must verify.

    pod: MTA, smtpguard, unbound, rules that redirect ── eth0, net0 ── the test: knot (signed zones), mail hosts

The cluster's resolver is knot; the pod's unbound asks it for test. and has its trust anchor by a file of local.d, as
an operator would add a zone of an intranet.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smtpguard.sandbox.certificates import CertificateMaker
from smtpguard.sandbox.client import unverifying_context
from tests.deploy.containers import ROOT, Engine
from tests.deploy.documents import blocks
from tests.deploy.kube import Document, Pod, give_to_group, kustomized, played, pod_of, write_tls_secret
from tests.deploy.outside import CANARY, DANE, INTERNET, SECONDS, greeted, link, local_conf, open_internet
from tests.interop.path import Stripper
from tests.interop.processes import lab_directory, messages_in, wait_for

PAGE = "deploy-kubernetes.md"
KUBERNETES = ROOT / "deploy" / "kubernetes"
NAME = "mx1.your.example"
RELAYS = {"sidecar": "127.0.0.1[127.0.0.1]:10027", "sidecar-intercepting": f"mx.dane.test[{DANE}]:25"}
"""Where the MTA thinks that mail for dane.test goes."""


def documents(kind: str, anchor: str, directory: Path) -> list[Document]:
    """The overlays that the page tells of, around one of the kustomizations."""
    overlay, files = directory / "overlay", directory / "files"
    overlay.mkdir()
    files.mkdir()
    text = (
        blocks(PAGE, "overlay", "yaml")
        .replace("registry.example/", "localhost/")
        .replace("newTag: 0.1.0", "newTag: test")
    )
    base = os.path.relpath(KUBERNETES / kind, overlay)
    (overlay / "kustomization.yaml").write_text(text.replace("../smtpguard/deploy/kubernetes/sidecar", base))
    (files / "kustomization.yaml").write_text(blocks(PAGE, "files", "yaml"))
    (files / "smtpguard.toml").write_text((KUBERNETES / kind / "smtpguard.toml").read_text() + CANARY)
    (files / "local.conf").write_text(local_conf(anchor))
    return kustomized(files)


@contextmanager
def connected(engine: Engine, found: list[Document], directory: Path) -> Iterator[Pod]:
    """The pod, and the Internet reachable from it; its resolver is known to validate."""
    give_to_group(directory / "storage")
    with played(engine, found, directory) as pod, pod.explained():
        link(f"/proc/{pod.pid}/ns/net")
        wait_for("the canary's verdict", lambda: "state=validating" in pod.log("smtpguard"), SECONDS)
        yield pod


@contextmanager
def prepared(kind: str) -> Iterator[tuple[Path, list[Document]]]:
    """The Internet, and what is to be played; all their files are in one directory."""
    with lab_directory("pod") as directory, open_internet(directory) as anchor:
        write_tls_secret(directory / "secrets/smtpguard-tls", CertificateMaker(directory).leaf(None, [NAME]).pem_file)
        (directory / "resolv.conf").write_text(f"nameserver {INTERNET}\n")
        yield directory, pod_of(documents(kind, anchor, directory), directory)


def send(pod: Pod, recipient: str, marker: str) -> None:
    pod.container("mta").run(f"printf 'Subject: {marker}\\n\\n{marker}\\n' | sendmail -f root {recipient}")


@pytest.mark.usefixtures("network", "pod_images")
@pytest.mark.parametrize("kind", RELAYS)
def test_mail_through_the_pod(kind: str, engine: Engine) -> None:
    """Out over verified TLS, by smtpguard's own look-ups; in with STARTTLS."""
    with prepared(kind) as (directory, found), connected(engine, found, directory) as pod:
        rules = pod.in_network("nft", "list", "ruleset")
        assert ("redirect to :10025" in rules) == (kind == "sidecar-intercepting")
        confined(pod)
        send(pod, "user1@dane.test", "safe")
        (received,) = wait_for("the mail", lambda: messages_in(directory, b"safe"), SECONDS)
        assert b"with ESMTPS" in received
        sent = re.compile(rf"to=<user1@dane\.test>, relay={re.escape(RELAYS[kind])}.*status=sent")
        wait_for("Postfix's word", lambda: sent.search(pod.log("mta")), SECONDS)
        delivered = re.compile(r"event=delivered .*domain=dane\.test .*auth=dane ")
        wait_for("smtpguard's word", lambda: delivered.search(pod.log("smtpguard")), SECONDS)
        come_in(pod)
        hold(pod)
        assert not messages_in(directory, b"secret")


@pytest.mark.usefixtures("network", "pod_images")
def test_the_next_pod_delivers_what_waited(engine: Engine) -> None:
    """The queue outlives the pod."""
    with prepared("sidecar") as (directory, found):
        with connected(engine, found, directory) as pod:
            hold(pod)
        with connected(engine, found, directory) as pod:
            assert "not owned by" not in pod.log("mta")
            pod.container("mta").run("postqueue -f")
            (received,) = wait_for("the mail that waited", lambda: messages_in(directory, b"secret"), SECONDS)
            assert b"with ESMTPS" in received


def hold(pod: Pod) -> None:
    """With STARTTLS stripped on the path, the MTA's queue keeps the mail with our reason."""
    with Stripper().attacking():
        send(pod, "user2@dane.test", "secret")
        wait_for("the deferral", lambda: "status=deferred" in pod.log("mta"), SECONDS)
    queue = re.sub(r"\s+", " ", pod.container("mta").run("postqueue -p"))
    assert f"451 4.7.4 [tls/no-starttls] mx.dane.test[{DANE}]:25: TLS is required" in queue


def confined(pod: Pod) -> None:
    """The kernel's word on what stays: users of their own, nothing to gain, nothing to write."""
    for name, user in (("smtpguard", "10125"), ("unbound", "10126")):
        status = pod.status(name)
        assert status["Uid"].split() == [user] * 4
        assert {status[one] for one in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert " / ro," in Path(f"/proc/{pod.container(name).state['Pid']}/mountinfo").read_text()


def come_in(pod: Pod) -> None:
    """A client of the Internet at the port that the Service maps 25 to."""
    with wait_for("a greeting", lambda: greeted(2525), SECONDS) as client:
        client.starttls(context=unverifying_context())
        client.sendmail("alice@dane.test", ["root@localhost"], b"Subject: in\r\n\r\nin\r\n")
    delivered = re.compile("to=<root@localhost>.*status=sent")
    wait_for("local delivery", lambda: delivered.search(pod.log("mta")), SECONDS)

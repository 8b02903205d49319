"""man reads the pages without a warning, and they say their own names."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.containers import ROOT

PAGES = sorted((ROOT / "deploy" / "man").glob("smtpguard*"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_warning(page: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "--local-file", str(page)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MANROFFSEQ": "", "MANWIDTH": "80"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{page.stem.upper()}({page.suffix[1:]})")


def test_both_are_there() -> None:
    assert [page.name for page in PAGES] == ["smtpguard.1", "smtpguard.toml.5"]

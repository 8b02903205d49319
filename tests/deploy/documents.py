"""The commands that the documentation tells operators to type: fenced blocks with a language and a label."""

import re

from tests.deploy.containers import ROOT


def blocks(page: str, label: str, language: str = "sh") -> str:
    """All blocks of a page under this label (```sh install), in order, as one text."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(rf"^```{language} {label}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{page} has no ```{language} {label}"
    return "".join(found)

"""promtool, and expressions as a file it can check."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """Its complaints, empty where there are none; a failure fails the test with them."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return done.stderr.decode()


def rules_of(expressions: Mapping[str, str], directory: Path) -> Path:
    """A file of recording rules, one for each expression; JSON is YAML."""
    path = directory / "rules.yml"
    rules = [{"record": f"checked:{number}", "expr": one} for number, one in enumerate(expressions.values())]
    path.write_text(json.dumps({"groups": [{"name": "checked", "rules": rules}]}))
    return path

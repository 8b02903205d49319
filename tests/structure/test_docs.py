"""Generated pages are current, and every clause id is proven or open for a reason."""

import importlib.util
from pathlib import Path
from types import ModuleType

from smtpguard.config import schema

ROOT = Path(__file__).parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_refusals_page_is_current() -> None:
    assert (ROOT / "docs" / "refusals.md").read_text() == tool("refusals").text()


def test_every_clause_is_proven_or_open() -> None:
    conformance = tool("conformance")
    proven, open_ = conformance.proofs(), conformance.reasons()
    assert [clause for clause in conformance.every_id() if clause not in proven and clause not in open_] == []
    assert [clause for clause in open_ if not open_[clause]] == []


def test_conformance_page_is_current() -> None:
    assert (ROOT / "docs" / "conformance.md").read_text() == tool("conformance").text()


def test_every_key_is_documented() -> None:
    """docs/configuration.md names each key of each table."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    for table in vars(schema).values():
        if isinstance(table, type) and issubclass(table, schema.msgspec.Struct):
            for key in table.__struct_fields__:
                assert f"`{key}`" in text or f"[{key}]" in text, key

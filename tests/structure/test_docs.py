"""Generated pages are current, and every clause id is proven or open for a reason."""

import importlib.util
from pathlib import Path
from types import ModuleType

import msgspec

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


def test_metrics_page_is_current() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == tool("metrics").text()


def test_dashboard_is_current() -> None:
    assert (ROOT / "deploy" / "grafana" / "dashboard.json").read_text() == tool("dashboard").text()


def test_every_clause_is_proven_or_open() -> None:
    conformance = tool("conformance")
    proven, open_ = conformance.proofs(), conformance.reasons()
    assert [clause for clause in conformance.every_id() if clause not in proven and clause not in open_] == []
    assert [clause for clause in open_ if not open_[clause]] == []


def test_only_a_test_itself_proves_a_clause() -> None:
    """Its name, its docstring, its cases; not the module's docstring, a comment, or a neighbour."""
    source = '''
"""AF-01"""
import pytest
CASES = {"AF-02 one": 1, "AF-03 two": 2}
KEYS = [name for name in CASES]
OTHERS = ["AF-04"]
# AF-05
@pytest.mark.parametrize("case", KEYS)
def test_table(case): ...
@pytest.mark.parametrize("case", [1], ids=["AF-06"])
async def test_ids(case):
    x = "AF-07"
def test_dane_02_and_mx08_in_the_name():
    """TO-02..04, STS-05, 07: ranges and lists."""
def helper():
    """AF-09"""
class TestGroup:
    """AF-10"""
    def test_inside(self):
        """AF-11"""
'''
    assert tool("conformance").named_by_tests(source) == {
        "test_table": {"AF-02", "AF-03"},
        "test_ids": {"AF-06"},
        "test_dane_02_and_mx08_in_the_name": {"DANE-02", "MX-08", "TO-02", "TO-03", "TO-04", "STS-05", "STS-07"},
        "test_inside": {"AF-11"},
    }


def test_conformance_page_is_current() -> None:
    assert (ROOT / "docs" / "conformance.md").read_text() == tool("conformance").text()


def test_every_key_is_documented() -> None:
    """docs/configuration.md names each key of each table."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    for table in vars(schema).values():
        if isinstance(table, type) and issubclass(table, msgspec.Struct):
            for key in table.__struct_fields__:
                assert f"`{key}`" in text or f"[{key}]" in text, key


def test_no_page_holds_both_sides_of_a_merge() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*"), *(ROOT / "deploy").rglob("*")]
    texts = {page: page.read_text("utf-8") for page in pages if page.is_file()}
    assert [page.name for page, text in texts.items() if "\n<<<<<<< " in text or "\n>>>>>>> " in text] == []

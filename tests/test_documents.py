"""What the documents point at is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_each_promise_has_its_test() -> None:
    rows = [row for row in (ROOT / "docs/what-goes-wrong.md").read_text().splitlines() if row.startswith("| ")]
    promises = [row for row in rows if "---" not in row and not row.endswith("| tests |")]
    assert len(promises) == 29
    for row in promises:
        named = TEST.findall(row)
        assert named, row
        for path, name in named:
            known = {
                node.name
                for node in ast.walk(ast.parse((ROOT / "tests" / path).read_text()))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
            assert name in known, f"{path}::{name}"

"""The Python reference: links on GitHub, docstrings on the site."""

from __future__ import annotations

import inspect
import pydoc
import re
import runpy
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "api.md"
LINKS = re.findall(r"^- \[`(.+)`\]\((.+)\)$", PAGE.read_text(), flags=re.MULTILINE)


def test_every_name_is_in_the_file_of_its_link() -> None:
    assert len(LINKS) > 10
    for name, link in LINKS:
        file = inspect.getsourcefile(pydoc.locate(name))
        assert file is not None, name
        assert Path(file).resolve() == (PAGE.parent / link).resolve()


def test_the_site_has_docstrings_in_their_place() -> None:
    hooks = runpy.run_path(str(PROJECT / "docs" / "hooks.py"))
    page = hooks["on_page_markdown"](PAGE.read_text())
    assert re.findall(r"^::: (.+)$", page, flags=re.MULTILINE) == [name for name, _ in LINKS]
    # Each is a block of its own.
    assert page.count("\n\n::: ") == len(LINKS)
    assert "](../cityscapes_maskrcnn" not in page

"""The documents as pages of the site, with the folders that they have in the project.

Their links to each other and to source files then work on the site as on GitHub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
PAGES += [f"{folder}/README.md" for folder in ("configs", "datasets", "tools")]


def on_files(files: Files, *, config: Any) -> Files:
    """Put the files of docs/ into that folder, and add the other pages and what they link to."""
    root = Path(config.config_file_path).parent
    names = set(PAGES)
    for file in list(files):
        if file.src_dir == config.docs_dir and not file.inclusion.is_excluded():
            files.remove(file)
            names.add(f"docs/{file.src_uri}")
    for page in [name for name in names if name.endswith(".md")]:
        for link in re.findall(r"\]\(([^):#]+)[)#]", (root / page).read_text()):
            target = (root / page).parent.joinpath(link).resolve()
            if target.is_file():
                names.add(target.relative_to(root).as_posix())
    for name in sorted(names):
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put docstrings in the place of the links of docs/api.md, and plain fences.

    What stands behind the language of a block is for the tests (CONTRIBUTING.md).
    """
    link = r"^- \[`([\w.]+)`\]\(\.\./cityscapes_maskrcnn/\S+\.py\)$"
    markdown = re.sub(link, r"\n::: \1\n", markdown, flags=re.MULTILINE)
    return re.sub(r"^( *```\w+) .*$", r"\1", markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx's roles in docstrings as code alone."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code>)", "", html)

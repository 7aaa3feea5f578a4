"""Shows pages of the repository outside docs/ in the site, under links that work on a forge too."""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    *("CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(
        path.relative_to(ROOT).as_posix()
        for pattern in ("ltx_jax/assets/*/MODEL_CARD.md", "benchmarks/results/*.md")
        for path in ROOT.glob(pattern)
    ),
]


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, with paths from the site's root as they have from the repository's."""
    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links between pages in docs/ and outside it: the site has both in one folder."""
    if page.file.src_uri in PAGES:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./(?=benchmarks/|ltx_jax/|[A-Z])", "](", markdown)

"""What `mkdocs` is told beyond its configuration: links from pages to files beside `docs/`.

On GitHub a page links to `../src/...` and shows `../benchmarks/results/x.png`. On the site such a picture is copied and
such a link goes to the repository that `pyproject.toml` names (without one, the file is named only). A link to a file
that there is not stops a strict build.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from textwrap import indent
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)#]+)(?P<anchor>#[^)]*)?\)")
DRAWING = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURES = (".png", ".svg", ".jpg")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = next((url for name, url in PROJECT.get("urls", {}).items() if name in ("Repository", "Source")), None)

logger = get_plugin_logger("site")


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures that pages show from elsewhere in the repository."""
    for page in list(files.documentation_pages()):
        for match in OUTSIDE.finditer(page.content_string):
            path = match["path"]
            if match["picture"] and path.endswith(PICTURES) and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Pictures from where `on_files` put them, other files at the repository, drawings that need a script as a fold."""

    def elsewhere(match: re.Match[str]) -> str:
        path = match["path"]
        if not (ROOT / path).exists():
            logger.warning(f"{page.file.src_path} links to ../{path}, which does not exist.")
        if match["picture"]:
            return f"![{match['text']}]({path})"
        if REPOSITORY is None:
            return match["text"] if match["text"].endswith(path) else f"{match['text']} (`{path}`)"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{match['text']}]({REPOSITORY.rstrip('/')}/{kind}/main/{path}{match['anchor'] or ''})"

    def folded(match: re.Match[str]) -> str:
        return '??? note "Source of the drawing (Mermaid)"\n\n' + indent(f"```text\n{match[1]}```\n", "    ")

    return DRAWING.sub(folded, OUTSIDE.sub(elsewhere, markdown))

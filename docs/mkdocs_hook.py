"""Hook of mkdocs: pages of the repository outside docs/, and links that work both on GitHub and on the site.

A page that `nav` names and docs/ has not is taken from the root of the repository, README.md as the start page. Links
are written as GitHub reads them, relative to their file; here each is turned to where the site has that file. A file
that is no page, such as a script, goes along as it is. A link to nothing stays, and mkdocs complains about it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=(?:#[^)\s]*)?\))")
"""The target of [text](target#anchor), unless it is a URL."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `nav` that lie elsewhere in the repository, and the files that any page links to."""
    for path in _pages(config.nav):
        if files.get_file_from_path(path) is None and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for page in files.documentation_pages():
        source = Path(page.abs_src_path)
        for target in LINK.findall(source.read_text("utf-8")):
            path = _path_on_site(source, target)
            if path and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page to where the site has their files."""
    source = Path(page.file.abs_src_path)
    here = PurePosixPath(page.file.src_uri).parent

    def turned(match: re.Match[str]) -> str:
        path = _path_on_site(source, match[0])
        return os.path.relpath(path, here) if path else match[0]

    return LINK.sub(turned, markdown)


def _path_on_site(source: Path, target: str) -> str | None:
    """Return the path on the site of a link's file: relative to docs/, else to the repository; None for no file."""
    path = Path(os.path.normpath(source.parent / target))
    if not path.is_file() or not path.is_relative_to(ROOT):
        return None
    inside = path.is_relative_to(ROOT / "docs")
    return path.relative_to(ROOT / "docs" if inside else ROOT).as_posix()


def _pages(nav: Any) -> Iterator[str]:
    """Yield every path that the navigation names."""
    if isinstance(nav, str):
        yield nav
    elif nav:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(entry)

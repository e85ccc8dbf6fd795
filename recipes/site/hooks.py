"""What mkdocs calls while it builds the site (the hooks of mkdocs.yml)."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from recipes.site.checks import faults
from recipes.site.llms import llms_txt, summary_of
from recipes.site.mathml import draw_formulas
from recipes.site.notebook import notebook_page
from recipes.site.pages import commands_page, source_page
from recipes.site.sources import COPIED, ROOT, as_site_links, linked_files, page_of

_FIRST = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]

_repository_file: dict[str, str] = {}
"""For each page, the file of the repository that it shows."""

_markdown: dict[str, str] = {}
"""For each page, its text as Markdown, for readers that are programs."""

_navigation: list[Navigation] = []


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds to the pages of `docs/` all that they link to, and what those link to."""
    _repository_file.clear()
    _markdown.clear()
    own = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    notebooks = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    files.append(File.generated(config, "commands.md", content=commands_page()))
    waiting = [*own, *_FIRST, *notebooks]
    done: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file in done or not (ROOT / file).exists():
            continue  # a link that leads nowhere is left to mkdocs, which tells of it
        done.add(file)
        text = _add(file, files, config, present=file in own)
        waiting += linked_files(text, file)
    return files


def _add(file: str, files: Files, config: MkDocsConfig, present: bool) -> str:
    """Adds the page of a file, unless mkdocs has it. The text in which to look for more links."""
    path, page = ROOT / file, page_of(file)
    if path.suffix == ".md" or path.is_dir():
        if path.is_dir() and not page.startswith("source/"):
            return f"[]({path.name}/README.md)"  # the folder's page is that of its README
        text = source_page(file) if path.is_dir() else path.read_text(encoding="utf-8")
        _repository_file[page] = file
        if not present:
            files.append(File.generated(config, page, content=text))
        return text if path.suffix == ".md" else ""
    if path.suffix in COPIED:
        if not present and files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, abs_src_path=str(path)))
        return ""
    if path.suffix == ".ipynb":
        text, figures = notebook_page(path)
        for name, data in figures.items():
            files.append(File.generated(config, posixpath.join(posixpath.dirname(page), name), content=data))
        _repository_file[page] = file
        files.append(File.generated(config, page, content=text))
        return text
    files.append(File.generated(config, page, content=source_page(file)))
    return ""


def on_nav(nav: Navigation, **_: Any) -> None:
    _navigation[:] = [nav]


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Turns links into the repository into links to pages."""
    file = _repository_file.get(page.file.src_uri)
    text = markdown if file is None else as_site_links(markdown, file)
    _markdown[page.file.src_uri] = text
    return text


def on_page_content(html: str, **_: Any) -> str:
    return draw_formulas(html)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Writes `llms.txt` with the pages' Markdown beside them, and refuses a site that needs anything from outside."""
    site = Path(config.site_dir)
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for page in _navigation[0].pages:
        uri = page.file.src_uri
        heading = next((str(above.title) for above in reversed(list(page.ancestors))), "Start here")
        (site / uri).write_text(_markdown[uri], encoding="utf-8")
        sections.setdefault(heading, []).append((str(page.title), uri, summary_of(_markdown[uri])))
    (site / "llms.txt").write_text(llms_txt(config.site_name, config.site_description or "", sections), encoding="utf-8")
    if found := faults(site):
        raise PluginError("the site is not fit to be read:\n" + "\n".join(found))

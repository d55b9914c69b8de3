"""The report: all executed notebooks as one site that reads offline. What `make report` and `sodlib report` do."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from pygments.formatters import HtmlFormatter

from .article import TEMPLATES, read_article
from .errors import SodlibError
from .plots import COLORS
from .reproduce import choose, repository


def report(site: Path | None = None) -> Path:
    """Render the notebooks of this repository, and return the site's start page.

    `site` is the folder to replace, `build/report` unless given. The pages need no host: figures, tables, style and
    script lie beside them.

    Raises SodlibError where a notebook was not executed, or links a file that does not exist.
    """
    root = repository()
    site = site or root / "build" / "report"
    linked: dict[str, Path] = {}

    def address(folder: Path, link: str) -> str:
        path = (folder / link).resolve()
        if not path.exists() or not path.is_relative_to(root):
            raise SodlibError(f"a notebook links {link}, which does not exist in {root}; mend the link")
        if path.is_dir():
            return ""
        inside = f"files/{path.relative_to(root).as_posix()}"
        linked[inside] = path
        return inside

    pages = [read_article(path, root, address) for path in choose(root / "notebooks")]
    for page in pages:
        linked |= {f"figures/{name}.svg": root / "figures" / f"{name}.svg" for name in page.drawings}
        linked |= {f"tables/{name}.csv": root / "results" / "tables" / f"{name}.csv" for name in page.sheets}

    # Written beside, then renamed, so that a failure leaves the last site as it was.
    beside = site.with_name(f".{site.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, source in linked.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, beside / name)
    loader = FileSystemLoader(TEMPLATES / "report")
    jinja = Environment(loader=loader, autoescape=lambda name: name.endswith(".html.j2"))

    def write(name: str, template: str, **values: object) -> None:
        (beside / name).write_text(jinja.get_template(template).render(**values), encoding="utf-8")

    write("index.html", "start.html.j2", pages=pages)
    around = zip([None, *pages[:-1]], pages, [*pages[1:], None], strict=True)
    for before, page, after in around:
        write(f"{page.name}.html", "page.html.j2", pages=pages, page=page, before=before, after=after)
    write("site.css", "site.css.j2", colors=COLORS, highlighting=_highlighting())
    shutil.copyfile(TEMPLATES / "report" / "site.js", beside / "site.js")
    shutil.rmtree(site, ignore_errors=True)
    os.replace(beside, site)
    return site / "index.html"


def _highlighting() -> str:
    """CSS for code, by day and by night; the box around it is the site's own."""
    light, dark = (
        re.sub(r"^(pre|td|span)\b.*\n|^\.highlight \{.*\n?", "", css, flags=re.MULTILINE)
        for css in (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"

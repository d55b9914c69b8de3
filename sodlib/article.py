"""One executed notebook as an article of the report: text with formulas as MathML, tables, figures, headings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from .errors import SodlibError

#: Holds the template `report` of nbconvert, beside those that surround an article.
TEMPLATES = Path(__file__).parent / "templates"

#: Cells of a table with more characters than this may be broken into lines; those with still more need a wide column.
LONG, LONGEST = 30, 200


@dataclass(frozen=True)
class Heading:
    """A heading inside a page: its level (2 or 3), the id to link to, and its words."""

    level: int
    anchor: str
    text: str


@dataclass(frozen=True)
class Article:
    """A notebook ready for the site. `drawings` and `sheets` name the figures (SVG) and tables (CSV) that it links;
    `figures` and `tables` count what it shows."""

    name: str
    number: str
    title: str
    label: str
    claim: Markup
    article: Markup
    headings: tuple[Heading, ...]
    drawings: tuple[str, ...]
    sheets: tuple[str, ...]
    figures: int
    tables: int

    @property
    def short(self) -> str:
        """The title up to its colon, for navigation."""
        return self.title.split(":")[0]

    @property
    def drawing(self) -> str:
        """The figure that stands for the page, or nothing."""
        return next(iter(self.drawings), "")


def read_article(path: Path, root: Path, address: Callable[[Path, str], str]) -> Article:
    """The article of an executed notebook, whose figures and tables lie in `root/figures` and `root/results/tables`.

    `address(folder, link)` says where a relative link to another file than a notebook leads; "" takes the link out.
    Raises SodlibError for a notebook that cannot be read or was not executed.
    """
    try:
        notebook = deepcopy(nbformat.read(path, 4))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise SodlibError(f"{path} is not a readable notebook: open it in JupyterLab, or restore it") from error
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise SodlibError(f"{path.name} has no outputs; run `make reproduce`, which executes it")
    drawings, sheets = _name_files(notebook, root)
    html, _ = _Exporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)]).from_notebook_node(notebook)
    soup = BeautifulSoup(html, "html.parser")
    headings = _give_anchors(soup)
    for link in soup.select("a[href], img[src]"):
        _lead(link, path.parent, address)
    tables = [_put_in_box(soup, table) for table in soup.find_all("table")]
    figures = [_make_enlargeable(soup, image) for image in soup.select("img.picture")]
    number, title = _title(soup, path.stem)
    label, claim = _claim(soup)
    return Article(
        path.stem,
        number,
        title,
        label,
        claim,
        Markup(str(soup)),
        tuple(heading for heading in headings if heading.level in (2, 3)),
        drawings,
        sheets,
        len(figures),
        len(tables),
    )


class _Renderer(IPythonRenderer):
    """Formulas become MathML, which a browser sets without a script."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{convert(body, display="block")}</div>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, attachments=attachments, exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)


def slug(text: str) -> str:
    """The id of a heading as code hosts make it: lower case, words joined by hyphens, without other marks."""
    return re.sub(r"[^\w-]", "", re.sub(r"\s", "-", text.strip().lower()))


def _name_files(notebook: nbformat.NotebookNode, root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell the template which files a cell has written: those that it names and that exist.

    A figure is shown as the SVG of the repository, which is sharp at any size, where a cell names as many as it shows.
    """
    drawings, sheets = [], []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        names = list(dict.fromkeys(re.findall(r"[\"']([\w.-]+)[\"']", cell.source)))
        cell.metadata["tables"] = [name for name in names if (root / "results" / "tables" / f"{name}.csv").is_file()]
        sheets += cell.metadata["tables"]
        drawn = [name for name in names if (root / "figures" / f"{name}.svg").is_file()]
        shown = [o for o in cell.outputs if o.get("data", {}).get("text/plain", "").startswith("<Figure")]
        if len(drawn) == len(shown):
            drawings += drawn
            for name, output in zip(drawn, shown, strict=True):
                output.metadata["figure"] = name
    return tuple(dict.fromkeys(drawings)), tuple(dict.fromkeys(sheets))


def _give_anchors(soup: BeautifulSoup) -> list[Heading]:
    """Give every heading an id of its own; a second one of the same words gets a number, as on code hosts."""
    seen: Counter[str] = Counter()
    headings = []
    for tag in soup.find_all(re.compile("^h[1-6]$")):
        text = " ".join(tag.get_text().split())
        base = slug(text)
        tag["id"] = f"{base}-{seen[base]}" if seen[base] else base
        seen[base] += 1
        headings.append(Heading(int(tag.name[1]), tag["id"], text))
    return headings


def _lead(tag: Tag, folder: Path, address: Callable[[Path, str], str]) -> None:
    """Let a link lead to where its target lies in the site: notebooks are pages there."""
    attribute = "href" if tag.name == "a" else "src"
    link = tag[attribute]
    if re.match(r"[a-z][a-z0-9+.-]*:|//", link, re.IGNORECASE) or "picture" in tag.get("class", ()):
        return
    if link.startswith(("tables/", "figures/")) and tag.parent.get("class") == ["files"]:
        return
    path, mark, anchor = link.partition("#")
    # JupyterLab joins the words of a heading by hyphens and keeps the rest; code hosts do as `slug`.
    anchor = unquote(anchor)
    anchor = anchor if anchor.startswith("cell-id=") else slug(anchor)
    if not path or path.endswith(".ipynb"):
        tag[attribute] = f"{Path(path).stem}.html{mark}{anchor}" if path else f"#{anchor}"
    elif target := address(folder, unquote(path)):
        tag[attribute] = target
    else:
        tag.unwrap()


def _put_in_box(soup: BeautifulSoup, table: Tag) -> Tag:
    """A table scrolls in a box of its own, under a caption that does not."""
    table.attrs.pop("border", None)
    figure = table.wrap(soup.new_tag("figure", attrs={"class": "sheet"}))
    caption = table.caption
    label = caption.get_text(" ", strip=True) if caption else "Table"
    table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}))
    if caption:
        caption.extract()
        caption.name, caption.attrs = "figcaption", {}
        figure.insert(0, caption)
    for cell in table.find_all(["th", "td"]):
        length = len(cell.get_text(strip=True))
        kinds = [name for name, least in (("long", LONG), ("longest", LONGEST)) if length > least]
        if kinds:
            cell["class"] = [*cell.get("class", ()), *kinds]
    return figure


def _make_enlargeable(soup: BeautifulSoup, image: Tag) -> Tag:
    """A figure links its own file; its description is the heading that it stands under."""
    heading = image.find_previous(re.compile("^h[1-6]$"))
    image["alt"] = " ".join(heading.get_text().split()) if heading else "Figure"
    link = image.wrap(soup.new_tag("a", attrs={"class": "enlarge", "href": image["src"], "title": "Enlarge"}))
    return link.wrap(soup.new_tag("figure", attrs={"class": "drawing"}))


def _title(soup: BeautifulSoup, name: str) -> tuple[str, str]:
    """Number and title of a page: "02 · Training" is ("02", "Training"); without a heading, from the file's name."""
    text = " ".join(soup.h1.get_text().split()) if soup.h1 else name.replace("_", " ")
    number, _, title = re.fullmatch(r"(\d*)( ·)? *(.*)", text).groups()
    return number or name.split("_")[0], title


def _claim(soup: BeautifulSoup) -> tuple[str, Markup]:
    """The first sentence below the title, after the label in bold that may open it; of a list the first item."""
    first = soup.h1.find_next_sibling("p") if soup.h1 else None
    if first is None:
        return "", Markup("")
    label, start = "", next(first.children)
    if getattr(start, "name", "") == "strong":
        label = start.get_text().rstrip(".: ")
    if first.get_text().rstrip().endswith(":") and (following := first.find_next_sibling()) and following.name == "ul":
        first = following.li
    first = deepcopy(first)
    if label and (strong := first.find("strong", recursive=False)) and strong.get_text().startswith(label):
        strong.decompose()
    # A card is a link, and a link holds no other.
    for link in first.find_all("a"):
        link.unwrap()
    html = re.sub(r"^\s*(\([^()]*\))?:?\s*", "", first.decode_contents())
    sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z<])", html, maxsplit=1)[0].rstrip(" .;")
    end = "" if sentence.endswith(("?", "!")) else "."
    return label, Markup(f"{BeautifulSoup(sentence[:1].upper() + sentence[1:], 'html.parser')}{end}")

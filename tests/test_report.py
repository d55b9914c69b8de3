"""The site that `make report` renders: what it says of a notebook, its links, and how a browser takes it."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import REPOSITORY
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from websocket import create_connection

import sodlib
from sodlib.article import slug
from sodlib.errors import SodlibError
from sodlib.plots import COLORS
from sodlib.report import report

NOTEBOOKS = sorted(path for path in (REPOSITORY / "notebooks").glob("*.ipynb") if ".failed." not in path.name)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The report of this repository."""
    return report(tmp_path_factory.mktemp("report") / "site").parent


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository without notebooks, but with a figure and a table."""
    monkeypatch.setattr(sodlib, "__file__", str(tmp_path / "sodlib" / "__init__.py"))
    for folder in ("notebooks", "figures", "results/tables", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "figures" / "01-curve.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    (tmp_path / "results" / "tables" / "01-scores.csv").write_text("a,b\n")
    (tmp_path / "data" / "README.md").write_text("sources")
    return tmp_path


def save(checkout, name, *cells):
    nbformat.write(new_notebook(cells=list(cells)), checkout / "notebooks" / name)


def shown(source, kind, content, id="shown"):
    output = new_output("display_data", {kind: content, "text/plain": "<Figure size 9x9>"})
    return new_code_cell(source, outputs=[output], id=id)


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_what_becomes_of_a_notebook(checkout):
    table = "<table border='1'><caption>Scores</caption><thead><tr><th>a</th></tr></thead><tr><td>1</td></tr></table>"
    text = """# 01 · Curves: a study

**The claim.** Scales $\\gamma_c$ vanish. See [the other page](02_other.ipynb#Figure-2:-the-pipeline), or
[its cell](02_other.ipynb#cell-id=scores), [the sources](../data/README.md), [the folder](../data).

$$\\gamma \\leftarrow \\lambda$$

## Same
## Same"""
    save(
        checkout,
        "01_curves.ipynb",
        new_markdown_cell(text, id="title"),
        shown('page.figure(draw(), "01-curve")', "image/png", PIXEL),
        shown("plot()", "image/png", PIXEL, id="bare"),
        shown(
            'page.table(t, "01-scores")',
            "text/html",
            f"{table}<a href='02_other.ipynb#cell-id=scores'>cell</a>",
            id="t",
        ),
        shown("Math()", "text/latex", "$\\beta$", id="math"),
    )
    save(
        checkout,
        "02_other.ipynb",
        new_markdown_cell(
            "# 02 · Other\n\n**Claims:**\n\n- first one;\n- second\n\n## Figure 2: the pipeline", id="top"
        ),
        shown("1", "text/markdown", "**Found**", id="scores"),
    )
    (checkout / "notebooks" / "03_torn.failed.ipynb").write_text("")
    index = report()
    assert index == checkout / "build" / "report" / "index.html"

    page = soup(index.with_name("01_curves.html"))
    article = page.article
    links = {link.get_text(): link["href"] for link in article.find_all("a") if link.get_text(strip=True)}
    assert links == {
        "the other page": "02_other.html#figure-2-the-pipeline",
        "its cell": "02_other.html#cell-id=scores",
        "cell": "02_other.html#cell-id=scores",
        "the sources": "files/data/README.md",
        "01-scores.csv": "tables/01-scores.csv",
    }
    assert "the folder" in article.get_text()
    assert (index.parent / "files/data/README.md").read_text() == "sources"
    # Every formula is MathML, none is left as TeX.
    assert [formula["display"] for formula in article.find_all("math")] == ["inline", "block", "inline"]
    assert "$" not in article.get_text() and "γ" in article.get_text() and "β" in article.get_text()
    assert [heading["id"] for heading in article.find_all("h2")] == ["same", "same-1"]
    assert [a["href"] for a in page.select("#pages ol ol a")] == ["#same", "#same-1"]
    # The figure that a cell names is the file of the repository; another is the notebook's own.
    figures = [image["src"] for image in article.select("figure.drawing a.enlarge > img")]
    assert figures == ["figures/01-curve.svg", f"data:image/png;base64,{PIXEL}"]
    sheet = article.find("figure", class_="sheet")
    assert sheet.figcaption.get_text() == "Scores" and sheet.select_one(".scroll > table").caption is None
    # Code is there, folded.
    assert all(not code.has_attr("open") for code in article.select("details.code"))
    assert [code.pre.get_text().strip() for code in article.select("details.code")][1] == "plot()"

    cards = soup(index).select(".card")
    assert [card["href"] for card in cards] == ["01_curves.html", "02_other.html"]
    assert [card.h2.get_text() for card in cards] == ["01 Curves: a study", "02 Other"]
    assert [card.select_one(".claim").get_text() for card in cards] == ["Scales γc vanish.", "First one."]
    assert cards[0].select_one(".counts").get_text() == "2 figures, 1 table"

    # A new report replaces the whole of the last one.
    (checkout / "notebooks" / "02_other.ipynb").unlink()
    report()
    assert sorted(path.name for path in index.parent.glob("*.html")) == ["01_curves.html", "index.html"]


def test_what_cannot_be_rendered_is_said_and_the_last_report_stays(checkout):
    save(checkout, "01_page.ipynb", shown("1", "text/markdown", "[data](../data/README.md)"))
    index = report()
    before = index.read_text()
    save(checkout, "02_link.ipynb", shown("1", "text/markdown", "[x](../data/missing.md)"))
    with pytest.raises(SodlibError, match=r"links \.\./data/missing\.md, which does not exist"):
        report()
    save(checkout, "02_link.ipynb", new_markdown_cell("# 02"), new_code_cell("1"))
    with pytest.raises(SodlibError, match=r"02_link\.ipynb has no outputs; run `make reproduce`"):
        report()
    (checkout / "notebooks" / "02_link.ipynb").write_text("{")
    with pytest.raises(SodlibError, match="not a readable notebook"):
        report()
    assert index.read_text() == before and sorted(path.name for path in index.parents[1].iterdir()) == ["report"]


def test_slug_is_that_of_code_hosts():
    assert slug("Figure 2: the pipeline") == slug("Figure-2:-the-pipeline") == "figure-2-the-pipeline"
    assert slug("What we found, and why it differs") == "what-we-found-and-why-it-differs"


def test_every_notebook_is_a_page_and_has_a_card(site):
    names = {path.stem for path in NOTEBOOKS}
    assert {path.stem for path in site.glob("*.html")} == names | {"index"}
    cards = soup(site / "index.html").select(".card")
    assert [card["href"] for card in cards] == [f"{name}.html" for name in sorted(names)]
    for card in cards:
        assert card.select_one(".number").get_text().isdigit()
        assert len(card.h2.get_text()) > 3 and len(card.select_one(".claim").get_text()) > 20, card["href"]
    for path in NOTEBOOKS:
        page = soup(site / f"{path.stem}.html")
        cells = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
        assert [cell["id"] for cell in page.select("article .cell")] == [f"cell-id={cell}" for cell in cells]
        prose = [text for text in page.article.find_all(string=True) if not text.find_parent(["pre", "code", "style"])]
        assert not any("$" in text or "**" in text for text in prose), "formula or emphasis left as it was typed"


def test_every_link_leads_somewhere(site):
    """To a file of the site and, with an anchor, to an element in it; what a page loads comes from no host."""
    pages = {path.name: soup(path) for path in site.glob("*.html")}
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    for name, page in pages.items():
        # Pandas gives tables ids of their own, equal tables equal ones.
        own = [tag["id"] for tag in page.find_all(id=True) if not tag["id"].startswith("T_")]
        assert len(own) == len(set(own)), name
        for tag in page.select("[src], link[href], a[href]"):
            target = tag.get("src") or tag["href"]
            if target.startswith("data:") or (tag.name == "a" and re.match("https?://", target)):
                continue
            assert not re.match("[a-z]+:|//", target), f"{name} loads {target}"
            path, _, anchor = target.partition("#")
            assert (site / unquote(path or name)).is_file(), f"{name}: {target}"
            assert not anchor or unquote(anchor) in anchors[path or name], f"{name}: {target}"
        assert not re.search(r"@import|url\((?!#|data:)", page.decode()), name
    assert not re.search(r"@import|url\(|https?:", (site / "site.css").read_text() + (site / "site.js").read_text())
    assert COLORS["training"] in (site / "site.css").read_text()


class Browser:
    """Headless Chromium, spoken to by its DevTools protocol; keeps all events that a page sends."""

    def __init__(self, profile: Path):
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --remote-debugging-port=0 --remote-allow-origins=*"
        command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        said = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (said.exists() and said.read_text().count("\n")):
            assert self.process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{said.read_text().split()[0]}/json/list") as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = create_connection(page["webSocketDebuggerUrl"], timeout=60)
        self.events, self.calls = [], 0
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict:
        message = json.loads(self.socket.recv())
        if "method" in message:
            self.events.append(message)
        return message

    def call(self, method: str, **parameters) -> dict:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while (message := self.receive()).get("id") != self.calls:
            pass
        assert "error" not in message, message
        return message["result"]

    def open(self, path: Path, width: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def evaluate(self, script: str):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, failed loads, and requests that leave the site."""
        found = []
        for event in self.events:
            method, values = event["method"], event["params"]
            if method == "Network.requestWillBeSent":
                url = values["request"]["url"]
                found += [url] if not url.startswith(("file:", "data:")) else []
                continue
            told = method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert")
            if told or method in ("Network.loadingFailed", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(values))
        return found

    def close(self) -> None:
        self.call("Browser.close")
        self.socket.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium or Chrome on this machine, which this test opens the report in")
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_finds_nothing_amiss(site, browser, width):
    pages = sorted(site.glob("*.html"))
    assert len(pages) == len(NOTEBOOKS) + 1
    for path in pages:
        browser.open(path, width)
        missing = "[...document.images].filter((i) => !i.closest('dialog') && !i.naturalWidth).map((i) => i.src)"
        assert browser.evaluate(missing) == [], path.name
        assert browser.evaluate("document.styleSheets.length && document.documentElement.matches('.scripted')")
        wide = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path.name} is wider than its window"
        assert browser.complaints() == [], path.name


def test_a_figure_is_enlarged_a_table_sorted_and_code_unfolded(checkout, browser):
    rows = [("b", "1,000"), ("a", "–"), ("c", "-2.5 (-3 to -2)"), ("d", "×1.5")]
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    spanned = "<tr><th rowspan='2'>x</th><th>u</th><td>2</td></tr><tr><th>v</th><td>1</td></tr>"
    head = "<thead><tr><th>name</th><th>value</th></tr></thead>"
    tables = f"<table>{head}<tbody>{body}</tbody></table>"
    tables += (
        "<table><thead><tr><th colspan='2'>group</th><th>n</th></tr></thead>" + f"<tbody>{spanned}</tbody></table>"
    )
    cells = (shown('"01-curve"', "image/png", PIXEL), shown("tables", "text/html", tables, id="tables"))
    save(checkout, "01_page.ipynb", new_markdown_cell("# 01 · Page\n\nWords."), *cells)
    browser.open(report().with_name("01_page.html"), 390)

    order = "[...document.querySelectorAll('table')[{}].tBodies[0].rows].map((row) => row.textContent).join(' ')"
    click = "document.querySelectorAll('table')[{}].tHead.rows[0].cells[{}].click()"
    seen = []
    for _ in range(3):
        browser.evaluate(click.format(0, 1))
        seen.append("".join(row[0] for row in re.split(r" (?=[a-d])", browser.evaluate(order.format(0)))))
    assert seen == ["cdba", "bdca", "bacd"], "up, down, and as it was; a dash always last"
    browser.evaluate(click.format(0, 0))
    assert re.sub("[^a-d]", "", browser.evaluate(order.format(0))) == "abcd"
    browser.evaluate(click.format(1, 0))
    assert browser.evaluate(order.format(1)) == "xu2 v1", "a head over two columns sorts nothing"
    browser.evaluate(click.format(1, 1))
    assert browser.evaluate(order.format(1)) == "xv1 xu2", "what spans rows stays with each of them"

    opened = "document.querySelector('dialog').open"
    assert browser.evaluate(opened) is False
    browser.evaluate("document.querySelector('a.enlarge').click()")
    assert browser.evaluate(opened) is True
    assert browser.evaluate("document.querySelector('dialog img').src").endswith("figures/01-curve.svg")
    browser.evaluate("document.querySelector('dialog').click()")
    assert browser.evaluate(opened) is False

    folded = "[...document.querySelectorAll('details.code')].map((part) => part.open).join()"
    assert browser.evaluate(folded) == "false,false"
    browser.evaluate("document.querySelector('button.unfold').click()")
    assert browser.evaluate(folded) == "true,true"
    visible = "document.getElementById('pages').checkVisibility()"
    assert browser.evaluate(visible) is False
    browser.evaluate("document.querySelector('button.menu').click()")
    assert browser.evaluate(visible) is True
    assert browser.complaints() == []

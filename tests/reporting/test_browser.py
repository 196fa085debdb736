"""The page in a real browser: it asks nothing of the network, sorts, hides, tells, and lets nothing foreign act."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptive_lora.study.open_ledger import create_or_open
from tests.reporting.ledgers import make_ledger, make_report
from tests.reporting.test_answers import KEPT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", e => window.violations.push(e.violatedDirective));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers run as root, and often with little shared memory.
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_ledger(tmp_path_factory.mktemp("study"))
    make_report(folder)
    return folder / "report.html"


class Visit:
    """A page with everything that it complained of or asked for."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.heard: list[str] = []
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.page.add_init_script(WATCH)
        self.page.on("console", lambda message: self.heard.append(message.text))
        self.page.on("pageerror", lambda error: self.heard.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.heard.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfinished", lambda request: self.answered.append(request.url))
        self.page.goto(path.as_uri())

    def hidden(self, selector: str) -> list[bool]:
        """Whether each match is not displayed."""
        script = "all => all.map(e => getComputedStyle(e).display === 'none')"
        found: list[bool] = self.page.locator(selector).evaluate_all(script)
        return found

    def check_quiet(self) -> None:
        """Nothing was complained of, nothing but the page itself was asked for, nothing foreign ran."""
        assert self.heard == []
        assert [url for url in self.asked if not url.endswith("/report.html")] == []
        assert self.page.evaluate("[window.violations, typeof window.hacked]") == [[], "undefined"]


@contextlib.contextmanager
def visit(browser: Any, path: Path, **settings: Any) -> Iterator[Visit]:
    context = browser.new_context(**settings)
    try:
        yield Visit(context, path)
    finally:
        context.close()


def test_the_page_is_quiet_and_asks_for_nothing(browser: Any, report: Path) -> None:
    with visit(browser, report) as seen:
        assert seen.page.title() == "synthetic · adaptive-lora"
        assert seen.page.locator("h2").all_inner_texts()[0] == "Verdicts"
        seen.check_quiet()


def test_the_policy_stops_what_is_not_the_pages_own(browser: Any, report: Path) -> None:
    with visit(browser, report) as seen:
        seen.page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            const image = document.createElement("img");
            image.src = "https://example.invalid/x.png";
            document.body.append(script, image);
            document.body.setAttribute("style", "display: none");
        }""")
        seen.page.wait_for_function("window.violations.length >= 3")
        assert seen.page.evaluate("typeof window.hacked") == "undefined"
        assert seen.hidden("body") == [False]
        assert [url for url in seen.answered if not url.endswith("/report.html")] == []


def test_headings_sort_numbers_as_numbers_with_the_missing_last(browser: Any, report: Path) -> None:
    with visit(browser, report) as seen:
        table = seen.page.locator("#arms table")
        head = table.locator("th", has_text="minus uniform").first

        def shown() -> list[float | None]:
            keys = table.locator("tbody tr").evaluate_all("rows => rows.map(r => r.cells[2].dataset.sort ?? null)")
            return [None if key is None else float(key) for key in keys]

        as_written = shown()
        numbers = sorted(key for key in as_written if key is not None)
        assert as_written[0] is None and len(numbers) == 2  # the baseline has no difference from itself
        head.get_by_role("button").click()
        assert shown() == [*numbers, None] and head.get_attribute("aria-sort") == "ascending"
        head.get_by_role("button").press("Enter")
        assert shown() == [*numbers[::-1], None] and head.get_attribute("aria-sort") == "descending"
        assert "descending" in seen.page.locator("#said").inner_text()
        head.get_by_role("button").press("Space")
        assert shown() == as_written and head.get_attribute("aria-sort") is None
        first = table.locator("th", has_text="arm").first
        first.get_by_role("button").click()
        assert table.locator("tbody th").all_inner_texts() == ["decay-01", "decay-02", "uniform"]


def test_arms_are_switched_off_in_charts_and_tables(browser: Any, report: Path) -> None:
    with visit(browser, report) as seen:
        page = seen.page
        page.locator("details.arms summary").click()
        box = page.get_by_role("checkbox", name="decay-01")
        charts, rows = 'svg [data-arm="decay-01"]', 'tr[data-arm="decay-01"]'
        assert not any(seen.hidden(charts)) and not any(seen.hidden(rows)) and len(seen.hidden(charts)) >= 7
        box.uncheck()
        assert all(seen.hidden(charts)) and all(seen.hidden(rows)) and page.locator("#shown").inner_text() == "2 of 3"
        assert not any(seen.hidden('tr[data-arm="uniform"]'))
        page.get_by_role("button", name="none").click()
        assert all(seen.hidden("tr[data-arm]"))
        page.get_by_role("button", name="all", exact=True).click()
        assert not any(seen.hidden("[data-arm]")) and page.locator("#shown").inner_text() == "all 3"
        seen.check_quiet()


def test_a_raw_point_tells_what_it_is_by_pointer_and_by_keyboard(browser: Any, report: Path) -> None:
    with visit(browser, report) as seen:
        page, tip = seen.page, seen.page.locator("#tip")
        points = page.locator("#differences .point")
        text = points.nth(1).get_attribute("aria-label")
        assert "seed" in text and not tip.is_visible()
        points.nth(1).scroll_into_view_if_needed()
        points.nth(1).hover(force=True)
        assert tip.inner_text() == text
        page.mouse.move(2, 2)
        assert not tip.is_visible()
        points.nth(1).dispatch_event("click")
        assert tip.inner_text() == text
        page.keyboard.press("ArrowRight")
        assert tip.inner_text() == points.nth(2).get_attribute("aria-label")
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        assert page.locator('#differences .point[tabindex="0"]').count() == 1  # one stop of the Tab key a chart


def test_a_phone_scrolls_the_page_one_way_only(browser: Any, report: Path) -> None:
    with visit(browser, report, viewport={"width": 390, "height": 844}, has_touch=True) as seen:
        wide, room, table, box = seen.page.evaluate("""() => {
            const scroll = document.querySelector("#arms .scroll");
            return [document.documentElement.scrollWidth, innerWidth, scroll.scrollWidth, scroll.clientWidth];
        }""")
        assert wide <= room and table > box  # the table in its own box
        seen.page.evaluate("document.querySelector('#arms .scroll').scrollLeft = 200")
        left, edge = seen.page.evaluate(
            "['#arms tbody th', '#arms .scroll'].map(s => document.querySelector(s).getBoundingClientRect().left)"
        )
        assert left == edge  # the arm's name stays


def test_answers_stand_side_by_side_and_on_a_phone_below_each_other(browser: Any, tmp_path: Path) -> None:
    kept = copy.deepcopy(KEPT)
    kept["records"][0]["prompt"] = f"{MARKUP}\n{'x' * 900}"
    kept["records"][0]["answers"][1]["text"] = f"{UNSEEN}{'y' * 900}"
    folder = make_ledger(tmp_path / "study", seeds=3)
    with contextlib.closing(create_or_open(folder)) as ledger:
        ledger.set_facts({"answers": kept})
    make_report(folder)
    for width, columns in ((1200, 4), (390, 1)):
        with visit(browser, folder / "report.html", viewport={"width": width, "height": 844}) as seen:
            page = seen.page
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            lefts = (
                page.locator("dl.said")
                .first.locator("> div:not(.asked)")
                .evaluate_all("all => all.map(e => Math.round(e.getBoundingClientRect().left))")
            )
            assert len(lefts) == 4 and len(set(lefts)) == columns
            page.locator("details.arms summary").click()
            page.get_by_role("checkbox", name="decay-01").uncheck()
            assert all(seen.hidden('#answers [data-arm="decay-01"]'))
            seen.check_quiet()


def test_dark_is_dark(browser: Any, report: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        with visit(browser, report, color_scheme=scheme) as seen:
            colours[scheme] = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}


def test_without_scripts_everything_is_there(browser: Any, report: Path) -> None:
    with visit(browser, report, java_script_enabled=False) as seen:
        page = seen.page
        assert page.locator("#arms tbody tr").count() == 3 and page.locator("figure svg").count() >= 4
        assert page.locator("#differences g > title").count() > 3
        assert not page.locator("details.arms").is_visible() and page.locator("th button").count() == 0


MARKUP = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2><svg onload=window.hacked=3>"
    "'\"&{{7*7}}</style></title>--></svg></table>"
)
UNSEEN = "\x1b[31mred\x1b]0;title\x07\u202egnihton\u2066\u200b\x00\ud800\u2028end"
MATHEMATICS = r"$\frac{1$ \input{x}"
LONG = "x" * 1_000_000
SHOWN = (MARKUP, "␛[31mred␛]0;title␇[U+202E]gnihton[U+2066][U+200B]␀", MATHEMATICS, "xxx… (1,000,000 characters)")


@pytest.mark.parametrize("turn", [0, 1])
def test_foreign_text_neither_acts_nor_breaks_the_page(browser: Any, report: Path, tmp_path: Path, turn: int) -> None:
    folder = make_ledger(tmp_path / "study", seeds=3)
    texts = (MARKUP, UNSEEN, MATHEMATICS, LONG)
    text, other, third, last = texts[turn:] + texts[:turn]
    with contextlib.closing(create_or_open(folder)) as ledger:
        facts = ledger.facts()
        facts["model"]["name"], facts["data"]["source"], facts["data"]["licence"], facts["name"] = texts
        facts["lock"]["deviations"] = [{"when": other, "reason": third, "differences": [text, last] * 15}]
        facts["versions"][text] = text
        facts["lock"]["primary"][1]["arm"] = text
        ledger.set_facts(facts)
        # SQLite's texts are UTF-8, which has no lone surrogates; JSON has.
        stored = text.encode(errors="replace").decode()
        ledger._db.execute(
            "UPDATE runs SET error = ?, status = 'failed' WHERE arm = 'decay-01' AND seed < 2", (stored,)
        )
        ledger._db.execute("UPDATE runs SET arm = ? WHERE arm = 'decay-02'", (stored,))
        ledger._db.commit()
    page = make_report(folder)
    assert len(page) < len(report.read_text(encoding="utf-8")) + 60_000
    with visit(browser, folder / "report.html") as seen:
        seen.check_quiet()
        shape = seen.page.evaluate("""() => [
            document.scripts.length, document.querySelectorAll("img, iframe, link, object").length,
            document.body.lastElementChild.localName, document.querySelectorAll("main > section").length,
            document.documentElement.scrollWidth <= innerWidth]""")
        assert shape[:3] == [1, 0, "script"] and shape[3] >= 8 and shape[4]
        written = seen.page.locator("body").inner_text()
        assert not set(written) & set("\x1b\x07\x00\u202e\u2066\u200b\u2028")
        assert all(shown in written for shown in SHOWN)
        seen.page.locator("#arms th button").first.click()  # the script still works
        assert seen.page.locator("#arms th").first.get_attribute("aria-sort") == "ascending"
    for path in (folder / "tables").iterdir():
        assert path.stat().st_size < 50_000 and "\x1b" not in path.read_text(encoding="utf-8")

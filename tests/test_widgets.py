"""Figures with controls: what the page holds, what a control does, and what is refused."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import v4
from PIL import Image, ImageChops
from playwright.sync_api import Page, sync_playwright

from tlhelpers import plots, widgets
from tlhelpers.plots import Figure

STYLE = Path(__file__).parents[1] / "assets" / "book.css"
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
VIEW = "application/vnd.jupyter.widget-view+json"
IN_A_NOTEBOOK = """
import pandas as pd
from tlhelpers import plots, widgets


def draw(shots=1):
    figure, axes = plots.figure(alt=f"A line for {shots} shots.")
    return figure, pd.DataFrame({"shots": [shots]})


widgets.explore(draw, shots=[1, 5])
"""
SHOTS, METHODS = [1, 5, 20], ["probe", "k-NN & <more>"]


def draw(shots: int = 5, method: str = "probe") -> tuple[Figure, pd.DataFrame]:
    """A line that depends on the setting, and its numbers."""
    frame = pd.DataFrame({"x": [1, 2, 4], "mean": [shots, shots + len(method), 2.0 * shots]})
    figure = plots.learning_curve(
        frame, x="x", low=None, high=None, xlabel="x", ylabel="y", unit="",
        alt=f"A line for {shots} shots by {method}.",
    )  # fmt: skip
    return figure, frame


def explorer() -> widgets.Explorer:
    return widgets.explore(draw, shots=SHOTS, method=METHODS)


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str, **having: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.found
            if name == tag and all(attributes.get(key) == value for key, value in having.items())
        ]


class TestPage:
    def test_holds_a_figure_with_its_words_for_every_setting(self) -> None:
        alts = [image["alt"] for image in Tags(explorer().html()).of("img")]
        assert alts == [f"A line for {k} shots by {m}." for k in SHOTS for m in METHODS]

    def test_begins_with_the_functions_defaults(self) -> None:
        frames = Tags(explorer().html()).of("div", **{"class": "tl-frame"})
        assert [frame["data-at"] for frame in frames if "hidden" not in frame] == ["1,0"]

    def test_numbers_get_a_slider_and_anything_else_buttons(self) -> None:
        tags = Tags(explorer().html())
        (slider,) = tags.of("input", type="range")
        assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "1")
        assert slider["aria-valuetext"] == "5"
        assert len(tags.of("input", type="radio")) == 2
        assert len(tags.of("fieldset")) == 1

    def test_has_the_same_numbers_in_a_table(self) -> None:
        text = explorer().html()
        assert re.findall(r"<th>(.*?)</th>", text) == ["shots", "method", "x", "mean"]
        cells = re.findall(r"<td>(.*?)</td>", text)
        found = [float(value) for value in cells[3::4]]
        drawn = [draw(k, m)[1]["mean"] for k in SHOTS for m in METHODS]
        assert found == pd.concat(drawn).tolist()

    def test_asks_for_nothing_from_elsewhere(self) -> None:
        text = explorer().html()
        assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
        assert "http" not in re.sub(r"base64,[^\"]*", "", text)

    def test_two_of_one_page_do_not_share_names(self) -> None:
        other = widgets.explore(draw, shots=[1, 5], method=METHODS)
        ids = [Tags(made.html()).of("div", **{"class": "tl-explorer"})[0]["id"] for made in
               (explorer(), other)]  # fmt: skip
        assert len(set(ids)) == 2

    def test_only_the_first_figure_is_there_whole(self) -> None:
        def marked(at: int) -> tuple[Figure, pd.DataFrame]:
            figure, frame = draw()
            figure.axes[0].plot([at, at], [5, 6], marker="")
            return figure, frame

        images = Tags(widgets.explore(marked, at=[1, 2, 3]).html()).of("img")
        whole, *changes = (len(image["src"] or "") for image in images)
        assert [image["class"] for image in images].count("tl-figure") == 1
        assert max(changes) < whole / 3

    def test_a_figure_of_another_size_is_there_whole(self) -> None:
        small, large = (Image.new("RGB", size, "white") for size in ((64, 40), (64, 48)))
        assert widgets._changes(large, small) is large
        assert widgets._changes(small.copy(), small).getchannel("A").getextrema() == (0, 0)

    def test_is_the_same_every_time(self) -> None:
        assert explorer().html() == explorer().html()

    def test_one_too_heavy_for_a_page_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(widgets, "LARGEST", 10_000)
        with pytest.raises(ValueError, match=r"has 6 figures .* more than 10,000"):
            explorer().html()


class TestRefuses:
    def test_an_argument_that_the_function_lacks(self) -> None:
        with pytest.raises(TypeError, match="no argument 'shot'; it has shots, method"):
            widgets.explore(draw, shot=[1, 2])

    @pytest.mark.parametrize("values", [{}, {"shots": [1]}, {"shots": []}])
    def test_nothing_to_choose(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"at least one argument|two values or more"):
            widgets.explore(draw, **values)

    @pytest.mark.parametrize("drawn", [None, 3, (1, 2)])
    def test_a_function_that_draws_nothing(self, drawn: Any) -> None:
        def empty(shots: int) -> Any:
            return drawn

        with pytest.raises(TypeError, match="empty should return a figure"):
            widgets.explore(empty, shots=SHOTS).html()


class TestLive:
    def test_a_control_calls_the_function(self) -> None:
        asked: list[dict[str, Any]] = []

        def watched(shots: int, method: str) -> tuple[Figure, pd.DataFrame]:
            asked.append({"shots": shots, "method": method})
            return draw(shots, method)

        box = widgets.explore(watched, shots=SHOTS, method=METHODS).live()
        slider, buttons, _ = box.children
        assert isinstance(slider, ipywidgets.SelectionSlider)
        assert isinstance(buttons, ipywidgets.ToggleButtons)
        slider.value = 2
        box.update()
        assert asked[-1] == {"shots": 20, "method": "probe"}
        buttons.value = 1
        box.update()
        assert asked[-1] == {"shots": 20, "method": METHODS[1]}

    @pytest.mark.parametrize(("static", "kind"), [("", VIEW), ("1", "text/html")])
    def test_a_kernel_shows_controls_unless_a_page_is_built(
        self, static: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(widgets.STATIC_VARIABLE, static)
        notebook = v4.new_notebook(cells=[v4.new_code_cell(IN_A_NOTEBOOK)])
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
        (output,) = notebook.cells[0].outputs
        assert kind in output["data"]

    def test_outside_a_notebook_it_is_the_page(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert repr(explorer()) == "<Explorer of shots: 1, 5, 20; method: probe, k-NN & <more>>"
        explorer()._ipython_display_()
        assert "HTML" in capsys.readouterr().out


@pytest.fixture(scope="module")
def chromium(chromium_path: Path) -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium_path), args=CHROMIUM)
        yield browser
        browser.close()


class TestInABrowser:
    @pytest.fixture
    def page(self, chromium: Any) -> Iterator[Page]:
        page = chromium.new_page()
        page.set_content(f"<main>{explorer().html()}</main>")
        yield page
        page.close()

    @staticmethod
    def shown(page: Page) -> list[str | None]:
        images = page.locator("img")
        return [
            images.nth(i).get_attribute("alt")
            for i in range(images.count())
            if images.nth(i).is_visible()
        ]

    def test_each_control_changes_the_figure(self, page: Page) -> None:
        assert self.shown(page) == ["A line for 5 shots by probe."]
        page.get_by_label("shots").fill("2")
        assert self.shown(page) == ["A line for 20 shots by probe."]
        page.get_by_label("k-NN & <more>").check()
        assert self.shown(page) == ["A line for 20 shots by k-NN & <more>."]

    def test_the_keyboard_moves_them(self, page: Page) -> None:
        page.get_by_label("shots").focus()
        page.keyboard.press("ArrowLeft")
        assert self.shown(page) == ["A line for 1 shots by probe."]
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert self.shown(page) == ["A line for 1 shots by k-NN & <more>."]

    def test_what_changed_is_said(self, page: Page) -> None:
        slider = page.get_by_label("shots")
        slider.fill("0")
        assert slider.get_attribute("aria-valuetext") == "1"
        assert page.locator("output").inner_text() == "1"
        assert page.locator("[aria-live]").inner_text() == "A line for 1 shots by probe."

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_a_browser_puts_the_changes_where_they_belong(self, page: Page, theme: str) -> None:
        page.add_style_tag(path=str(STYLE))
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        page.evaluate("document.querySelector('main').classList.add('bd-article')")
        page.get_by_label("shots").fill("2")
        seen = self.picture(page)
        # The same figure, whole, in the same place.
        whole = io.BytesIO()
        draw(20, "probe")[0].pixels().save(whole, "PNG")
        data = base64.b64encode(whole.getvalue()).decode()
        page.evaluate(
            "data => { const image = document.querySelector('.tl-frame:not([hidden]) img');"
            "image.style.background = 'white'; image.src = 'data:image/png;base64,' + data;"
            "return image.decode() }",
            data,
        )
        gap = ImageChops.difference(seen, self.picture(page))
        assert max(high for _, high in gap.getextrema()) < 40  # 256 colours against all

    @staticmethod
    def picture(page: Page) -> Image.Image:
        shot = page.locator(".tl-frame:not([hidden]) img").screenshot()
        return Image.open(io.BytesIO(shot)).convert("RGB")

    def test_without_script_the_first_figure_and_all_numbers_stay(self, chromium: Any) -> None:
        page = chromium.new_context(java_script_enabled=False).new_page()
        page.set_content(explorer().html())
        assert self.shown(page) == ["A line for 5 shots by probe."]
        assert "need JavaScript" in page.locator("noscript").inner_text()
        assert page.locator("details table tbody tr").count() == 18
        page.close()

    def test_on_paper_stand_one_figure_and_its_setting_in_words(self, page: Page) -> None:
        page.set_content(f'<main class="bd-article">{explorer().html()}</main>')
        page.add_style_tag(path=str(STYLE))
        page.get_by_label("k-NN & <more>").check()
        page.emulate_media(media="print")
        assert self.shown(page) == ["A line for 5 shots by k-NN & <more>."]
        said = page.locator(".tl-controls").inner_text().split()
        assert said == ["shots:", "5", "method", "k-NN", "&", "<more>"]
        assert not page.locator("input").first.is_visible()
        assert not page.locator("details").is_visible()

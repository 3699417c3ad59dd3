"""Figures say in words what they show, are shown once, and refuse data that would mislead."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_hex
from nbclient import NotebookClient
from PIL import Image

from tlhelpers import plots

GRID = [1, 2, 5, 10, 20, 50, 90]


def curve(*, proportions: bool = True) -> pd.DataFrame:
    """Two learning curves, with intervals."""
    frame = pd.DataFrame({"k": GRID * 2, "method": ["probe"] * 7 + ["prototypes"] * 7})
    top = np.where(frame["method"] == "probe", 0.8, 0.7)
    mean = (top - 0.3 / np.sqrt(frame["k"])) * (1 if proportions else 100)
    return frame.assign(mean=mean, low=0.95 * mean, high=1.05 * mean)


def table() -> pd.DataFrame:
    values = {"method": ["probe", "untrained head"], "top1": [0.826, 0.839]}
    return pd.DataFrame(values).assign(low=[0.816, 0.829], high=[0.836, 0.848])


def bins() -> pd.DataFrame:
    confidence = [np.nan, 0.3, 0.6, 0.9]
    return pd.DataFrame(
        {"confidence": confidence, "accuracy": [np.nan, 0.2, 0.5, 0.8], "count": [0, 10, 20, 70]}
    )


def pairs() -> pd.DataFrame:
    values = {"true": ["Eskimo dog", "Lhasa"], "predicted": ["Siberian husky", "Shih-Tzu"]}
    return pd.DataFrame(values).assign(share=[0.5, 0.25])


def draw_curve(frame: pd.DataFrame, **options: Any) -> plots.Figure:
    given = {"x": "k", "hue": "method", "xlabel": "images a breed", "ylabel": "accuracy"}
    return plots.learning_curve(frame, **{**given, **options})


def draw_bars(frame: pd.DataFrame, **options: Any) -> plots.Figure:
    return plots.bars(frame, label="method", value="top1", xlabel="accuracy", **options)


def draw_path(frame: pd.DataFrame, **options: Any) -> plots.Figure:
    given = {"x": "ridge", "y": "top1", "xlabel": "ridge weight", "ylabel": "accuracy"}
    return plots.path(frame, **{**given, **options})


def ridges() -> pd.DataFrame:
    return pd.DataFrame({"ridge": [1e-3, 1e-2, 0.1, 1.0], "top1": [0.7, 0.8, 0.82, 0.6]})


def draw_embedding(**options: Any) -> plots.Figure:
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    names = [f"breed {i}" for i in range(20)]
    given = {"highlight": ["breed 3", "breed 7"], **options}
    return plots.embedding(points, torch.arange(60) % 20, names, **given)


def draw_cards(**options: Any) -> plots.Figure:
    rows = [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]
    given = {"right": [1, 2], "top": 2, **options}
    return plots.cards(rows, ["pug", "husky", "spaniel"], ["a husky", "a spaniel"], **given)


def pictures(count: int = 3) -> list[torch.Tensor]:
    """Smooth coloured gradients of different shapes."""
    shapes = [(40, 60), (60, 40), (50, 50)]
    return [
        torch.linspace(0, 255, 3 * h * w).reshape(3, h, w).to(torch.uint8)
        for h, w in (shapes * count)[:count]
    ]


FIGURES: dict[str, Callable[[], plots.Figure]] = {
    "learning_curve": lambda: draw_curve(curve()),
    "bars": lambda: draw_bars(table()),
    "path": lambda: draw_path(ridges(), chosen=0.1),
    "reliability": lambda: plots.reliability(bins()),
    "confusions": lambda: plots.confusions(pairs()),
    "embedding": draw_embedding,
    "photographs": lambda: plots.photographs(pictures(), ["a spaniel", "a husky", "a pug"]),
    "cards": lambda: draw_cards(),
    "cards with images": lambda: draw_cards(images=pictures(2)),
    "figure": lambda: plots.figure(alt="An empty pair of axes.", columns=2)[0],
}


UNLABELLED = {"photographs", "figure", "cards", "cards with images"}


class Images(HTMLParser):
    """The attributes of each <img> in a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


@pytest.mark.parametrize("name", FIGURES)
class TestEveryFigure:
    def test_alternative_text_is_in_the_page_once(self, name: str) -> None:
        figure = FIGURES[name]()
        data, metadata = figure._repr_mimebundle_()
        (image,) = Images(data["text/html"]).found
        kind = f"image/{figure.image_format}"
        assert image["alt"] == figure.alt == metadata[kind]["alt"]
        assert figure.alt.endswith(".")
        assert image["class"] == "tl-figure"
        assert "max-width: 100%" in str(image["style"])
        assert image["src"] == f"data:{kind};base64,{data[kind]}"

    def test_image_is_sharp_white_and_small(self, name: str) -> None:
        figure = FIGURES[name]()
        data, metadata = figure._repr_mimebundle_()
        kind = f"image/{figure.image_format}"
        content = base64.b64decode(data[kind])
        picture = Image.open(io.BytesIO(content))
        assert len(content) < 120_000
        assert picture.width == 2 * metadata[kind]["width"] == 1280
        assert picture.height == pytest.approx(2 * metadata[kind]["height"], abs=2)
        assert min(picture.convert("RGB").getpixel((2, 2))) > 245

    def test_pyplot_knows_nothing_of_it(self, name: str) -> None:
        before, settings = plt.get_fignums(), dict(plt.rcParams)
        FIGURES[name]()
        assert plt.get_fignums() == before
        assert dict(plt.rcParams) == settings


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - UNLABELLED))
def test_axes_are_labelled(name: str) -> None:
    (axes,) = FIGURES[name]().axes
    assert axes.get_xlabel()
    assert axes.get_ylabel() or len(axes.get_yticklabels()) == 2


class TestDisplay:
    """One figure is one image, in whatever state IPython's formatters are."""

    CELLS = (
        "from tlhelpers import plots\n"
        "figure, axes = plots.figure(alt='A line of two points.')\n"
        "axes.plot([1, 2])\n"
        "figure",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        "figure",
    )

    def test_notebook_holds_one_image_for_each_display(self) -> None:
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in self.CELLS]
        )
        NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
        # The middle cell has pyplot register its own formatter for figures.
        assert any("image/png" in output.get("data", {}) for output in notebook.cells[1].outputs)
        for cell in (notebook.cells[0], notebook.cells[2]):
            (output,) = cell.outputs
            (image,) = Images(output.data["text/html"]).found
            assert image["alt"] == "A line of two points."
            assert output.data["image/png"] in str(image["src"])
            assert output.metadata["image/png"]["alt"] == "A line of two points."

    def test_formatters_leave_the_display_to_the_figure(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[Any] = []
        monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((a, k)))
        InteractiveShell.instance()
        figure = plots.figure(alt="An empty pair of axes.")[0]
        assert DisplayFormatter().format(figure) == ({}, {})
        ((data,), options) = shown[0]
        assert "text/html" in data
        assert options["raw"] is True


@pytest.mark.parametrize("height", [4.1, 4.6, *np.linspace(2, 9, 12)])
def test_a_figure_of_any_height_is_drawn(height: float) -> None:
    figure = plots.Figure(alt="A line through the field.", figsize=(plots.WIDTH, height))
    figure.add_artist(plt.Line2D([0, 1], [0, 1]))
    pixels = figure.pixels()
    assert pixels.width == 1280
    assert abs(pixels.height - plots.SHARPNESS * plots.CSS_PIXELS * height) <= 1
    corners = [pixels.getpixel((x, pixels.height - 1 - y)) for x, y in ((3, 2), (1276, 2))]
    assert corners[1] == (255, 255, 255) != corners[0], "rows of another length would be askew"


class TestAlt:
    def test_cards_name_the_largest_first(self) -> None:
        assert draw_cards().alt == (
            "2 cards with bars of probability. a husky: husky 70 %; spaniel 20 %. "
            "a spaniel: pug 50 %; spaniel 30 %."
        )

    @pytest.mark.parametrize("alt", ["", "   ", "figure.", "a curve without an end", None, 3])
    def test_must_be_a_sentence(self, alt: Any) -> None:
        with pytest.raises(ValueError, match="alt should be a sentence"):
            plots.figure(alt=alt)
        with pytest.raises(ValueError, match="alt should be a sentence"):
            FIGURES["figure"]().alt = alt

    def test_is_escaped_in_the_page(self) -> None:
        alt = 'The "probe" at k < 5 & more.'
        data, _ = plots.figure(alt=alt)[0]._repr_mimebundle_()
        assert Images(data["text/html"]).found[0]["alt"] == alt
        assert "k < 5" not in data["text/html"]

    @pytest.mark.parametrize("draw", [draw_curve, draw_bars, draw_path])
    def test_can_be_given(self, draw: Callable[..., plots.Figure]) -> None:
        frame = {draw_curve: curve, draw_bars: table, draw_path: ridges}[draw]()
        assert draw(frame, alt="What I say it shows.").alt == "What I say it shows."

    def test_curve_names_axes_series_and_ends(self) -> None:
        alt = draw_curve(curve()).alt
        for part in (
            "accuracy (%) against images a breed (logarithmic axis, 1 to 90)",
            "intervals as bands",
            "probe: from 50.0 % at 1 to 76.8 % at 90.",
            "prototypes: from 40.0 % at 1 to 66.8 % at 90.",
        ):
            assert part in alt

    def test_curve_in_other_units(self) -> None:
        frame = curve(proportions=False)
        assert "from 50 ms at 1 to 76.8 ms at 90" in draw_curve(frame, unit="ms").alt
        assert "from 50 at 1 to 76.8 at 90" in draw_curve(frame, unit="", low=None).alt
        assert "bands" not in draw_curve(frame, unit="", low=None).alt

    def test_bars_list_values_and_intervals(self) -> None:
        assert "probe 82.6 % [81.6, 83.6]; untrained head 83.9 %" in draw_bars(table()).alt
        assert "probe 82.6 %; untrained head 83.9 %." in draw_bars(table(), low=None).alt

    def test_path_names_the_extremes_and_the_chosen(self) -> None:
        alt = draw_path(ridges(), chosen=0.01).alt
        assert "From 70.0 % at 0.001 to 60.0 % at 1." in alt
        assert "largest value, 82.0 %, is at 0.1; the smallest value, 60.0 %, is at 1." in alt
        assert alt.endswith("Chosen: 0.01.")

    def test_reliability_draws_intervals_where_there_are_any(self) -> None:
        table = bins()
        ends = {"accuracy_low": table["accuracy"] - 0.1, "accuracy_high": table["accuracy"] + 0.1}
        without, drawn = (plots.reliability(t) for t in (table, table.assign(**ends)))
        assert len(drawn.axes[0].collections) == len(without.axes[0].collections) + 1

    def test_reliability_says_on_which_side_it_errs(self) -> None:
        assert "in 3 bins of 100 images" in plots.reliability(bins()).alt
        assert "10.0 points below the confidence" in plots.reliability(bins()).alt
        modest = bins().assign(accuracy=[np.nan, 0.4, 0.7, 1.0])
        assert "10.0 points above the confidence" in plots.reliability(modest).alt

    def test_the_others(self) -> None:
        assert "Eskimo dog taken for Siberian husky 50.0 %" in FIGURES["confusions"]().alt
        assert "breed 3, breed 7; the other 18 classes in grey" in draw_embedding().alt
        assert FIGURES["photographs"]().alt == "3 photographs: a spaniel; a husky; a pug."

    def test_long_lists_are_cut_and_say_so(self) -> None:
        frame = pd.DataFrame({"method": [f"m{i}" for i in range(20)], "top1": 0.5})
        assert "m11 50.0 %; and 8 more." in draw_bars(frame, low=None).alt


class TestLook:
    def test_lines_differ_in_colour_and_marker(self) -> None:
        (axes,) = draw_curve(curve()).axes
        lines = axes.get_lines()
        palette = sns.color_palette("colorblind").as_hex()
        colours = [to_hex(line.get_color()) for line in lines]
        assert set(colours) <= set(palette)
        assert len(set(colours)) == len({line.get_marker() for line in lines}) == 2
        assert min(line.get_linewidth() for line in lines) >= 1.8

    def test_own_lines_follow_without_the_style(self) -> None:
        _, axes = plots.figure(alt="Two lines that cross.")
        lines = [axes.plot([0, 1], ends)[0] for ends in ([0, 1], [1, 0])]
        assert [to_hex(line.get_color()) for line in lines] == list(plots.PALETTE[:2])
        assert [line.get_marker() for line in lines] == list(plots.MARKERS[:2])
        assert min(line.get_linewidth() for line in lines) >= 1.8

    def test_type_stays_legible_on_a_telephone(self) -> None:
        """At 350 of 640 pixels, letters of 12 points are 9 CSS pixels high."""
        figure = draw_curve(curve())
        (axes,) = figure.axes
        legend = axes.get_legend()
        assert legend is not None
        texts = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *legend.get_texts()]
        assert min(text.get_fontsize() for text in texts) >= 12

    def test_ticks_stand_where_something_was_measured(self) -> None:
        (axes,) = draw_curve(curve()).axes
        assert axes.get_xticks().tolist() == GRID
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(k) for k in GRID]
        assert len(axes.get_xticks(minor=True)) == 0

    def test_proportions_are_shown_in_per_cent(self) -> None:
        (axes,) = draw_curve(curve()).axes
        assert axes.get_ylabel() == "accuracy (%)"
        assert axes.get_lines()[0].get_ydata()[0] == pytest.approx(50)
        (axes,) = draw_bars(table()).axes
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([82.6, 83.9])
        assert [text.get_text() for text in axes.texts] == ["82.6", "83.9"]

    def test_rows_may_come_in_any_order(self) -> None:
        shuffled = draw_curve(curve().sample(frac=1, random_state=0)).axes[0].get_lines()
        for line in shuffled:
            assert np.all(np.diff(line.get_xdata()) > 0)
        assert "at 1 to" in draw_curve(curve()[::-1]).alt

    def test_points_are_hundredths_on_the_axis_as_in_the_text(self) -> None:
        frame = pd.DataFrame({"method": ["a"], "top1": [0.05], "low": [0.04], "high": [0.06]})
        figure = draw_bars(frame, unit="points")
        bar = figure.axes[0].patches[0]
        assert bar.get_width() == pytest.approx(5)  # type: ignore[attr-defined]
        assert "5.0 points" in figure.alt

    def test_the_figure_of_a_bar_below_zero_stands_beside_it(self) -> None:
        rows = [("a", -0.05, -0.06, -0.04), ("b", 0.05, 0.04, 0.06)]
        frame = pd.DataFrame(rows, columns=["method", "top1", "low", "high"])
        (axes,) = draw_bars(frame, unit="points").axes
        below, above = axes.texts
        assert below.xy[0] == 0
        assert above.xy[0] == pytest.approx(6)

    def test_bars_run_from_the_top(self) -> None:
        (axes,) = draw_bars(table()).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "probe",
            "untrained head",
        ]
        assert axes.yaxis_inverted()

    def test_chosen_setting_is_marked(self) -> None:
        (axes,) = draw_path(ridges(), chosen=0.01).axes
        star = axes.get_lines()[1]
        assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([0.01], [80.0])

    def test_background_classes_are_grey(self) -> None:
        (axes,) = draw_embedding().axes
        background, *coloured = axes.collections
        assert len(background.get_offsets()) == 54
        assert to_hex(background.get_facecolors()[0]) == plots.PALE_GREY
        assert [len(points.get_offsets()) for points in coloured] == [3, 3]

    def test_several_axes(self) -> None:
        figure, axes = plots.figure(alt="Two empty pairs of axes.", rows=2, columns=3, sharey=True)
        assert axes.shape == (2, 3)
        assert figure.get_size_inches()[0] == plots.WIDTH


def broken(column: str, value: float) -> pd.DataFrame:
    frame = curve()
    frame.loc[3, column] = value
    return frame


class TestBadInput:
    @pytest.mark.parametrize(
        ("frame", "options", "message"),
        [
            (curve().drop(columns="mean"), {}, "no column 'mean'; it has k, method, low, high"),
            (curve()[:0], {}, "no rows"),
            (broken("mean", np.nan), {}, "'mean' .* 1 of 14 rows hold NaN"),
            (broken("high", np.inf), {}, "'high' .* 1 of 14 rows hold NaN or infinity"),
            (broken("low", 0.99), {}, "should lie between 'low' and 'high', but in 1 of 14"),
            (curve(proportions=False), {}, "'mean' should hold proportions in 0..1"),
            (broken("k", 0), {}, "needs 'k' above 0, found 0"),
            (curve(), {"hue": None}, "each 'k' should stand in one row"),
            (pd.concat([curve(), curve()[:1]]), {}, "in one row of 'probe'"),
            (
                pd.concat([curve().assign(method=str(i))[:7] for i in range(10)]),
                {},
                "10 lines cannot be told apart",
            ),
        ],
    )
    def test_curve(self, frame: pd.DataFrame, options: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, KeyError), match=message):
            draw_curve(frame, **options)

    def test_bars(self) -> None:
        with pytest.raises(ValueError, match="a name of its own"):
            draw_bars(table().assign(method="probe"))
        with pytest.raises(ValueError, match=r"should hold proportions in 0\.\.1"):
            draw_bars(table().assign(top1=82.6), low=None)

    def test_path(self) -> None:
        with pytest.raises(ValueError, match=r"one of the values of 'ridge', found 0\.3"):
            draw_path(ridges(), chosen=0.3)
        with pytest.raises(ValueError, match="needs 'ridge' above 0"):
            draw_path(ridges().assign(ridge=[0, 1, 2, 3]))

    def test_reliability(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            plots.reliability(bins()[:1])
        with pytest.raises(KeyError, match="no column 'count'"):
            plots.reliability(bins().drop(columns="count"))

    def test_embedding(self) -> None:
        with pytest.raises(ValueError, match=r"found \(60, 3\) and \(60,\)"):
            plots.embedding(np.zeros((60, 3)), np.zeros(60, int), ["a"])
        with pytest.raises(ValueError, match="NaN or infinity"):
            plots.embedding(np.full((6, 2), np.nan), np.zeros(6, int), ["a"])
        with pytest.raises(ValueError, match=r"labels should lie in 0\.\.0"):
            plots.embedding(np.zeros((6, 2)), np.ones(6, int), ["a"])
        with pytest.raises(ValueError, match="20 classes cannot be told apart by colour"):
            draw_embedding(highlight=None)
        with pytest.raises(KeyError, match="no class 'cat' to highlight"):
            draw_embedding(highlight=["cat"])

    def test_photographs(self) -> None:
        with pytest.raises(ValueError, match="found 3 images and 1 titles"):
            plots.photographs(pictures(), ["one"])
        with pytest.raises(ValueError, match="found 0 images"):
            plots.photographs([], [])
        with pytest.raises(TypeError, match=r"'one' should be uint8 of shape \(3, H, W\), found"):
            plots.photographs([torch.rand(3, 4, 4)], ["one"])
        with pytest.raises(TypeError, match=re.escape("found uint8 of shape (4, 4, 3)")):
            plots.photographs([np.zeros((4, 4, 3), np.uint8)], ["one"])

    def test_cards(self) -> None:
        with pytest.raises(ValueError, match=r"found \(2, 3\), 3 classes and lengths \[1, 2\]"):
            draw_cards(right=[1])
        with pytest.raises(ValueError, match=r"found \(0,\), 2 classes"):
            plots.cards([], ["a", "b"], [])
        with pytest.raises(ValueError, match=r"lie in 0\.\.1, found -1 to 3"):
            plots.cards([[3.0, -1.0]], ["a", "b"], ["one"])

    def test_image_format(self) -> None:
        with pytest.raises(ValueError, match="should be 'png' or 'jpeg', found 'svg'"):
            plots.Figure(alt="An empty figure here.", image_format="svg")

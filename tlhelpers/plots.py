"""The book's one look, and figures that say in words what they show.

Every function takes a frame or arrays and returns a :class:`Figure`: one image, legible on a
telephone and on a dark page, told apart by marker as well as by a colour-blind-safe colour.
Its ``alt`` text ends up in the page; it is composed from the data unless you give another.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

WIDTH = 6.4  # inches
CSS_PIXELS = 100  # to the inch: a figure is 640 px wide where the page has the room
SHARPNESS = 2  # pixels of the image to one CSS pixel, for screens that have them
# Grey is for what stands in the background.
PALETTE = tuple(c for c in sns.color_palette("colorblind").as_hex() if c != "#949494")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
GREY, PALE_GREY, BLACK = "#767676", "#c4c4c4", "#222222"

# A page on a telephone shows the figure at just over half its size, hence the large type.
_RC: dict[str, Any] = {
    "font.size": 13,
    "axes.labelsize": 13,
    "axes.titlesize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "lines.linewidth": 2.2,
    "lines.markersize": 7,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": BLACK,
    "text.color": BLACK,
    "grid.color": "#d9d9d9",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The book's look for everything drawn while the block runs.

    :func:`figure` and the plots below use it themselves; you need it to draw further lines and
    texts into their axes.

    Example:
        >>> import matplotlib
        >>> import tlhelpers as tl
        >>> with tl.plots.style():
        ...     matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.spines.top"]
        (13.0, False)
    """
    settings: Any = {**_RC, "axes.prop_cycle": _cycle()}
    with sns.axes_style("whitegrid"), matplotlib.rc_context(settings):
        yield


def _cycle() -> Any:
    """What each next line of an axes looks like, also where it is drawn outside the style."""
    width = _RC["lines.linewidth"]
    return cycler(color=PALETTE, marker=MARKERS, linewidth=[width] * len(PALETTE))


class Figure(matplotlib.figure.Figure):
    """A figure with alternative text, shown once and never kept by pyplot.

    Args:
        alt: one or more sentences that tell somebody who cannot see the figure what it shows.
        image_format: ``"png"``, or ``"jpeg"`` for photographs, which PNG makes ten times larger.
        options: passed on to ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if ``alt`` is not a sentence.

    Example:
        >>> import tlhelpers as tl
        >>> made = tl.plots.Figure(alt="A dot in the middle of an empty field.")
        >>> _ = made.subplots().scatter([0.5], [0.5])
        >>> made
        <Figure: A dot in the middle of an empty field.>
        >>> made.image()[1:4]
        b'PNG'
        >>> made.alt = "A dot"  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
            ...
        ValueError: alt should be a sentence that says what the figure shows, and end with a
        full stop; found 'A dot'.
    """

    def __init__(self, *, alt: str, image_format: str = "png", **options: Any) -> None:
        if image_format not in ("png", "jpeg"):
            raise ValueError(f"image_format should be 'png' or 'jpeg', found {image_format!r}.")
        options.setdefault("figsize", (WIDTH, 0.62 * WIDTH))
        super().__init__(dpi=CSS_PIXELS, layout="constrained", **options)
        self.alt = alt
        self.image_format = image_format

    @property
    def alt(self) -> str:
        """What the figure shows, in words."""
        return self._alt

    @alt.setter
    def alt(self, text: str) -> None:
        words = text.split() if isinstance(text, str) else []
        if len(words) < 3 or not words[-1].endswith((".", "!", "?")):
            raise ValueError(
                f"alt should be a sentence that says what the figure shows, and end with a full "
                f"stop; found {text!r}."
            )
        self._alt = " ".join(words)

    def pixels(self) -> Image.Image:
        """The figure drawn, in RGB, at twice the size that a page shows it, for sharp screens."""
        buffer = io.BytesIO()
        self.savefig(
            buffer,
            format="png",
            dpi=SHARPNESS * CSS_PIXELS,
            facecolor="white",
            pil_kwargs={"compress_level": 0},  # it is read again at once
        )
        return Image.open(buffer).convert("RGB")

    def image(self) -> bytes:
        """The figure as the bytes of a PNG or JPEG file."""
        pixels, buffer = self.pixels(), io.BytesIO()
        if self.image_format == "jpeg":
            pixels.save(buffer, "JPEG", quality=85, optimize=True)
        else:
            # Enough colours for lines and bars, and a third of the bytes.
            few = pixels.quantize(256, dither=Image.Dither.NONE)
            few.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        kind = f"image/{self.image_format}"
        encoded = base64.b64encode(self.image()).decode("ascii")
        width, height = (round(inches * CSS_PIXELS) for inches in self.get_size_inches())
        # The builders of pages drop the alternative text of a bare image, so the page gets HTML;
        # the image itself is for what cannot show HTML, such as a PDF.
        tag = (
            f'<img class="tl-figure" alt="{html.escape(self.alt)}" width="{width}" '
            f'height="{height}" style="max-width: 100%; height: auto; background: white" '
            f'src="data:{kind};base64,{encoded}">'
        )
        data = {"text/plain": f"Figure: {self.alt}", "text/html": tag, kind: encoded}
        return data, {kind: {"alt": self.alt, "width": width, "height": height}}

    def _ipython_display_(self) -> None:
        # Where pyplot is in use, IPython holds a formatter for every figure, subclasses too,
        # which would draw this one a second time and drop what was said about it.
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)

    def __repr__(self) -> str:
        return f"<Figure: {self.alt}>"


def figure(
    *, alt: str, columns: int = 1, rows: int = 1, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """An empty figure in the book's look, and its axes, for a plot of your own.

    Args:
        alt: what it is going to show, in one or more sentences.
        columns, rows: how many axes; with more than one, an array of them is returned.
        height: in inches; the width is fixed, so that all figures of a page agree.
        options: passed on to ``Figure.subplots``, such as ``sharey=True``.

    Example:
        >>> import tlhelpers as tl
        >>> made, axes = tl.plots.figure(alt="Two bars; the second is twice as high.", columns=2)
        >>> _ = axes[0].bar(["a", "b"], [1, 2])
        >>> made, len(axes)
        (<Figure: Two bars; the second is twice as high.>, 2)
    """
    made = Figure(alt=alt, figsize=(WIDTH, height or 0.62 * WIDTH * rows / columns**0.5))
    with style():
        return made, made.subplots(rows, columns, **options)


def learning_curve(
    frame: pd.DataFrame,
    *,
    x: str,
    xlabel: str,
    ylabel: str,
    y: str = "mean",
    low: str | None = "low",
    high: str | None = "high",
    hue: str | None = None,
    log_x: bool = True,
    unit: str = "%",
    alt: str | None = None,
) -> Figure:
    """Lines over a grid, such as accuracy over the number of labels, with intervals as bands.

    Args:
        frame: one row a point.
        x: the column of the grid; the axis has its ticks just there.
        xlabel, ylabel: what the axes show; the unit of y is added.
        y, low, high: columns of the value and its interval; ``low=None`` draws no bands.
        hue: the column that tells the lines apart; None for a single line.
        log_x: whether the grid is spaced logarithmically.
        unit: ``"%"`` takes proportions in 0..1 and shows per cent, ``"points"`` takes their
            differences; any other text is the unit of y as it stands, empty for none.
        alt: instead of the text composed from the data.

    Raises:
        ValueError: if the frame is empty, or a value is missing, outside its interval or there
            twice.
        KeyError: if a column is missing.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> frame = pd.DataFrame(
        ...     {"k": [1, 10], "mean": [0.5, 0.9], "low": [0.4, 0.88], "high": [0.6, 0.92]}
        ... )
        >>> tl.plots.learning_curve(
        ...     frame, x="k", xlabel="labels a class", ylabel="accuracy"
        ... )  # doctest: +NORMALIZE_WHITESPACE
        <Figure: Line plot of accuracy (%) against labels a class (logarithmic axis, 1 to 10),
        with intervals as bands. From 50.0 % at 1 to 90.0 % at 10.>
    """
    values = [y] if low is None or high is None else [y, low, high]
    _check(frame, [x, *values, *([hue] if hue else [])], numeric=[x, *values], unit=unit, y=values)
    if log_x and (frame[x] <= 0).any():
        raise ValueError(f"a logarithmic axis needs {x!r} above 0, found {frame[x].min()}.")
    series = _series(frame, hue, x)
    label = _with_unit(ylabel, unit)
    if alt is None:
        ends = [_ends(name, rows[x], rows[y], unit) for name, rows in series.items()]
        kind = "logarithmic axis" if log_x else "linear axis"
        bands = ", with intervals as bands" if len(values) > 1 else ""
        alt = (
            f"Line plot of {label} against {xlabel} ({kind}, {_number(frame[x].min())} to "
            f"{_number(frame[x].max())}){bands}. {' '.join(ends)}"
        )
    made, axes = figure(alt=alt)
    with style():
        for i, (name, rows) in enumerate(series.items()):
            colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
            shown = _scaled(rows[values], unit)
            axes.plot(rows[x], shown[y], color=colour, marker=marker, label=name or None)
            if low is not None and high is not None:
                axes.fill_between(
                    rows[x], shown[low], shown[high], color=colour, alpha=0.2, linewidth=0
                )
        if log_x:
            axes.set_xscale("log")
        _ticks(axes, frame[x])
        axes.set(xlabel=xlabel, ylabel=label)
        if hue:
            axes.legend()
    return made


def path(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    chosen: float | None = None,
    unit: str = "%",
    alt: str | None = None,
) -> Figure:
    """A value over a logarithmic grid of settings, such as accuracy over ridge weights.

    Args:
        frame: one row a setting, each above 0.
        x, y: the columns of the setting and the value.
        xlabel, ylabel: what the axes show; the unit of y is added.
        chosen: the setting that was chosen, which is marked; one of ``x``.
        unit: as in :func:`learning_curve`.
        alt: instead of the text composed from the data.

    Raises:
        ValueError, KeyError: as :func:`learning_curve`, or if ``chosen`` is not on the grid.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> frame = pd.DataFrame({"ridge": [0.01, 0.1, 1.0], "accuracy": [0.7, 0.8, 0.6]})
        >>> tl.plots.path(
        ...     frame, x="ridge", y="accuracy", xlabel="ridge", ylabel="accuracy", chosen=0.1
        ... )  # doctest: +NORMALIZE_WHITESPACE
        <Figure: Line plot of accuracy (%) against ridge (logarithmic axis). From 70.0 % at
        0.01 to 60.0 % at 1. Of all settings, the largest value, 80.0 %, is at 0.1; the
        smallest value, 60.0 %, is at 1. Chosen: 0.1.>
    """
    _check(frame, [x, y], numeric=[x, y], unit=unit, y=[y])
    if (frame[x] <= 0).any():
        raise ValueError(f"a logarithmic axis needs {x!r} above 0, found {frame[x].min()}.")
    rows = _series(frame, None, x)[""]
    shown = _scaled(rows[[y]], unit)[y]
    marked = np.isclose(rows[x], np.nan if chosen is None else chosen, rtol=1e-6)
    if chosen is not None and not marked.any():
        raise ValueError(f"chosen should be one of the values of {x!r}, found {chosen}.")
    label = _with_unit(ylabel, unit)
    if alt is None:
        places = (("largest", int(rows[y].argmax())), ("smallest", int(rows[y].argmin())))
        extremes = [
            f"the {word} value, {_value(rows[y].iloc[i], unit)}, is at {_number(rows[x].iloc[i])}"
            for word, i in places
        ]
        choice = f" Chosen: {_number(chosen)}." if chosen is not None else ""
        alt = (
            f"Line plot of {label} against {xlabel} (logarithmic axis). "
            f"{_ends('', rows[x], rows[y], unit)} Of all settings, {'; '.join(extremes)}.{choice}"
        )
    made, axes = figure(alt=alt)
    with style():
        axes.plot(rows[x], shown, color=PALETTE[0], marker=MARKERS[0])
        if chosen is not None:
            axes.plot(
                rows[x][marked], shown[marked], color=PALETTE[1], marker="*", markersize=18,
                linestyle="none", label=f"chosen: {_number(chosen)}",
            )  # fmt: skip
            axes.legend()
        axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel=label)
    return made


def bars(
    frame: pd.DataFrame,
    *,
    label: str,
    value: str,
    xlabel: str,
    low: str | None = "low",
    high: str | None = "high",
    unit: str = "%",
    alt: str | None = None,
) -> Figure:
    """Horizontal bars with intervals, in the frame's order from the top.

    Args:
        frame: one row a bar.
        label, value: the columns of the names and the values.
        xlabel: what the values are; the unit is added.
        low, high: the columns of the intervals; ``low=None`` for none.
        unit: as in :func:`learning_curve`.
        alt: instead of the text composed from the data.

    Raises:
        ValueError, KeyError: as :func:`learning_curve`.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> frame = pd.DataFrame({"way": ["probe", "scratch"], "accuracy": [0.9, 0.81]})
        >>> tl.plots.bars(
        ...     frame, label="way", value="accuracy", xlabel="accuracy", low=None, high=None
        ... )
        <Figure: Bar chart of accuracy (%): probe 90.0 %; scratch 81.0 %.>
    """
    values = [value] if low is None or high is None else [value, low, high]
    _check(frame, [label, *values], numeric=values, unit=unit, y=values)
    if frame[label].duplicated().any():
        raise ValueError(f"each bar needs a name of its own, found some twice in {label!r}.")
    names = [str(name) for name in frame[label]]
    axis = _with_unit(xlabel, unit)
    if alt is None:
        texts = [f"{name} {_value(v, unit)}" for name, v in zip(names, frame[value], strict=True)]
        if low is not None and high is not None:
            ends = zip(texts, frame[low], frame[high], strict=True)
            texts = [f"{text} [{_bare(a, unit)}, {_bare(b, unit)}]" for text, a, b in ends]
        alt = f"Bar chart of {axis}: {_listed(texts)}."
    made, axes = figure(alt=alt, height=_height(len(frame)))
    with style():
        shown = _scaled(frame[values], unit)
        errors, tips = None, shown[value]
        if low is not None and high is not None:
            errors, tips = np.abs([tips - shown[low], shown[high] - tips]), shown[high]
        axes.barh(
            range(len(frame)), shown[value], height=0.65, color=PALETTE[0], xerr=errors,
            error_kw={"ecolor": BLACK, "elinewidth": 1.8, "capsize": 4},
        )  # fmt: skip
        _names(axes, names)
        # Beside a bar to the left of 0 and not across it: right of the axis.
        _figures(axes, tips.clip(lower=0), [_bare(v, unit) for v in frame[value]])
        axes.set(xlabel=axis)
    return made


def reliability(table: pd.DataFrame, *, alt: str | None = None) -> Figure:
    """Accuracy over confidence, bin by bin, against the diagonal of perfect calibration.

    Args:
        table: ``Report.reliability()``: the columns ``confidence`` and ``accuracy`` (proportions
            in 0..1) and ``count``, the number of images in the bin; empty bins are left out. Where
            there are ``accuracy_low`` and ``accuracy_high``, they are drawn as error bars.
        alt: instead of the text composed from the data.

    Raises:
        ValueError, KeyError: as :func:`learning_curve`.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> table = pd.DataFrame(
        ...     {"confidence": [0.55, 0.95], "accuracy": [0.5, 0.8], "count": [20, 80]}
        ... )
        >>> tl.plots.reliability(table)  # doctest: +NORMALIZE_WHITESPACE
        <Figure: Reliability diagram: accuracy (%) against confidence (%) in 2 bins of 100
        images, with the diagonal of perfect calibration. From 50.0 % at 55.0 % to 80.0 % at
        95.0 %. On average the accuracy lies 13.0 points below the confidence.>
    """
    columns = ["confidence", "accuracy"]
    _check(table, [*columns, "count"], numeric=["count"], unit="%", y=[])
    filled = table[table["count"] > 0].sort_values("confidence")
    _check(filled, columns, numeric=columns, unit="%", y=columns)
    if alt is None:
        gaps = (filled["accuracy"] - filled["confidence"]).to_numpy(dtype=float)
        gap = float(np.average(gaps, weights=filled["count"]))
        side = "above" if gap > 0 else "below"
        alt = (
            f"Reliability diagram: accuracy (%) against confidence (%) in {len(filled)} bins of "
            f"{filled['count'].sum():,.0f} images, with the diagonal of perfect calibration. "
            f"{_ends('', filled['confidence'], filled['accuracy'], '%', x_unit='%')} On average "
            f"the accuracy lies {_value(abs(gap), 'points')} {side} the confidence."
        )
    made, axes = figure(alt=alt, height=0.75 * WIDTH)
    with style():
        axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", marker="", label="perfect")
        shown = 100 * filled[columns]
        axes.plot(
            shown["confidence"], shown["accuracy"], color=PALETTE[0], marker="", label="measured"
        )
        if {"accuracy_low", "accuracy_high"} <= set(filled):
            ends = 100 * filled[["accuracy_low", "accuracy_high"]]
            axes.vlines(
                shown["confidence"], ends["accuracy_low"], ends["accuracy_high"],
                color=BLACK, linewidth=1.8,
            )  # fmt: skip
        area = 20 + 300 * filled["count"] / filled["count"].max()
        axes.scatter(shown["confidence"], shown["accuracy"], s=area, color=PALETTE[0], zorder=3)
        axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 103), ylim=(0, 103))
        axes.legend(loc="upper left", title="area: images in the bin")
    return made


def confusions(table: pd.DataFrame, *, alt: str | None = None) -> Figure:
    """The pairs of classes that a classifier confuses most, as horizontal bars.

    Args:
        table: ``Report.confused()``: the columns ``true``, ``predicted`` and ``share``, the
            proportion of the images of the class ``true`` that were taken for ``predicted``.
        alt: instead of the text composed from the data.

    Raises:
        ValueError, KeyError: as :func:`learning_curve`.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> table = pd.DataFrame(
        ...     {"true": ["husky", "pug"], "predicted": ["malamute", "boxer"], "share": [0.3, 0.1]}
        ... )
        >>> tl.plots.confusions(table)  # doctest: +NORMALIZE_WHITESPACE
        <Figure: Bar chart of the most frequent confusions, in % of the class: husky taken for
        malamute 30.0 %; pug taken for boxer 10.0 %.>
    """
    _check(table, ["true", "predicted", "share"], numeric=["share"], unit="%", y=["share"])
    names = [f"{a}\n→ {b}" for a, b in zip(table["true"], table["predicted"], strict=True)]
    if alt is None:
        texts = [
            f"{a} taken for {b} {_value(share, '%')}"
            for a, b, share in zip(table["true"], table["predicted"], table["share"], strict=True)
        ]
        alt = f"Bar chart of the most frequent confusions, in % of the class: {_listed(texts)}."
    made, axes = figure(alt=alt, height=_height(len(table), lines=2))
    with style():
        axes.barh(range(len(table)), 100 * table["share"], height=0.65, color=PALETTE[0])
        _names(axes, names)
        _figures(axes, 100 * table["share"], [_bare(share, "%") for share in table["share"]])
        axes.set(xlabel="images of the first class\ntaken for the second (%)")
    return made


def embedding(
    points: Any,
    labels: Any,
    names: Sequence[str],
    *,
    highlight: Sequence[str] | None = None,
    alt: str | None = None,
) -> Figure:
    """Examples as points in the plane, some classes in colour and the others in grey.

    Args:
        points: (n, 2) array or tensor.
        labels: (n,) integers; label i means ``names[i]``.
        names: m class names.
        highlight: up to nine of the names; None for all of them, where there are nine or fewer.
        alt: instead of the text composed from the data.

    Raises:
        ValueError: if the shapes disagree, a value is missing, or there are too many classes to
            tell apart by colour.
        KeyError: if a highlighted name is unknown.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> points, labels = torch.randn(60, 2), torch.arange(60) % 3
        >>> tl.plots.embedding(
        ...     points, labels, ["pug", "husky", "boxer"], highlight=["pug"]
        ... )  # doctest: +NORMALIZE_WHITESPACE
        <Figure: Scatter plot of 60 examples in two dimensions; in colour: pug; the other 2
        classes in grey.>
    """
    points, labels = np.asarray(points), np.asarray(labels)
    if (
        points.ndim != 2
        or points.shape[1] != 2
        or labels.shape != (len(points),)
        or not len(points)
    ):
        raise ValueError(
            f"points should have the shape (n, 2) and labels (n,), with n of 1 or more; found "
            f"{points.shape} and {labels.shape}."
        )
    if not np.isfinite(points).all():
        raise ValueError("points should be finite, found NaN or infinity among them.")
    if not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(f"labels should lie in 0..{len(names) - 1}, one for each of the names.")
    chosen = list(names if highlight is None else highlight)
    if unknown := [name for name in chosen if name not in names]:
        raise KeyError(f"there is no class {unknown[0]!r} to highlight; the first is {names[0]!r}.")
    if len(chosen) > len(PALETTE):
        raise ValueError(
            f"{len(chosen)} classes cannot be told apart by colour: highlight at most "
            f"{len(PALETTE)} of them."
        )
    if alt is None:
        others = len(set(labels.tolist())) - len(chosen)
        rest = f"; the other {others} classes in grey" if others > 0 else ""
        alt = (
            f"Scatter plot of {len(points):,} examples in two dimensions; in colour: "
            f"{', '.join(chosen)}{rest}."
        )
    made, axes = figure(alt=alt, height=0.85 * WIDTH)
    with style():
        other = ~np.isin(labels, [list(names).index(name) for name in chosen])
        axes.scatter(*points[other].T, s=5, color=PALE_GREY, linewidths=0)
        for i, name in enumerate(chosen):
            mine = points[labels == list(names).index(name)]
            axes.scatter(
                *mine.T, s=30, color=PALETTE[i], marker=MARKERS[i], label=name,
                edgecolors=BLACK, linewidths=0.5,
            )  # fmt: skip
        axes.set(xlabel="first dimension", ylabel="second dimension", xticks=[], yticks=[])
        made.legend(loc="outside lower center", ncols=2, markerscale=1.5)
    return made


def photographs(
    images: Sequence[Any], titles: Sequence[str], *, columns: int = 4, alt: str | None = None
) -> Figure:
    """Images in a grid, each with its title above.

    Args:
        images: (3, H, W) uint8 tensors or arrays, of any sizes.
        titles: one for each image.
        columns: images in a row.
        alt: instead of the text composed from the titles.

    Raises:
        ValueError: if there is no image, or their number is not that of the titles.
        TypeError: if something is not an image of 8-bit RGB.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> images = torch.randint(256, (2, 3, 40, 60), dtype=torch.uint8)
        >>> tl.plots.photographs(images, ["noise", "more noise"])
        <Figure: 2 photographs: noise; more noise.>
    """
    if not len(images) or len(images) != len(titles):
        raise ValueError(
            f"photographs needs images and a title for each, found {len(images)} images and "
            f"{len(titles)} titles."
        )
    arrays = [np.asarray(image) for image in images]
    for array, title in zip(arrays, titles, strict=True):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
            raise TypeError(
                f"the image {title!r} should be uint8 of shape (3, H, W), found {array.dtype} of "
                f"shape {array.shape}."
            )
    columns = min(columns, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    if alt is None:
        count = f"{len(arrays)} photographs" if len(arrays) > 1 else "One photograph"
        alt = f"{count}: {_listed([str(title) for title in titles], limit=24)}."
    side = WIDTH / columns
    wrapped = [textwrap.fill(str(title), round(11 * side)) for title in titles]
    lines = max(title.count("\n") for title in wrapped) + 1
    made = Figure(alt=alt, image_format="jpeg", figsize=(WIDTH, rows * (side + 0.22 * lines)))
    with style():
        for i, (array, title) in enumerate(zip(arrays, wrapped, strict=True)):
            axes = made.add_subplot(rows, columns, i + 1)
            axes.imshow(array.transpose(1, 2, 0))
            axes.set_title(title, fontsize=12)
            axes.set_axis_off()
    return made


def cards(
    probabilities: Any,
    classes: Sequence[str],
    titles: Sequence[str],
    *,
    right: Sequence[int] | None = None,
    images: Sequence[Any] | None = None,
    top: int = 5,
    alt: str | None = None,
) -> Figure:
    """A card for each example: its title, and the classes that got most of the probability.

    Args:
        probabilities: (n, m) in 0..1, one row a card.
        classes: m names.
        titles: n, what stands above each card.
        right: (n,) the true class of each; its bar has the stronger colour and a tick.
        images: n pictures to show beside the bars, as :func:`photographs` takes them.
        top: bars on a card.
        alt: instead of the text composed from the data.

    Raises:
        ValueError: if there is no card, or the lengths or the probabilities do not fit.

    Example:
        >>> import tlhelpers as tl
        >>> p = [[0.7, 0.2, 0.1], [0.4, 0.1, 0.5]]
        >>> tl.plots.cards(
        ...     p, ["pug", "husky", "boxer"], ["Rex", "Fido"], right=[0, 0], top=2
        ... )  # doctest: +NORMALIZE_WHITESPACE
        <Figure: 2 cards with bars of probability. Rex: pug 70 %; husky 20 %. Fido: boxer 50
        %; pug 40 %.>
    """
    p = np.asarray(probabilities, dtype=float)
    lengths = {len(titles), *(len(part) for part in (right, images) if part is not None)}
    if p.ndim != 2 or not p.size or p.shape[1] != len(classes) or lengths != {len(p)}:
        raise ValueError(
            f"cards needs probabilities (n, m) for m classes, and n titles, right classes and "
            f"images; found {p.shape}, {len(classes)} classes and lengths {sorted(lengths)}."
        )
    if not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"probabilities lie in 0..1, found {p.min():g} to {p.max():g}.")
    top = min(top, p.shape[1])
    chosen = np.argsort(-p, axis=1, kind="stable")[:, :top]
    if alt is None:
        texts = []
        for title, row, order in zip(titles, p, chosen, strict=True):
            shown = _listed([f"{classes[c]} {100 * row[c]:.0f} %" for c in order])
            texts.append(f"{title}: {shown}.")
        alt = f"{len(p)} cards with bars of probability. " + " ".join(texts)
    room = 0.32 * top + 0.55  # inches for a card
    made = Figure(
        alt=alt,
        image_format="png" if images is None else "jpeg",
        figsize=(WIDTH, room * len(p)),
    )
    with style():
        grid = made.add_gridspec(
            len(p), 1 if images is None else 2, width_ratios=None if images is None else (1, 2.2)
        )
        for i, order in enumerate(chosen):
            if images is not None:
                beside = made.add_subplot(grid[i, 0])
                beside.imshow(np.asarray(images[i]).transpose(1, 2, 0))
                beside.set_axis_off()
            axes = made.add_subplot(grid[i, -1])
            _card(axes, p[i], order, classes, None if right is None else int(right[i]))
            axes.set_title(str(titles[i]), loc="left", fontsize=13)
    return made


def _card(
    axes: Axes, row: np.ndarray, order: np.ndarray, classes: Sequence[str], right: int | None
) -> None:
    """Bars of probability, each with its class's name above a pale track."""
    places = range(len(order))
    colours = [PALETTE[1] if c == right else PALETTE[0] for c in order]
    axes.barh(places, [1] * len(order), height=0.8, color="#ededed")
    axes.barh(places, row[order], height=0.8, color=colours, alpha=0.55)
    for place, c in zip(places, order, strict=True):
        tick = "✓ " if c == right else ""
        axes.text(0.01, place, f"{tick}{classes[c]}", va="center", fontsize=12)
        axes.text(0.99, place, f"{100 * row[c]:.0f} %", va="center", ha="right", fontsize=12)
    axes.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.5), xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def glyphs(
    rows: Mapping[str, Any], *, titles: Sequence[str] = (), alt: str | None = None
) -> Figure:
    """Small grey images in named rows, ink dark on light, each pixel a square.

    Args:
        rows: the name of each row and its images: (n, 1, h, w) or (n, h, w) floats in 0..1, ink 1
            on paper 0, such as ``{"clean": plain.x[:8], "blurred": blurred.x[:8]}``. Rows may
            differ in n.
        titles: what stands above the columns, if anything.
        alt: instead of the text composed from the names and titles.

    Raises:
        ValueError: if there is no image, the images differ in size, leave 0..1, or there are
            more titles than columns.

    Example:
        >>> import tlhelpers as tl
        >>> letters, digits = tl.datasets.glyphs(tuple("ABC"), per_class=10), tl.datasets.digits()
        >>> tl.plots.glyphs({"printed": letters.train.x[:8], "written": digits.train.x[:8]})
        <Figure: Images of 16 × 16 pixels in rows: printed (8); written (8).>
    """
    arrays = {name: np.asarray(images, dtype=float) for name, images in rows.items()}
    for name, images in arrays.items():
        if images.ndim == 4 and images.shape[1] == 1:
            arrays[name] = images = images[:, 0]
        if images.ndim != 3 or not images.size:
            raise ValueError(
                f"the row {name!r} should hold images of shape (n, 1, h, w) or (n, h, w), found "
                f"{images.shape}."
            )
        if images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"the row {name!r} should hold values in 0..1, found {images.min():g} to "
                f"{images.max():g}."
            )
    columns = max((len(images) for images in arrays.values()), default=0)
    sizes = {images.shape[1:] for images in arrays.values()}
    if len(sizes) != 1 or len(titles) > columns:
        raise ValueError(
            f"glyphs needs images of one size in its rows, and no more titles than columns; found "
            f"{len(arrays)} rows with the sizes {sorted(sizes)}, {columns} columns and "
            f"{len(titles)} titles."
        )
    height, width = sizes.pop()
    if alt is None:
        headed = f" The columns: {_listed(list(titles))}." if titles else ""
        counts = [f"{name} ({len(images)})" for name, images in arrays.items()]
        alt = f"Images of {width} × {height} pixels in rows: {_listed(counts, 24)}.{headed}"
    gap = max(1, round(0.08 * width))
    step = (height + gap, width + gap)
    sheet = np.zeros((len(arrays) * step[0] - gap, columns * step[1] - gap))
    for r, images in enumerate(arrays.values()):
        for c, image in enumerate(images):
            sheet[r * step[0] : r * step[0] + height, c * step[1] : c * step[1] + width] = image
    names = max(len(name) for name in arrays)
    room = WIDTH - 0.1 * names  # inches for the images, beside the names
    made, axes = figure(alt=alt, height=room * sheet.shape[0] / sheet.shape[1] + 0.4)
    with style():
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        middles = [(height - 1) / 2 + step[0] * r for r in range(len(arrays))]
        axes.set_yticks(middles, list(arrays))
        axes.xaxis.tick_top()
        places = [(width - 1) / 2 + step[1] * c for c in range(len(titles))]
        axes.set_xticks(places, list(titles))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for r, images in enumerate(arrays.values()):
            for c in range(len(images)):
                corner = (c * step[1] - 0.5, r * step[0] - 0.5)
                axes.add_patch(
                    Rectangle(corner, width, height, fill=False, edgecolor=PALE_GREY, linewidth=0.5)
                )
        axes.spines[:].set_visible(False)
    return made


def _check(
    frame: pd.DataFrame, columns: list[str], *, numeric: list[str], unit: str, y: list[str]
) -> None:
    """Refuse a frame that would make an empty, misleading or broken figure.

    ``y`` names the value and, if there are three, the two ends of its interval.
    """
    if missing := [column for column in columns if column not in frame.columns]:
        raise KeyError(
            f"the frame has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}."
        )
    if frame.empty:
        raise ValueError("the frame has no rows, so there is nothing to plot.")
    for column in numeric:
        bad = ~np.isfinite(frame[column].to_numpy(dtype=float))
        if bad.any():
            raise ValueError(
                f"the column {column!r} should hold finite numbers, but {bad.sum()} of "
                f"{len(bad)} rows hold NaN or infinity. Drop or repair these rows."
            )
    if unit == "%":
        for column in y:
            low, high = frame[column].min(), frame[column].max()
            if low < 0 or high > 1:
                raise ValueError(
                    f"with the unit '%' the column {column!r} should hold proportions in 0..1, "
                    f"found {low:g} to {high:g}. Divide by 100, or name another unit."
                )
    if len(y) == 3:
        value, below, above = (frame[column].to_numpy(dtype=float) for column in y)
        if (outside := (below > value) | (value > above)).any():
            raise ValueError(
                f"{y[0]!r} should lie between {y[1]!r} and {y[2]!r}, but in {outside.sum()} of "
                f"{len(outside)} rows it does not."
            )


def _series(frame: pd.DataFrame, hue: str | None, x: str) -> dict[str, pd.DataFrame]:
    """The rows of each line, sorted along x; a single line has the empty name."""
    groups = frame.groupby(hue, sort=False) if hue else [("", frame)]
    series = {str(name): rows.sort_values(x) for name, rows in groups}
    for name, rows in series.items():
        if rows[x].duplicated().any():
            raise ValueError(
                f"each {x!r} should stand in one row{f' of {name!r}' if name else ''}, but some "
                f"stand in several. Average them first, or name the column that differs as hue."
            )
    if len(series) > len(PALETTE):
        raise ValueError(f"{len(series)} lines cannot be told apart; plot at most {len(PALETTE)}.")
    return series


_HUNDREDTHS = ("%", "points")  # proportions and their differences, kept in 0..1


def _scaled(values: pd.DataFrame, unit: str) -> pd.DataFrame:
    return 100 * values if unit in _HUNDREDTHS else values


def _with_unit(label: str, unit: str) -> str:
    return f"{label} ({unit})" if unit else label


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _bare(value: float, unit: str) -> str:
    """The value as a reader sees it, without its unit; points are differences of per cents."""
    return f"{100 * value:.1f}" if unit in _HUNDREDTHS else _number(value)


def _value(value: float, unit: str) -> str:
    return f"{_bare(value, unit)} {unit}".strip()


def _ends(name: str, x: pd.Series, y: pd.Series, unit: str, *, x_unit: str = "") -> str:
    """A sentence: where a line starts and where it ends."""
    first, last = (f"{_value(y.iloc[i], unit)} at {_value(x.iloc[i], x_unit)}" for i in (0, -1))
    course = f"{first} only" if len(x) == 1 else f"from {first} to {last}"
    return f"{name}: {course}." if name else f"{course[0].upper()}{course[1:]}."


def _listed(texts: list[str], limit: int = 12) -> str:
    """All of a short list; the beginning of a long one, with the number left out."""
    rest = len(texts) - limit
    return "; ".join(texts[:limit]) + (f"; and {rest} more" if rest > 0 else "")


def _height(count: int, *, lines: int = 1) -> float:
    """The height in inches of a chart with so many horizontal bars, named in so many lines."""
    return 0.9 + (0.2 + 0.22 * lines) * count


def _names(axes: Axes, names: list[str]) -> None:
    """Name the horizontal bars, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _figures(axes: Axes, tips: Any, texts: list[str]) -> None:
    """Write each bar's value beside its end."""
    for i, (tip, text) in enumerate(zip(tips, texts, strict=True)):
        axes.annotate(text, (tip, i), xytext=(6, 0), textcoords="offset points", va="center")
    axes.margins(x=0.18)


def _ticks(axes: Axes, values: pd.Series) -> None:
    """Ticks at the values measured, and nowhere else."""
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values.tolist()))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))

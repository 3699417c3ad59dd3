"""Figures to play with: controls where a kernel runs, every figure at hand where none does.

:func:`explore` takes a function that draws a figure for a setting, and the values that each part of
the setting may have. In a notebook it calls the function whenever a control is moved. On a built
page nothing can call it, so the page holds the figure of every setting, and a few lines of script
that show the one asked for; the page loads nothing from elsewhere. The first figure is there whole,
of each other one just what differs from it. Without script, and on paper, the first figure stays.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import inspect
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from tlhelpers.plots import CSS_PIXELS, Figure

LARGEST = 300_000  # bytes of one explorer on a page

STATIC_VARIABLE = "TLHELPERS_STATIC"
"""The environment variable that asks for the page's form also where a kernel runs.

The build sets it: it runs a kernel, and its readers have none."""

Drawing = tuple[Figure, pd.DataFrame]
Setting = tuple[Any, ...]


@dataclass(frozen=True, repr=False)
class Explorer:
    """A figure with controls; it shows itself as the last line of a cell.

    Attributes:
        function: draws the figure of a setting, and returns it with its numbers.
        values: what each argument of the function may be, by its name.
        start: the index of the value that each argument begins with.
    """

    function: Callable[..., Drawing]
    values: Mapping[str, tuple[Any, ...]]
    start: tuple[int, ...]

    def draw(self, indices: Sequence[int]) -> Drawing:
        """The figure and the numbers where the arguments take the values at these indices.

        Raises:
            TypeError: if the function returns anything but a figure and a frame.
        """
        chosen = zip(self.values.items(), indices, strict=True)
        drawn = self.function(**{name: values[i] for (name, values), i in chosen})
        figure, table = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (None, None)
        if not (isinstance(figure, Figure) and isinstance(table, pd.DataFrame)):
            raise TypeError(
                f"{self.function.__name__} should return a figure of tl.plots and a DataFrame of "
                f"the numbers it shows, found {type(drawn).__name__}."
            )
        return figure, table

    def html(self) -> str:
        """The page's form: every figure, controls, the numbers under a fold, and the script.

        Raises:
            ValueError: if it is larger than a page should carry.
        """
        sizes = [range(len(values)) for values in self.values.values()]
        drawn = {indices: self.draw(indices) for indices in itertools.product(*sizes)}
        first = drawn[self.start][0].pixels()
        frames = [self._frame(indices, figure, first) for indices, (figure, _) in drawn.items()]
        name = "tl-" + hashlib.sha256("".join(frames).encode()).hexdigest()[:12]
        made = _PAGE.format(
            name=name,
            controls="".join(self._controls(name)),
            frames="".join(frames),
            table=self._table({indices: table for indices, (_, table) in drawn.items()}),
        )
        if len(made.encode()) > LARGEST:
            raise ValueError(
                f"this explorer has {len(drawn)} figures and {len(made.encode()):,} bytes; a page "
                f"should not carry more than {LARGEST:,} for one. Leave out some of the values, or "
                f"draw less."
            )
        return made

    def live(self) -> Any:
        """The notebook's form: widgets of ipywidgets, version 7 or 8, that call the function."""
        import ipywidgets
        from IPython.display import display

        def show(**setting: Any) -> None:
            display(self.draw([setting[name] for name in self.values])[0])

        controls = {}
        for (name, values), start in zip(self.values.items(), self.start, strict=True):
            # The indices are what is chosen: values need not be comparable or different.
            options = [(_said(value), i) for i, value in enumerate(values)]
            common = {"options": options, "value": start, "description": _words(name)}
            if _is_scale(values):
                controls[name] = ipywidgets.SelectionSlider(continuous_update=False, **common)
            else:
                controls[name] = ipywidgets.ToggleButtons(**common)
        return ipywidgets.interactive(show, **controls)

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.live() if _is_live() else HTML(self.html()))

    def __repr__(self) -> str:
        parts = (
            f"{_words(name)}: {', '.join(map(_said, values))}"
            for name, values in self.values.items()
        )
        return f"<Explorer of {'; '.join(parts)}>"

    def _frame(self, indices: tuple[int, ...], figure: Figure, first: Image.Image) -> str:
        width, height = (round(inches * CSS_PIXELS) for inches in figure.get_size_inches())
        if indices == self.start:
            hidden, of, image, ground = "", "tl-figure", first, "white"
        else:
            hidden, of, ground = " hidden", "tl-figure tl-change", _FIRST
            image = _changes(figure.pixels(), first)
        return (
            f'<div class="tl-frame" data-at="{",".join(map(str, indices))}"{hidden}>'
            f'<img class="{of}" alt="{html.escape(figure.alt)}" width="{width}" '
            f'height="{height}" style="max-width: 100%; height: auto; background: {ground}" '
            f'src="data:image/webp;base64,{_webp(image)}"></div>'
        )

    def _controls(self, page: str) -> Iterator[str]:
        for (name, values), start in zip(self.values.items(), self.start, strict=True):
            said = [_said(value) for value in values]
            label, at = html.escape(_words(name)), f"{page}-{name}"
            if _is_scale(values):
                yield (
                    f'<p><label for="{at}">{label}: <output>{html.escape(said[start])}</output>'
                    f'</label><br><input type="range" id="{at}" min="0" max="{len(values) - 1}" '
                    f'step="1" value="{start}" aria-valuetext="{html.escape(said[start])}" '
                    f'autocomplete="off" '
                    f"data-said='{html.escape(json.dumps(said))}' "
                    f'style="width: min(100%, 24rem)"></p>'
                )
                continue
            buttons = "".join(
                f'<label style="display: inline-block; margin-right: 1em">'
                f'<input type="radio" name="{at}" value="{i}" autocomplete="off"'
                f"{' checked' if i == start else ''}> {html.escape(text)}</label>"
                for i, text in enumerate(said)
            )
            yield f"<fieldset><legend>{label}</legend>{buttons}</fieldset>"

    def _table(self, tables: Mapping[tuple[int, ...], pd.DataFrame]) -> str:
        parts = []
        for indices, table in tables.items():
            part = table.reset_index(drop=True)
            chosen = zip(self.values.items(), indices, strict=True)
            for position, ((name, values), i) in enumerate(chosen):
                part.insert(position, _words(name), _said(values[i]), allow_duplicates=True)
            parts.append(part)
        return pd.concat(parts).to_html(index=False, border=0, float_format="{:.3g}".format)


def explore(function: Callable[..., Drawing], /, **values: Sequence[Any]) -> Explorer:
    """A figure that follows the reader's choice of each value.

    Numbers get a slider, anything else buttons. It begins with the defaults of the function where
    the values have them, else with the first values.

    Args:
        function: takes the arguments named in ``values``, by name, and returns a figure of
            :mod:`tlhelpers.plots`, with its alternative text, and a frame of the numbers shown.
        values: for each argument the values to choose from. On a page every combination is
            drawn, so that a dozen or two of them are a good number.

    Raises:
        TypeError: if the function has no argument of a name.
        ValueError: if there is no argument to choose, or only one value for it.

    >>> from tlhelpers import plots
    >>> def parabola(a=1):
    ...     frame = pd.DataFrame({"x": [1, 2, 3], "mean": [a, 4 * a, 9 * a]})
    ...     drawn = plots.learning_curve(
    ...         frame, x="x", low=None, high=None, xlabel="x", ylabel="y", unit=""
    ...     )
    ...     return drawn, frame
    >>> explore(parabola, a=[1, 2, 3])
    <Explorer of a: 1, 2, 3>
    """
    if not values:
        raise ValueError("name at least one argument of the function, with the values it may have.")
    parameters = inspect.signature(function).parameters
    chosen = {name: tuple(some) for name, some in values.items()}
    for name, some in chosen.items():
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        if name not in parameters and not takes_all:
            raise TypeError(
                f"{function.__name__} has no argument {name!r}; it has {', '.join(parameters)}."
            )
        if len(some) < 2:
            raise ValueError(f"{name} needs two values or more to choose from, found {list(some)}.")
    start = []
    for name, some in chosen.items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        start.append(some.index(default) if default in some else 0)
    return Explorer(function, chosen, tuple(start))


def _is_live() -> bool:
    """Whether a kernel runs whose reader can move a widget."""
    if os.environ.get(STATIC_VARIABLE) or importlib.util.find_spec("ipywidgets") is None:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")


def _is_scale(values: Sequence[Any]) -> bool:
    return all(isinstance(v, Real) and not isinstance(v, bool) for v in values)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _changes(image: Image.Image, first: Image.Image) -> Image.Image:
    """What differs from the first image, and nothing elsewhere; all of it if the sizes differ.

    Whole tiles, and the tiles around them: where a browser scales both images, their pixels mix
    with neighbours, and at the seam these are then the same in both.
    """
    if image.size != first.size:
        return image
    pixels = np.asarray(image)
    differs = (pixels != np.asarray(first)).any(axis=2)
    height, width = differs.shape
    padded = np.pad(differs, ((0, -height % _TILE), (0, -width % _TILE)))
    tiles = padded.reshape(-(-height // _TILE), _TILE, -1, _TILE).any(axis=(1, 3))
    tiles = ndimage.binary_dilation(tiles, np.ones((3, 3)))
    shown = tiles.repeat(_TILE, axis=0).repeat(_TILE, axis=1)[:height, :width]
    changes = np.zeros((height, width, 4), np.uint8)
    changes[shown] = np.dstack([pixels, np.full_like(pixels[..., :1], 255)])[shown]
    return Image.fromarray(changes)


def _webp(image: Image.Image) -> str:
    """An image as base64, in the smallest lossless format that every browser shows."""
    pixels = np.array(image.convert("RGBA"))
    drawn = pixels[..., 3] > 0
    if drawn.any():
        # WebP packs 256 colours best, and the clear places take one.
        colours = Image.fromarray(pixels[drawn][None, :, :3].copy())
        few = colours.quantize(255, dither=Image.Dither.NONE)
        pixels[drawn, :3] = np.asarray(few.convert("RGB"))[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


_TILE = 8  # pixels

# Below the changes lies the first figure. Its place is the image's own, without the edge that the
# dark theme puts around it; paper leaves backgrounds out unless asked for them.
_FIRST = (
    "white var(--tl-first) 0 0 / 100% 100% no-repeat content-box border-box; "
    "print-color-adjust: exact"
)

# A browser that remembered a control's place (hence "autocomplete") would show another figure with
# it. A reader who hears the page is told what the new figure shows; without script the first figure
# and all the numbers stay.
_PAGE = """\
<div class="tl-explorer" id="{name}">
<div class="tl-controls">{controls}</div>
{frames}
<p class="tl-heard" aria-live="polite" style="position: absolute; width: 1px; height: 1px;
overflow: hidden; clip-path: inset(50%)"></p>
<noscript><p>The controls need JavaScript; all of their numbers are in the table.</p></noscript>
<details><summary>All the numbers, as a table</summary>
<div style="overflow-x: auto">{table}</div></details>
<script>
(() => {{
  const explorer = document.getElementById("{name}");
  const heard = explorer.querySelector(".tl-heard");
  const first = explorer.querySelector(".tl-frame:not([hidden]) img");
  explorer.style.setProperty("--tl-first", `url(${{first.src}})`);
  explorer.querySelector(".tl-controls").addEventListener("input", () => {{
    const at = [];
    for (const control of explorer.querySelectorAll("input")) {{
      if (control.type === "range") {{
        const said = JSON.parse(control.dataset.said)[control.value];
        control.setAttribute("aria-valuetext", said);
        control.parentElement.querySelector("output").textContent = said;
        at.push(control.value);
      }} else if (control.checked) at.push(control.value);
    }}
    for (const frame of explorer.querySelectorAll(".tl-frame")) {{
      frame.hidden = frame.dataset.at !== at.join();
      if (!frame.hidden) heard.textContent = frame.firstElementChild.alt;
    }}
  }});
}})();
</script>
</div>
"""

"""The page *Try it yourself* in a browser: its network, its pen, its controls, what it says.

Most tests open a small page that is made here, of the same parts as the book's.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from test_book import CHROMIUM, OVERFLOW, PHONE, serve
from test_chapters import CHAPTERS, ROOT

from tlhelpers import characters, datasets, fewshot, models

sys.path.insert(0, str(ROOT / "tools"))

import weights  # a script's folder, not a package

ASSETS = ROOT / "assets" / "try-it"
SCRIPTS = sorted(ASSETS.glob("*.js"))
TEXT = (CHAPTERS / "try-it.md").read_text("utf-8")
FRAME = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Try it</title></head>
<body><main class="bd-article">{}</main></body></html>"""


@pytest.fixture(scope="module")
def browser(chromium_path: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM)
        yield launched
        launched.close()


def make_site(folder: Path) -> Path:
    """The page with nothing of the theme around it, where the book has it; its path."""
    shutil.copytree(ASSETS, folder / "_static" / "try-it")
    weights.write(folder / "_static")
    page = folder / "chapters" / "try-it.html"
    page.parent.mkdir()
    parts = [(ASSETS / name).read_text("utf-8") for name in ("try-it.html", "trials.html")]
    page.write_text(FRAME.format("\n".join(parts)), "utf-8")
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("site") / "below" / "a-path")


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Page]:
    """The page as it opens from a file that was saved to disk."""
    opened = browser.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(site.as_uri())
    yield opened
    opened.close()
    assert not errors


@pytest.fixture(scope="module")
def engine(browser: Browser, site: Path) -> Iterator[Page]:
    """A page with the network as ``net``, for what needs no controls."""
    opened = browser.new_page()
    opened.goto(site.as_uri())
    opened.evaluate("() => { window.net = TryIt.network.load(TryIt.weights); }")
    yield opened
    opened.close()


def to_browser(values: Any) -> str:
    """Numbers as base64 of float32: a list of a hundred thousand is slow to pass."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")


# --- the network --------------------------------------------------------------------------------

FEATURES = """([file, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
  const images = new Float32Array(bytes.buffer);
  const network = TryIt.network.load(file);
  return Array.from({length: images.length / 256},
    (_, i) => Array.from(network.features(images.subarray(256 * i, 256 * (i + 1)))));
}"""


def images_to_compare() -> torch.Tensor:
    """Fifty test images of handwritten digits, and fifty printed letters of another alphabet."""
    digits = datasets.digits()
    printed = datasets.glyphs(
        "georgian", per_class=2, shift=characters.MILD, validation=0, test=0, seed=1
    )
    rows = np.flatnonzero(digits.split == "test")[:50]
    return torch.cat([digits.x[rows], printed.x[:50]])


@pytest.mark.parametrize("name", ["letters", "zoo/narrow"])
def test_features_are_those_of_pytorch(engine: Page, name: str) -> None:
    images = images_to_compare()
    assert images.shape == (100, 1, 16, 16)
    network = models.small_resnet(weights=name).eval()
    with torch.no_grad():
        wanted = network.features(images).numpy()
    file = (weights.WEIGHTS.parent / f"{name}.safetensors").read_bytes()
    found = engine.evaluate(FEATURES, [base64.b64encode(file).decode(), to_browser(images)])
    np.testing.assert_allclose(np.array(found), wanted, rtol=0, atol=1e-4)
    assert wanted.std(0).max() > 0.1, "features that never change would agree with anything"


def test_the_script_holds_the_file_that_the_package_ships(engine: Page) -> None:
    found = base64.b64decode(engine.evaluate("TryIt.weights"))
    assert found == weights.WEIGHTS.read_bytes()


# --- the pen ------------------------------------------------------------------------------------


def draw(engine: Page, drawing: list[list[list[float]]], **options: float) -> np.ndarray:
    found = engine.evaluate("([d, o]) => Array.from(TryIt.strokes.image(d, o))", [drawing, options])
    return np.array(found).reshape(16, 16)


def test_ink_is_where_a_pen_of_that_width_was(engine: Page) -> None:
    square = [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]
    pen, length = 3, 13
    found = draw(engine, square, pen=pen, length=length)
    # Counted on a hundred times as many points: those within half a pen of the square's sides.
    at = (np.arange(160) + 0.5) / 10 - 8
    x, y = np.meshgrid(at, at)
    half = (length - pen) / 2
    outside = np.hypot(np.maximum(abs(x) - half, 0), np.maximum(abs(y) - half, 0))
    inside = np.minimum(half - abs(x), half - abs(y)).clip(min=0)
    ink = (np.maximum(outside, inside) <= pen / 2).reshape(16, 10, 16, 10).mean((1, 3))
    np.testing.assert_allclose(found, ink, atol=0.13)  # a pixel is four subpixels
    assert abs(found.mean() - ink.mean()) < 0.01


def test_size_and_place_of_a_drawing_do_not_matter(engine: Page) -> None:
    drawing = engine.evaluate("TryIt.strokes.sample('key', 3)")
    small = [[[0.8 + x / 10, 0.1 + y / 10] for x, y in stroke] for stroke in drawing]
    np.testing.assert_allclose(draw(engine, small), draw(engine, drawing), atol=1e-9)


def test_a_dot_stays_a_dot(engine: Page) -> None:
    for tremor in (0.0, 0.003):
        image = draw(engine, [[[0.3, 0.3], [0.3 + tremor, 0.3]]])
        assert image[4:12, 4:12].sum() == pytest.approx(image.sum())
        assert image.sum() > 1


def test_samples_stay_on_the_paper_and_change_with_the_hand(engine: Page) -> None:
    for name in engine.evaluate("TryIt.strokes.names"):
        hands = [engine.evaluate("a => TryIt.strokes.sample(...a)", [name, h]) for h in range(4)]
        points = np.array([point for hand in hands for stroke in hand for point in stroke])
        assert points.min() > 0.05
        assert points.max() < 0.95
        again = engine.evaluate("a => TryIt.strokes.sample(...a)", [name, 3])
        assert again == hands[3] != hands[2]


def skeletons(alphabet: str, fonts: tuple[str, ...]) -> list[list[Any]]:
    """Each letter of an alphabet, in each font, as the strokes along the middle of its lines."""
    return [[strokes_of(font, c) for font in fonts] for c in characters.ALPHABETS[alphabet]]


def strokes_of(font: str, character: str, side: int = 48) -> list[Any]:
    on = {(int(y), int(x)) for y, x in np.argwhere(thinned(characters.mask(font, character, side)))}
    pairs = [
        [[x, y], [x + dx, y + dy]]
        for y, x in sorted(on)
        for dx, dy in ((1, 0), (0, 1), (1, 1), (-1, 1))
        if (y + dy, x + dx) in on
    ]
    linked = {(y, x) for pair in pairs for x, y in pair}
    return pairs + [[[x, y]] for y, x in sorted(on - linked)]


def thinned(mask: torch.Tensor) -> np.ndarray:
    """The lines of a picture, one pixel wide (Zhang and Suen 1984)."""
    ink = np.pad((mask.numpy() > 127).astype(int), 1)
    before = -1
    while before != ink.sum():
        before = ink.sum()
        for first in (True, False):
            # The eight neighbours, clockwise from the one above.
            steps = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ring = [np.roll(ink, step, (0, 1)) for step in steps]
            up, right, down, left = ring[::2]
            count = sum(ring)
            starts = sum((a < b) for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
            corner = right * down * (up | left) if first else up * left * (right | down)
            ink[(ink == 1) & (count >= 2) & (count <= 6) & (starts == 1) & (corner == 0)] = 0
    return ink[1:-1, 1:-1]


HANDS = """([letters, options]) => {
  const {image, turned, randomness} = TryIt.strokes;
  const random = randomness(7);
  return letters.map(hands => hands.map(drawing => {
    const change = {width: 1 + 0.2 * random(), lean: 0.2 * random(), degrees: 10 * random()};
    return Array.from(net.features(image(turned(drawing, change), options)));
  }));
}"""


def one_shot(features: np.ndarray, count: int = 3000) -> np.ndarray:
    """(count, 5) squared distances of 5-way 1-shot episodes, the right class first."""
    generator = np.random.default_rng(3)
    letters, hands, _ = features.shape
    classes = generator.random((count, letters)).argsort(1)[:, :5]
    query, shown = generator.random((count, hands)).argsort(1)[:, :2].T
    support = features[classes, shown[:, None]]
    return ((support - features[classes[:, 0], query][:, None]) ** 2).sum(2)


FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")


def accuracy(distances: np.ndarray) -> float:
    return float((distances.argmin(1) == 0).mean())


def test_thicker_strokes_and_full_pictures_do_worse(engine: Page) -> None:
    drawn = skeletons("armenian_lower", FONTS)[::2]

    def right(**options: float) -> float:
        return accuracy(one_shot(np.array(engine.evaluate(HANDS, [drawn, options]))))

    chosen = right()
    assert chosen > right(pen=3.0)
    assert chosen > right(length=16)


SURENESS = """([all, temperature]) => all.map(
  distances => Math.max(...TryIt.prototypes.softmax(distances, temperature ?? undefined)))"""


def test_letters_never_seen_are_told_apart_as_often_as_the_page_is_sure(engine: Page) -> None:
    drawn = skeletons("georgian", FONTS)  # which decided nothing
    distances = one_shot(np.array(engine.evaluate(HANDS, [drawn, {}])))
    found = accuracy(distances)
    sure, bare = (
        np.mean(engine.evaluate(SURENESS, [distances.tolist(), temperature]))
        for temperature in (None, 1)
    )
    assert found > 0.85
    assert abs(sure - found) < 0.04
    assert bare > 0.97, "without a temperature it is sure of nearly everything"


# --- what the page says about trying --------------------------------------------------------------


def test_what_the_page_tells_to_expect_is_what_it_measures(page: Page) -> None:
    page.get_by_role("button", name="Measure it").click()
    page.get_by_role("button", name="Measured").wait_for(timeout=120_000)
    shown = page.locator("#try-it-trials tbody td:nth-of-type(1)").all_inner_texts()
    right = [float(re.fullmatch(r"(\d+\.\d) %", text)[1]) for text in shown]  # type: ignore[index]
    one, five, wrong, tiny, turned, unlike, alike, alike_five = right
    assert five > one + 1, "more examples bring more right answers"
    assert 0 <= five - wrong < (five - one) / 2, "a bad one of five costs less than four bring"
    assert tiny == one, "size does not matter"
    assert turned < one - 30, "a turn does"
    assert alike < unlike - 5, "letters that look alike are confused more often"
    assert alike > 60, "one example is often enough"
    assert alike_five > alike + 5, "and more help"
    intervals = page.locator("#try-it-trials tbody td:nth-of-type(2)").all_inner_texts()
    for value, interval in zip(right, intervals, strict=True):
        assert interval == "–" or min(ends := numbers(interval)) <= value <= max(ends)
    assert intervals.count("–") == 3


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+\.\d+", text)]


def test_the_interval_over_letters_is_that_of_the_package(engine: Page) -> None:
    generator = np.random.default_rng(0)
    classes = generator.random((500, 9)).argsort(1)[:, :5]
    right = generator.random(500) < 0.5 + 0.05 * classes[:, 0]
    wanted = fewshot.Result(
        name="", pool="", class_names=tuple("ABCDEFGHI"), shots=1, queries=1, transductive=False,
        correct=right[:, None] * np.ones(5), classes=classes, digest="",
    ).over_classes  # fmt: skip
    questions = [
        {"letters": letters, "isRight": bool(is_right)}
        for letters, is_right in zip(classes.tolist(), right, strict=True)
    ]
    found = engine.evaluate("q => TryIt.trial.estimate(q)", questions)
    ends = [wanted.value, wanted.low, wanted.high]
    assert [found["accuracy"], found["low"], found["high"]] == pytest.approx(ends, abs=1e-4)


def test_a_bad_only_example_makes_a_letter_another_one(engine: Page) -> None:
    found = engine.evaluate("""() => {
      const {image, sample} = TryIt.strokes;
      const of = (name, hand) => net.features(image(sample(name, hand)));
      const good = [2, 3, 4, 5].map(hand => of("gate", hand));
      const [bad, other, asked, fish] =
        [["fish", 1], ["key", 1], ["gate", 9], ["fish", 9]].map(a => of(...a));
      const nearest = (examples, query) =>
        TryIt.prototypes.classify([examples, [other]], query).nearest;
      return {fish: nearest([bad], fish), all: nearest([bad, ...good], asked)};
    }""")
    assert found == {"fish": 0, "all": 0}


def test_prototypes_are_those_of_the_package(engine: Page) -> None:
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(1, 3, 4, 8, generator=generator)
    query = torch.randn(1, 1, 8, generator=generator)
    wanted = -fewshot.nearest_centroid(support, query)[0, 0]
    found = engine.evaluate(
        "([s, q]) => TryIt.prototypes.classify(s, q)", [support[0].tolist(), query[0, 0].tolist()]
    )
    gaps = np.subtract(found["distances"], found["distances"][0])
    np.testing.assert_allclose(gaps, wanted - wanted[0], atol=1e-4)
    assert sum(found["shares"]) == pytest.approx(1)
    assert found["nearest"] == int(wanted.argmin()) == int(np.argmax(found["shares"]))


# --- drawing --------------------------------------------------------------------------------------

HOUSE = [(0.2, 0.9), (0.2, 0.4), (0.5, 0.1), (0.8, 0.4), (0.8, 0.9), (0.2, 0.9)]
ZIGZAG = [(0.1, 0.1), (0.9, 0.3), (0.1, 0.5), (0.9, 0.7), (0.1, 0.9)]
LOOP = [(0.5 + 0.4 * np.cos(t), 0.5 + 0.25 * np.sin(2 * t)) for t in np.linspace(0.3, 6.3, 20)]
MADE_UP = {"letter A": HOUSE, "letter B": ZIGZAG, "letter C": LOOP}


def corners(page: Page, sheet: str, stroke: list[tuple[float, float]]) -> list[tuple[float, float]]:
    paper = page.get_by_role("img", name=re.compile(f"^{sheet}: (no|\\d+) stroke"))
    paper.scroll_into_view_if_needed()
    box = paper.bounding_box()
    assert box is not None
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]


def by_mouse(page: Page, sheet: str, stroke: list[tuple[float, float]]) -> None:
    first, *rest = corners(page, sheet, stroke)
    page.mouse.move(*first)
    page.mouse.down()
    for point in rest:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def by_touch(page: Page, sheet: str, stroke: list[tuple[float, float]]) -> None:
    session = page.context.new_cdp_session(page)
    points = corners(page, sheet, stroke)
    before = page.evaluate("scrollY")
    for i, (x, y) in enumerate(points):
        touch = {"type": "touchMove" if i else "touchStart", "touchPoints": [{"x": x, "y": y}]}
        session.send("Input.dispatchTouchEvent", touch)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert page.evaluate("scrollY") == before, "a finger on the paper draws and does not scroll"


EXAMPLES, NEW = "Paper for examples", "Paper for the new drawing"


def shaken(stroke: list[tuple[float, float]], seed: int) -> list[tuple[float, float]]:
    moved = np.array(stroke) + np.random.default_rng(seed).uniform(-0.05, 0.05, (len(stroke), 2))
    return [(float(x), float(y)) for x, y in moved.clip(0.02, 0.98)]


def answer(page: Page) -> str:
    return page.locator('[data-part="answer"]').inner_text()


@pytest.mark.parametrize("way", [by_mouse, by_touch])
def test_drawn_letters_are_recognised(browser: Browser, site: Path, way: Any) -> None:
    context = browser.new_context(has_touch=way is by_touch, viewport={"width": 390, "height": 700})
    page = context.new_page()
    page.goto(site.as_uri())
    page.get_by_role("button", name="Another letter").click()
    for seed, (name, stroke) in enumerate(MADE_UP.items()):
        way(page, EXAMPLES, shaken(stroke, seed))
        page.get_by_role("button", name=f"Add drawing to {name}").click()
    for seed, (name, stroke) in enumerate(MADE_UP.items()):
        way(page, NEW, shaken(stroke, 10 + seed))
        assert answer(page).startswith(f"Nearest prototype: {name},")
        page.get_by_role("button", name="Clear").nth(1).click()
    context.close()


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the control of that name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => document.activeElement.ariaLabel ?? document.activeElement.textContent"
        )
        if found == name:
            return
    raise AssertionError(f"{name!r} is not reached with the Tab key.")


def test_the_keyboard_is_enough(page: Page) -> None:
    for letter, key in (("letter A", "w"), ("letter B", "s")):  # waves, snail
        tab_to(page, f"{EXAMPLES}: a sample letter")
        page.keyboard.press(key)
        tab_to(page, "Write it")
        page.keyboard.press("Enter")
        tab_to(page, f"Add drawing to {letter}")
        page.keyboard.press("Enter")
    tab_to(page, f"{NEW}: a sample letter")
    page.keyboard.press("w")
    tab_to(page, "Write it")
    page.keyboard.press("Enter")
    assert answer(page).startswith("Nearest prototype: letter A,")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "one sees where one is"


def test_one_press_shows_what_the_page_is_for(page: Page) -> None:
    page.get_by_role("button", name="Show me").click()
    assert answer(page).startswith("Nearest prototype: fish,")
    rows = page.locator("#try-it tbody tr")
    assert rows.count() == 3
    found = [numbers(row) for row in rows.all_inner_texts()]
    assert min(found)[0] == found[1][0], "the nearest has the smallest distance"
    assert max(row[-1] for row in found) == found[1][-1], "and the largest share"
    spoken = page.locator("[aria-live=polite]").all_inner_texts()
    assert any("Nearest prototype: fish" in text for text in spoken)


def test_undo_clear_and_delete_take_back_what_was_done(page: Page) -> None:
    paper = page.get_by_role("img", name=f"{NEW}: ")
    page.get_by_role("button", name="Show me").click()
    before = answer(page)
    by_mouse(page, NEW, ZIGZAG)
    assert answer(page) != before
    page.get_by_role("button", name="Undo stroke").nth(1).click()
    assert answer(page) == before
    page.get_by_role("button", name="Delete example 1 of fish").click()
    assert not answer(page).startswith("Nearest prototype: fish")
    focused = page.evaluate("() => document.activeElement.ariaLabel")
    assert focused == "Add drawing to fish"
    page.get_by_role("button", name=focused).click()  # from the paper, where it went
    assert answer(page) == before
    page.get_by_role("button", name="Delete example 1 of fish").click()
    page.get_by_role("button", name="Clear").nth(1).click()
    assert "Now draw" in answer(page)
    assert paper.first.get_attribute("aria-label") == f"{NEW}: no strokes"
    page.get_by_role("button", name="Delete example 1 of key").click()
    assert "Two letters need an example" in answer(page)


def test_there_are_two_to_five_letters_with_five_examples_at_most(page: Page) -> None:
    another = page.get_by_role("button", name="Another letter")
    assert page.get_by_role("button", name="Remove letter A").is_disabled()
    for _ in range(3):
        another.click()
    assert another.is_disabled()
    page.get_by_role("button", name="Remove letter C").click()
    assert another.is_enabled()
    for _ in range(6):
        page.get_by_role("button", name="Write it").first.click()
        page.get_by_role("button", name="Add drawing to letter A").click()
    assert page.get_by_role("button", name="of letter A").count() == 5
    assert "5 examples, which is the most" in page.locator('[data-part="heard"]').inner_text()


def test_what_is_there_is_not_wiped_away_by_the_demonstration(page: Page) -> None:
    show = page.get_by_role("button", name="Show me")
    by_mouse(page, EXAMPLES, HOUSE)
    page.get_by_role("button", name="Add drawing to letter A").click()
    assert show.is_disabled()
    page.get_by_role("button", name="Start anew").click()
    assert show.is_enabled()
    assert page.get_by_role("button", name="Delete example").count() == 0


def test_nothing_drawn_is_no_example(page: Page) -> None:
    page.get_by_role("button", name="Add drawing to letter B").click()
    assert "Draw something" in page.locator('[data-part="heard"]').inner_text()
    assert page.get_by_role("button", name="Delete example").count() == 0


def test_a_name_is_text_whatever_it_is(page: Page) -> None:
    page.get_by_role("button", name="Show me").click()
    name = "<b>&fish"
    page.get_by_role("textbox").nth(1).fill(name)
    assert answer(page).startswith(f"Nearest prototype: {name},")
    assert page.get_by_role("button", name=f"Add drawing to {name}").is_visible()


def test_a_telephone_shows_all_of_it(page: Page) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.get_by_role("button", name="Show me").click()
    for _ in range(2):
        page.get_by_role("button", name="Another letter").click()
    assert page.evaluate(OVERFLOW) == []


# --- loading --------------------------------------------------------------------------------------


def test_nothing_is_asked_of_another_place(browser: Browser, site: Path) -> None:
    server, address = serve(site.parents[2])
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}a-path/chapters/try-it.html")
    loaded = len(asked)
    page.get_by_role("button", name="Show me").click()
    by_mouse(page, NEW, HOUSE)
    page.get_by_role("textbox").first.fill("secret")
    page.close()
    server.shutdown()
    server.server_close()
    assert all(url.startswith(address) for url in asked)
    assert not [url for url in asked[loaded:] if "favicon" not in url], "and nothing is sent later"


def test_the_scripts_know_no_way_out() -> None:
    text = "\n".join(path.read_text("utf-8") for path in SCRIPTS)
    ways = r"fetch|XMLHttpRequest|WebSocket|sendBeacon|EventSource|import\(|https?:|Storage|cookie"
    assert re.findall(ways, text) == []


def test_it_is_as_small_as_it_says(tmp_path: Path) -> None:
    (said,) = re.findall(r"less than (\d+) kB", TEXT)
    files = [path for path in ASSETS.iterdir() if path.is_file()]
    total = sum(path.stat().st_size for path in [*files, weights.write(tmp_path)])
    assert total / 1000 < int(said) < 4000


def lacking(folder: Path, missing: str) -> Path:
    page = make_site(folder)
    for path in (folder / "_static" / "try-it").glob(missing):
        path.unlink()
    return page


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("weights.js", "weights of the network did not arrive"), ("*.js", "files did not arrive")],
)
def test_what_did_not_load_is_said(
    browser: Browser, tmp_path: Path, missing: str, sentence: str
) -> None:
    page = browser.new_page()
    page.goto(lacking(tmp_path / "site", missing).as_uri())
    said = re.sub(r"\s+", " ", page.locator(".tl-try-missing").inner_text())
    assert sentence in said
    assert "eload the page" in said
    assert not page.locator(".tl-try-body").is_visible()
    page.close()


def test_without_scripts_a_sentence_stays(browser: Browser, site: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(site.as_uri())
    assert "needs JavaScript" in page.locator("noscript").inner_text()
    assert not page.locator("button").first.is_visible()
    page.close()


def test_the_page_of_the_book_has_both_parts() -> None:
    assert re.findall(r":file: \.\./assets/try-it/(\S+)", TEXT) == ["try-it.html", "trials.html"]

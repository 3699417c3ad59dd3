"""Pictures of characters, and sentences that are true of them.

A made-up world for learning from images and words. Each picture has five *facts*, its script, name,
weight, slant and family; a sentence mentions some of them. Since we make both, we know of every
sentence whether it is true of a picture, which combinations a network has never seen, and how much
a sentence says. Nothing of it was ever on the web.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tlhelpers import characters
from tlhelpers.characters import MASK_SCALE, Shift
from tlhelpers.runtime import Run
from tlhelpers.splits import PARTS, Dataset

SCRIPTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Latin": dict(zip("DFGJLNQRSW", "DFGJLNQRSW", strict=True)),
        "Greek": {
            "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "theta": "θ",
            "lambda": "λ", "xi": "ξ", "pi": "π", "psi": "ψ", "omega": "ω",
        },
        "Cyrillic": {
            "be": "Б", "ghe": "Г", "de": "Д", "zhe": "Ж", "ii": "И",
            "el": "Л", "ef": "Ф", "sha": "Ш", "yu": "Ю", "ya": "Я",
        },
        "digit": {
            "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
            "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
        },
    }
)  # fmt: skip
"""The characters by script and name. No two of them look alike in any font; Latin A, Greek Alpha
and Cyrillic А, which do, are not among them, since no picture tells which name is right."""

FACES: tuple[tuple[str, str, str, str], ...] = tuple(
    (f"{font}{face}", weight, slant, family)
    for font, family, leaning in (
        ("DejaVu Sans", "sans", "Oblique"),
        ("DejaVu Sans Mono", "sans", "Oblique"),
        ("DejaVu Serif", "serif", "Italic"),
        ("STIXGeneral", "serif", "Italic"),
    )
    for face, weight, slant in (
        ("", "regular", "upright"),
        (" Bold", "bold", "upright"),
        (f" {leaning}", "regular", "italic"),
        (f" Bold {leaning}", "bold", "italic"),
    )
)
"""Sixteen fonts, with the weight, slant and family of each."""

FACTS = ("script", "name", "weight", "slant", "family")
"""What a picture shows and a sentence may mention."""

VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "script": tuple(SCRIPTS),
        "name": tuple(name for names in SCRIPTS.values() for name in names),
        "weight": ("regular", "bold"),
        "slant": ("upright", "italic"),
        "family": ("sans", "serif"),
    }
)
"""The words for each fact. A fact is kept as a position in its tuple, and as −1 where a sentence
does not mention it."""

SCRIPT, NAME, WEIGHT, SLANT, FAMILY = range(5)
STYLES = ("regular upright", "bold upright", "regular italic", "bold italic")
"""Weight and slant together."""

MENTIONED = (0.5, 0.8, 0.5, 0.5, 0.25)
"""How often a caption mentions each of the :data:`FACTS`."""

TEMPLATES = (
    "a {weight} {slant} {family} {script} {name}",
    "the {script} {name} in {weight} {slant} {family} type",
    "this picture shows {script} {name} , {slant} , {weight} , {family}",
    "{family} {weight} {slant} {script} {name}",
)
"""How captions are worded; what is not mentioned is left out, and a character without a name is a
"character"."""

VARIETY = Shift(
    stroke=(-0.3, 0.3), scale=(0.8, 1.05), aspect=(0.8, 1.1), shear=0.05, rotation=6, translate=1.0,
    elastic=0.8, resolution=(8, 16), blur=(0.0, 0.6),
)  # fmt: skip
"""The variety of the pictures of one glyph, less in stroke and shear than bold differs from regular
and italic from upright, so that a picture still shows both."""


# --- glyphs -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Glyphs:
    """Every character in every font; make them with :func:`glyphs`.

    Attributes:
        facts: (g, 5) int64, the facts of each, see :data:`VALUES`.
        masks: (g, side, side) uint8, each as a large clean picture.
        fonts: g names.
    """

    facts: Tensor
    masks: Tensor
    fonts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.facts)

    def __repr__(self) -> str:
        names, cells = (len(part.unique()) for part in (self.facts[:, NAME], cells_of(self.facts)))
        return f"Glyphs: {len(self)}, of {names} characters, in {cells} cells of script and style"


@functools.cache
def glyphs() -> Glyphs:
    """The 40 characters of :data:`SCRIPTS` in the 16 fonts of :data:`FACES`.

    Raises:
        RuntimeError: if some font draws two of the characters with one glyph.

    Example:
        >>> import tlhelpers as tl
        >>> tl.captions.glyphs()
        Glyphs: 640, of 40 characters, in 16 cells of script and style
    """
    letters = [(s, name, sign) for s, of in SCRIPTS.items() for name, sign in of.items()]
    if twice := [g for g in characters.look_alikes(sign for *_, sign in letters) if len(g) > 1]:
        raise RuntimeError(f"{' and '.join(twice[0])} look alike in some font; leave out one.")
    facts, masks, fonts = [], [], []
    for (script, name, sign), (font, *face) in itertools.product(letters, FACES):
        words = (script, name, *face)
        facts.append([VALUES[fact].index(w) for fact, w in zip(FACTS, words, strict=True)])
        masks.append(characters.mask(font, sign))
        fonts.append(font)
    return Glyphs(torch.tensor(facts), torch.stack(masks), tuple(fonts))


def styles_of(facts: Tensor) -> Tensor:
    """(n,) positions in :data:`STYLES`, from (n, 5) facts.

    Example:
        >>> import tlhelpers as tl
        >>> facts = tl.captions.glyphs().facts[:4]  # one letter in four fonts
        >>> [tl.captions.STYLES[i] for i in tl.captions.styles_of(facts)]
        ['regular upright', 'bold upright', 'regular italic', 'bold italic']
    """
    return facts[:, WEIGHT] + 2 * facts[:, SLANT]


def cells_of(facts: Tensor) -> Tensor:
    """(n,) the cell of the table of scripts and styles: ``4 * script + style``.

    Example:
        >>> import tlhelpers as tl
        >>> facts = tl.captions.glyphs().facts[[0, -1]]
        >>> [tl.captions.cell_name(int(cell)) for cell in tl.captions.cells_of(facts)]
        ['regular upright Latin', 'bold italic digit']
    """
    return len(STYLES) * facts[:, SCRIPT] + styles_of(facts)


def cell_name(cell: int) -> str:
    """What a cell holds, in words.

    >>> cell_name(7)
    'bold italic Greek'
    """
    script, style = divmod(cell, len(STYLES))
    return f"{STYLES[style]} {VALUES['script'][script]}"


def held_out(seed: int = 0) -> tuple[int, ...]:
    """One style of each script that training never shows; every style is kept from one script.

    A network then sees each style, and each script, but not these four combinations.

    Returns:
        four cells, see :func:`cells_of`.

    Example:
        >>> import tlhelpers as tl
        >>> for cell in tl.captions.held_out(seed=0):
        ...     print(tl.captions.cell_name(cell))
        regular upright Latin
        bold italic Greek
        bold upright Cyrillic
        regular italic digit
    """
    styles = torch.randperm(len(STYLES), generator=Run(seed).generator(15)).tolist()
    return tuple(len(STYLES) * script + style for script, style in enumerate(styles))


def pictures(rows: Tensor, generator: torch.Generator, *, shift: Shift = VARIETY) -> Tensor:
    """(n, 1, 16, 16) float pictures of glyphs, each shifted by values of its own.

    Args:
        rows: (n,) positions among :func:`glyphs`.
        generator: where the shifts come from.
        shift: how pictures vary.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> twice = tl.captions.pictures(torch.tensor([0, 0]), tl.runtime.Run().generator())
        >>> twice.shape, torch.equal(twice[0], twice[1])
        (torch.Size([2, 1, 16, 16]), False)
    """
    large = glyphs().masks[rows].unsqueeze(1).float() / 255
    return shift.apply(large, generator, average=MASK_SCALE)


# --- sentences ----------------------------------------------------------------------------


def sentence(template: str, **words: str) -> str:
    """A template with the words that are given; what is not mentioned is left out.

    Raises:
        ValueError: if a name is none of :data:`FACTS`.

    >>> sentence(TEMPLATES[0], name="alpha", script="Greek", weight="bold")
    'a bold Greek alpha'
    >>> sentence(TEMPLATES[1], weight="bold")
    'the character in bold type'
    """
    if unknown := sorted(set(words) - set(FACTS)):
        raise ValueError(f"facts are {', '.join(FACTS)}; found {unknown[0]!r}.")
    given = {"name": "character", **{k: w for k, w in words.items() if w}}
    filled = template.format(**{fact: given.get(fact, "") for fact in FACTS})
    parts = [" ".join(part.split()) for part in filled.split(",")]
    return ", ".join(part for part in parts if part)


def say(claims: Tensor, templates: Sequence[str]) -> list[str]:
    """One sentence for each row of claims.

    Args:
        claims: (n, 5) facts, −1 where one is not mentioned.
        templates: n templates.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> facts = tl.captions.glyphs().facts[:1]
        >>> claims = facts.where(torch.tensor([False, True, True, False, False]), -1)
        >>> tl.captions.say(torch.cat([facts, claims]), [tl.captions.TEMPLATES[0]] * 2)
        ['a regular upright sans Latin D', 'a regular D']
    """
    return [
        sentence(
            template,
            **{f: VALUES[f][v] for f, v in zip(FACTS, row, strict=True) if v >= 0},
        )
        for row, template in zip(claims.tolist(), templates, strict=True)
    ]


def true_of(claims: Tensor, facts: Tensor) -> Tensor:
    """(n, m) booleans: whether what row j of the claims says holds for picture i.

    Args:
        claims: (m, 5) facts, −1 where one is not mentioned.
        facts: (n, 5) facts of pictures.

    >>> bold_alpha = torch.tensor([[1, 10, 1, 0, 0]])
    >>> claims = torch.tensor([[1, 10, -1, -1, -1], [-1, -1, 0, -1, -1]])  # Greek alpha; regular
    >>> true_of(claims, bold_alpha)
    tensor([[ True, False]])
    """
    return ((claims == facts[:, None]) | (claims < 0)).all(dim=2)


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Pictures with one sentence each.

    Attributes:
        x: (n, 1, 16, 16) pictures.
        facts: (n, 5) their facts.
        claims: (n, 5) what each sentence mentions, −1 elsewhere.
        sentences: n sentences.

    Example:
        >>> import tlhelpers as tl
        >>> pairs = tl.captions.draw(200, tl.runtime.Run().generator())
        >>> pairs.same.sum(), pairs.true.sum()  # of 40,000
        (tensor(214), tensor(2753))
    """

    x: Tensor
    facts: Tensor
    claims: Tensor
    sentences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sentences)

    def __repr__(self) -> str:
        return f"{len(self)} pairs of a picture and a sentence, such as {self.sentences[0]!r}"

    @property
    def true(self) -> Tensor:
        """Whether sentence j is true of picture i, as (n, n) booleans."""
        return true_of(self.claims, self.facts)

    @property
    def same(self) -> Tensor:
        """Whether sentences i and j are word for word the same, as (n, n) booleans."""
        return same_words(self.sentences)


def same_words(sentences: Sequence[str]) -> Tensor:
    """(n, n) booleans: whether sentences i and j are word for word the same.

    Example:
        >>> import tlhelpers as tl
        >>> tl.captions.same_words(["alpha", "bold alpha", "alpha"])
        tensor([[ True, False,  True],
                [False,  True, False],
                [ True, False,  True]])
    """
    number: dict[str, int] = {}
    code = torch.tensor([number.setdefault(text, len(number)) for text in sentences])
    return code[:, None] == code


def seen_rows(cells: Sequence[int]) -> Tensor:
    """Positions among :func:`glyphs` of those that lie in none of these cells.

    Example:
        >>> import tlhelpers as tl
        >>> len(tl.captions.glyphs()), len(tl.captions.seen_rows(tl.captions.held_out()))
        (640, 480)
    """
    return (~torch.isin(cells_of(glyphs().facts), torch.tensor(list(cells)))).nonzero()[:, 0]


def draw(
    n: int,
    generator: torch.Generator,
    *,
    without: Sequence[int] = (),
    templates: Sequence[str] = TEMPLATES,
    shift: Shift = VARIETY,
) -> Pairs:
    """Fresh pairs, each drawn on its own: a glyph, its picture, what is mentioned, a template.

    Args:
        n: how many.
        generator: where all of it comes from.
        without: cells of which no glyph is drawn, such as :func:`held_out`.
        templates: each as often as the others.
        shift: how pictures vary.

    Example:
        >>> import tlhelpers as tl
        >>> pairs = tl.captions.draw(3, tl.runtime.Run().generator())
        >>> pairs.x.shape
        torch.Size([3, 1, 16, 16])
        >>> pairs.sentences
        ('the beta in serif type', 'this picture shows six, upright', 'italic sha')
    """
    usable = seen_rows(without)
    rows = usable[torch.randint(len(usable), (n,), generator=generator)]
    facts = glyphs().facts[rows]
    mentioned = torch.rand(n, len(FACTS), generator=generator) < torch.tensor(MENTIONED)
    claims = torch.where(mentioned, facts, -1)
    worded = torch.randint(len(templates), (n,), generator=generator).tolist()
    return Pairs(
        pictures(rows, generator, shift=shift),
        facts,
        claims,
        tuple(say(claims, [templates[i] for i in worded])),
    )


def information(without: Sequence[int] = ()) -> float:
    """How much a caption says of a picture's facts, in nats: their mutual information, exactly.

    Given which facts a caption mentions, it says just these, so that the mutual information is the
    entropy of the mentioned facts, averaged over what is mentioned. The wording says nothing. It
    bounds the mutual information of captions with *pictures*, which show the facts at best.

    Args:
        without: cells that are left out, as for :func:`draw`.

    Example:
        >>> import tlhelpers as tl
        >>> round(tl.captions.information(), 2)
        3.96
        >>> round(tl.captions.information(tl.captions.held_out()), 2)
        3.87
    """
    facts = glyphs().facts[seen_rows(without)].numpy()
    total = 0.0
    for mentioned in itertools.product((False, True), repeat=len(FACTS)):
        chosen = np.array(mentioned)
        if not chosen.any():
            continue
        chance = float(np.where(chosen, MENTIONED, 1 - np.array(MENTIONED)).prod())
        counts = np.unique(facts[:, chosen], axis=0, return_counts=True)[1]
        shares = counts / counts.sum()
        total -= chance * float((shares * np.log(shares)).sum())
    return total


def exam(
    seed: int = 0,
    *,
    without: Sequence[int] | None = None,
    sizes: tuple[int, int, int] = (800, 1000, 4000),
) -> Dataset:
    """Fresh pictures with the names of their characters as classes.

    Train and validation hold none of the cells left out; the test split holds all cells, and the
    ids say which, such as ``"bold italic Greek/alpha/STIXGeneral Bold Italic/17"``.

    Args:
        seed: of the pictures.
        without: cells that training leaves out; None for ``held_out(seed)``.
        sizes: pictures in train, validation and test.

    Example:
        >>> import tlhelpers as tl
        >>> exam = tl.captions.exam(sizes=(640, 40, 40))
        >>> exam.train
        train split: 640 examples, 40 classes
        >>> exam.test.ids[0]
        'bold upright Cyrillic/zhe/DejaVu Sans Bold/680'
    """
    out = held_out(seed) if without is None else tuple(without)
    generator = Run(seed).generator(15, 3)
    usable, everything = seen_rows(out), torch.arange(len(glyphs()))
    rows = []
    for part, size in zip(PARTS, sizes, strict=True):
        pool = everything if part == "test" else usable
        # Whole rounds first, so that no class is left without a picture.
        rounds = [
            pool[torch.randperm(len(pool), generator=generator)]
            for _ in range(1 + size // len(pool))
        ]
        rows.append(torch.cat(rounds)[:size])
    chosen = torch.cat(rows)
    facts, fonts = glyphs().facts[chosen], glyphs().fonts
    cells = cells_of(facts).tolist()
    names = [VALUES["name"][i] for i in facts[:, NAME].tolist()]
    return Dataset(
        name="characters",
        classes=VALUES["name"],
        x=pictures(chosen, generator),
        labels=facts[:, NAME],
        split=np.repeat(PARTS, sizes),
        ids=tuple(
            f"{cell_name(cell)}/{name}/{fonts[row]}/{i}"
            for i, (cell, name, row) in enumerate(zip(cells, names, chosen.tolist(), strict=True))
        ),
        split_name=f"cells held out, seed {seed}",
    )


def by_style(data: Dataset) -> Dataset:
    """The same pictures with their styles as classes, and the same log of readings.

    Example:
        >>> import tlhelpers as tl
        >>> exam = tl.captions.exam(sizes=(640, 40, 40))
        >>> exam.train
        train split: 640 examples, 40 classes
        >>> tl.captions.by_style(exam).train
        train split: 640 examples, 4 classes
    """
    found = [STYLES.index(name.split("/")[0].rpartition(" ")[0]) for name in data.ids]
    return dataclasses.replace(data, classes=STYLES, labels=torch.tensor(found))


def unseen(ids: Sequence[str], without: Sequence[int]) -> np.ndarray:
    """(n,) booleans: which ids of :func:`exam` lie in one of these cells.

    Example:
        >>> import tlhelpers as tl
        >>> exam = tl.captions.exam(sizes=(640, 40, 640))
        >>> out = tl.captions.held_out()
        >>> [int(tl.captions.unseen(part.ids, out).sum()) for part in (exam.train, exam.test)]
        [0, 160]
    """
    names = {cell_name(cell) for cell in without}
    return np.array([name.split("/")[0] in names for name in ids])

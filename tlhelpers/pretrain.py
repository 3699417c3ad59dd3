"""How the shipped weights ``"letters"`` of the small network were pretrained.

:func:`letters` makes them again, in about a minute on two quiet CPU cores;
``experiments/glyphnet.py`` calls it and writes the file.
"""

from __future__ import annotations

import time

from tlhelpers import datasets, evaluate, features, models, probe, records, runtime, train
from tlhelpers.characters import MILD, Shift
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.train import Recipe

COMMAND = "python experiments/glyphnet.py"
PER_CLASS = 400
LABELS = (1, 5, 20)  # a class of digits
DRAWS = 10

STRONG = Shift(
    rotation=15, shear=0.3, scale=(0.8, 1.1), aspect=(0.7, 1.25), translate=1.5, elastic=1.3,
    stroke=(-0.4, 1.0), resolution=(6, 16), blur=(0.0, 0.8), contrast=(0.8, 1.0), noise=0.03,
)  # fmt: skip
"""Half as much again as ``MILD``, and drawn anew at each step, on images that ``MILD`` has shifted
already. The stronger it was, the better the features did on digits, and the worse on letters."""

RECIPE = Recipe(
    steps=2000,
    batch_size=128,
    lr=0.003,
    weight_decay=0.05,
    warmup=0.1,
    augment=train.augmentation(STRONG),
    keep="last",
)
"""Chosen on the validation digits with frozen features, see the record ``glyphs/letters``."""


def letters(
    run: Run | None = None, *, recipe: Recipe = RECIPE, per_class: int = PER_CLASS
) -> tuple[SmallResNet, Record]:
    """Pretrain the small network on 52 Latin letters, and see what its features are worth.

    Args:
        run: seed and device; None for seed 0 on the best device.
        recipe: how it is trained.
        per_class: images of each letter, all splits together.

    Returns:
        the network, and the record ``glyphs/letters``: its accuracy on test images of letters
        (``letters_test_top1``), and that of a linear probe on its frozen features of handwritten
        digits, with 1, 5 and 20 labels a class, on *validation* digits
        (``digits_validation_top1_5``), which chose the recipe and the probe's ridge weight.
        The curve is the history of the training run.
    """
    run = runtime.default(run)
    origin = records.provenance(letters, command=COMMAND)
    start = time.perf_counter()
    data = datasets.glyphs(per_class=per_class, shift=MILD, validation=0.05, seed=run.seed)
    network = models.small_resnet(len(data.classes), seed=run.seed)
    history = train.fit(network, data, recipe, run)
    network.cpu()
    own = evaluate.report(network, data.test, name="letters")
    digits = {f"digits_validation_top1_{k}": _digits(network, k) for k in LABELS}
    estimates = {"letters_test_top1": own.top1, **digits}
    return network, Record(
        name="glyphs/letters",
        tier=run.tier,
        split=f"letters: {data.split_name}; digits: seed 0",
        input=f"{datasets.GLYPH_SIZE} px, {MILD!r}",
        seeds=(run.seed,),
        curve=tuple(history.drop(columns=["seconds", "core_seconds"]).to_dict("records")),
        **records.figures(estimates),
        interval_over=(
            f"95 %: letters, bootstrap over test images; digits, t, over {DRAWS} draws of labels"
        ),
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def _digits(network: SmallResNet, k: int) -> evaluate.Estimate:
    """Validation accuracy of probes on digits with k labels a class, over draws."""
    bank = features.extract(datasets.digits(), models.as_backbone(network, name="letters"))
    probes = [probe.fit(bank.few(k, draw=draw)) for draw in range(DRAWS)]
    right = [evaluate.validate(one, bank.validation, resamples=2).value for one in probes]
    return evaluate.mean_interval(right)

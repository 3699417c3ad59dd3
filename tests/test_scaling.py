"""Behaviour of the studies of chapter 17: clocks, counts of memory, a small run of each study."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import simplejpeg
import torch
from torch import nn

from tlhelpers import datasets, features, models, records, scaling
from tlhelpers.runtime import Run

RUN = Run()


def test_things_are_timed_by_turns_after_a_warm_up() -> None:
    called: list[str] = []
    ticks = itertools.count()
    works = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = scaling.rounds(works, count=3, clock=lambda: float(next(ticks)))
    assert called == list("ab" * 4)
    assert seconds.shape == (3, 2)
    assert (seconds == 1).all().all()


def test_twice_as_fast_is_two() -> None:
    seconds = pd.DataFrame({"slow": [2.0, 4.0, 6.0], "fast": [1.0, 2.0, 3.0]})
    ratio = scaling.times_as_fast(seconds, "fast", "slow")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    seconds.loc[0, "fast"] = 2.0
    other = scaling.times_as_fast(seconds, "fast", "slow")
    assert other.low < other.value < other.high
    back = scaling.times_as_fast(seconds, "slow", "fast")
    assert back.value == pytest.approx(1 / other.value)


def test_what_a_chain_keeps_is_known() -> None:
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5), nn.Sigmoid())
    # The output of ReLU, which is the next layer's input too, and that of the sigmoid.
    assert scaling.saved_bytes(network, torch.rand(8, 10)) == 4 * 8 * (20 + 5)
    network[2].requires_grad_(False)
    network[0].requires_grad_(False)
    assert scaling.saved_bytes(network, torch.rand(8, 10)) == 0


@pytest.mark.parametrize("way", scaling.WAYS)
def test_shapes_alone_give_the_count(way: str) -> None:
    network = scaling.adapted(way).train()
    x = torch.rand(4, 1, 16, 16)
    here = scaling.saved_bytes(network, x)
    shapes = scaling.saved_bytes(network.to("meta"), x.to("meta"))
    assert shapes == pytest.approx(here, rel=0.01), "frozen norms keep a few numbers more"
    assert here > 0


def test_ways_train_what_they_say() -> None:
    x = torch.rand(3, 1, 16, 16)
    networks = {way: scaling.adapted(way, rank=2).eval() for way in scaling.WAYS}
    start = networks["full"](x)
    for network in networks.values():
        assert torch.equal(network(x), start), "all begin as the same network"
    trained = {
        way: sum(p.numel() for p in network.parameters() if p.requires_grad)
        for way, network in networks.items()
    }
    assert trained["probe"] == 64 * 10 + 10
    assert trained["probe"] < trained["LoRA"] < trained["full"]
    with pytest.raises(ValueError, match="probe, LoRA, full"):
        scaling.adapted("prompt")


def test_a_recipe_changes_its_rate_alone() -> None:
    assert scaling.recipe("probe", 0.5).head_lr == 0.5
    assert scaling.recipe("full", 0.5).lr == 0.5
    assert scaling.recipe("full", 0.5).steps == scaling.recipe("probe", 0.5).steps


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.zoo, "FINE_TUNING", scaling.train.Recipe(steps=2, keep="last"))


@pytest.mark.usefixtures("short")
def test_the_study_of_adapters_has_what_the_chapter_asks_for() -> None:
    rates = {way: rates[:1] for way, rates in scaling.RATES.items()}
    record = scaling.lora_study(RUN, shots=(1, 2), ranks=(1,), draws=2, rates=rates)
    frame = record.to_frame()
    assert len(frame) == 2 * 2 * 3 + 2
    assert set(frame[frame.way == "LoRA"]["rank"]) == {1, 4}
    assert set(frame[(frame["rank"] == 1)].k) == {1}
    gap = record.estimate("LoRA minus probe, 2 labels").value
    means = [record.estimate(f"{way}, 2 labels").value for way in ("LoRA", "probe")]
    assert gap == pytest.approx(means[0] - means[1])
    assert record.estimate("LoRA of rank 1, 1 labels").value > 0


def test_the_study_of_speed_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "has_compiler", lambda: False)
    monkeypatch.setattr(scaling, "NETWORKS", {"small_resnet": (8, 16)})
    record = scaling.speed(RUN, networks=("small_resnet",), count=2)
    assert set(record.result) == {f"small_resnet, {v}" for v in scaling.VARIANTS[1:-1]}
    assert all(math.isfinite(v) and v > 0 for v in record.result.values())


def test_a_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not scaling.has_compiler()
    assert sys.executable


def test_a_rehearsal_compares_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 2)
    generator = RUN.generator(1)
    for i in range(8):
        home = tmp_path / "pictures" / "ab"[i % 2]
        home.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator).to(torch.uint8)
        (home / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels.numpy(), quality=90))
    data = datasets.image_folder(tmp_path / "pictures")
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    backbone = models.as_backbone(network, preprocess=models.Preprocess(16, 16))

    def workers(count: int) -> features.Engine:
        def engine(work, chunks, keep):  # type: ignore[no-untyped-def]
            features.on_cores(work, chunks, keep)
            features.on_cores(work, chunks[:1], keep)

        return engine

    monkeypatch.setattr(scaling, "OnRay", workers)
    record = scaling.rehearse(data, backbone, kill=False, run=RUN)
    frame = record.to_frame().set_index("way")
    assert list(frame.index) == ["one process", "2 workers on Ray"]
    assert (frame.largest_difference < 1e-6).all()
    assert frame.delivered.tolist() == [4, 5], "a chunk that comes twice is counted, and kept once"
    assert frame.same_ids.all()
    monkeypatch.setattr(scaling, "KillsOnce", lambda images, at, marker: images)
    with pytest.raises(RuntimeError, match="nothing was rehearsed"):
        scaling.rehearse(data, backbone, kill=True, run=RUN)


@pytest.mark.parametrize("name", ["scaling/lora", "scaling/speed", "scaling/extract_ray"])
def test_the_records_are_from_a_clean_checkout(name: str) -> None:
    record = records.load(name)
    assert record.clean
    assert record.curve

"""Behaviour of ``tlhelpers.inside``: representations, layers, and maps of pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from tlhelpers import datasets, inside, models, zoo

X = datasets.digits().validation.x[:12]
Y = torch.arange(12) % 10


@pytest.fixture
def network() -> models.SmallResNet:
    return zoo.load("letters", 10)


class TestOutputs:
    def test_are_averages_over_the_plane_or_over_its_cells(
        self, network: models.SmallResNet
    ) -> None:
        whole = inside.outputs(network, X, ["stem", "stage3"])
        with torch.inference_mode():
            assert torch.allclose(whole["stage3"], network.eval().features(X), atol=1e-6)
        cells = inside.outputs(network, X, ["stage3"], cells=2)["stage3"]
        assert cells.shape == (12, 64 * 4)
        assert torch.allclose(cells.view(12, 64, 4).mean(2), whole["stage3"], atol=1e-5)

    def test_leave_modes_and_hooks_as_they_were(self, network: models.SmallResNet) -> None:
        network.train()
        before = models.fingerprint(network)
        inside.outputs(network, X, ["head"])
        assert network.stage1.training
        assert models.fingerprint(network) == before
        assert not network.head._forward_hooks

    def test_refuse_what_is_not_there_or_used_twice(self, network: models.SmallResNet) -> None:
        with pytest.raises(ValueError, match="no module 'stage9'"):
            inside.outputs(network, X, ["stage9"])
        with pytest.raises(ValueError, match="was used 2 times"):
            inside.outputs(network, X, ["stage1.0.relu"])


class TestCka:
    def test_is_1_for_rotated_features_and_about_0_for_unrelated_ones(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(200, 1000, generator=generator) for _ in range(2))
        rotation = torch.linalg.qr(torch.randn(1000, 1000, generator=generator)).Q
        assert inside.cka(x, 5 * x @ rotation + 3) == pytest.approx(1, abs=1e-6)
        assert abs(inside.cka(x, y)) < 0.05, "although there are more features than images"
        half = torch.cat([x[:, :500], y[:, 500:]], dim=1)
        assert inside.cka(x, half) == pytest.approx(0.5, abs=0.05)
        with pytest.raises(ValueError, match="n of 4 or more"):
            inside.cka(x, y[:3])

    def test_is_unbiased_below_the_ratio(self) -> None:
        """The estimator's mean over small samples is the value of a large one."""
        generator = torch.Generator().manual_seed(1)
        mix = torch.randn(6, 6, generator=generator)
        x = torch.randn(40_000, 6, generator=generator)
        y = torch.relu(x @ mix)
        covariance = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
        truth = float(covariance.double().square().sum())
        found = [
            float(inside._hsic(inside._gram(a), inside._gram(b)))
            for a, b in zip(x.split(8), y.split(8), strict=True)
        ]
        error = np.std(found) / np.sqrt(len(found))
        assert np.mean(found) == pytest.approx(truth, abs=4 * error)
        assert 4 * error < 0.1 * truth, "a bias of n = 8 would be seen"


class TestLayers:
    def test_share_out_every_entry_of_the_state(self, network: models.SmallResNet) -> None:
        found = inside.layers(network)
        assert sorted(key for keys in found.values() for key in keys) == sorted(
            network.state_dict()
        )
        assert next(iter(found)) == "stem.0"
        assert list(found)[-1] == "head"
        assert "stage2.0.norm1.running_var" in found["stage2.0.conv1"]

    def test_a_norm_cannot_come_first(self) -> None:
        with pytest.raises(ValueError, match="BatchNorm2d"):
            inside.layers(nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)))

    def test_movement_is_relative_and_knows_who_moved(self, network: models.SmallResNet) -> None:
        after = zoo.load("letters", 10)
        with torch.no_grad():
            after.stage2[0].conv1.weight.mul_(1.5)
            after.stage2[0].norm1.weight.mul_(1.5)
            after.stage2[0].norm1.bias.mul_(1.5)
        rows = inside.movement(network, after).set_index("layer")
        assert rows["moved"]["stage2.0.conv1"] == pytest.approx(0.5)
        assert (rows["moved"].drop("stage2.0.conv1") == 0).all()
        assert rows["parameters"].sum() == sum(p.numel() for p in network.parameters())
        with pytest.raises(ValueError, match=r"differ in 'head\."):
            inside.movement(network, zoo.load("letters"))

    def test_reset_takes_parameters_and_statistics_of_one_layer(
        self, network: models.SmallResNet
    ) -> None:
        start = models.small_resnet(10, seed=7)
        mixed = inside.reset(network, start, "stage3.0.conv2")
        same = {
            key: torch.equal(value, network.state_dict()[key])
            for key, value in mixed.state_dict().items()
        }
        own = inside.layers(network)["stage3.0.conv2"]
        changed = {key for key, equal in same.items() if not equal}
        assert changed <= set(own)
        assert {"stage3.0.conv2.weight", "stage3.0.norm2.running_mean"} <= changed
        with pytest.raises(ValueError, match="no layer 'stage3'"):
            inside.reset(network, start, "stage3")

    def test_randomise_goes_from_the_output_to_the_input(self, network: models.SmallResNet) -> None:
        random = models.small_resnet(10, seed=7)
        names, networks = zip(*inside.randomise(network, random), strict=True)
        assert names == tuple(reversed(inside.layers(network)))
        with torch.inference_mode():
            features = [one.eval().features(X) for one in networks]
            assert torch.equal(features[0], network.eval().features(X)), "the head alone is lost"
            assert torch.allclose(networks[-1](X), random.eval()(X), atol=1e-5)


Map = Callable[[nn.Module, Tensor, Tensor], Tensor]


class TestMaps:
    @pytest.mark.parametrize(
        "method",
        [
            inside.gradient, inside.gradient_times_input, inside.guided_backprop,
            inside.integrated_gradients,
        ],
    )  # fmt: skip
    def test_have_a_value_for_each_pixel_and_disturb_nothing(
        self, network: models.SmallResNet, method: Map
    ) -> None:
        network.train()
        before = models.fingerprint(network)
        maps = method(network, X, Y)
        assert maps.shape == (12, 16, 16)
        assert not maps.requires_grad
        assert network.training
        assert models.fingerprint(network) == before
        assert all(p.grad is None for p in network.parameters())
        one = method(network, X[3:4], Y[3:4])
        assert torch.allclose(one[0], maps[3], atol=1e-5), "an image's map is its own"
        assert not torch.allclose(method(network, X, (Y + 1) % 10), maps)

    def test_integrated_gradients_add_up(self, network: models.SmallResNet) -> None:
        maps = inside.integrated_gradients(network, X, Y, steps=200)
        with torch.inference_mode():
            ends = [network.eval()(x).gather(1, Y[:, None])[:, 0] for x in (X, 0 * X)]
        gap = (maps.sum(dim=(1, 2)) - (ends[0] - ends[1])).abs()
        assert float(gap.max()) < 0.02 * float((ends[0] - ends[1]).abs().max())

    def test_of_a_linear_network_all_say_the_same(self) -> None:
        linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        expected = linear[1].weight[Y].view(12, 16, 16).detach() * X[:, 0]
        for method in (inside.gradient_times_input, inside.integrated_gradients):
            assert torch.allclose(method(linear, X, Y), expected, atol=1e-6)

    def test_guided_backprop_equals_the_gradient_where_nothing_is_negative(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 10))
        with torch.no_grad():
            network[3].weight.abs_()
        assert torch.allclose(inside.guided_backprop(network, X, Y), inside.gradient(network, X, Y))
        with torch.no_grad():
            network[3].weight.neg_()
        assert torch.equal(inside.guided_backprop(network, X, Y), torch.zeros(12, 16, 16))
        with pytest.raises(ValueError, match=r"no nn\.ReLU|has none"):
            inside.guided_backprop(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), X, Y)

    def test_grad_cam_at_the_last_stage_is_the_class_activation_map(
        self, network: models.SmallResNet
    ) -> None:
        maps = inside.grad_cam(network, X, Y, at="stage3")
        with torch.inference_mode():
            network.eval()
            body = nn.Sequential(network.stem, network.stage1, network.stage2, network.stage3)
            activations = body(X)
            cam = torch.einsum("nd,ndhw->nhw", network.head.weight[Y], activations).relu()
        shown = nn.functional.interpolate(cam[:, None] / 16, (16, 16), mode="bilinear")
        assert maps.shape == (12, 16, 16)
        assert torch.allclose(maps, shown[:, 0], atol=1e-5), "a mean over 4 x 4 places"
        assert not X.requires_grad, "the images stay as they were"
        assert float(maps.min()) >= 0

    def test_refuse_what_has_no_plane_or_no_target(self, network: models.SmallResNet) -> None:
        with pytest.raises(ValueError, match="maps of a layer"):
            inside.grad_cam(network, X, Y, at="head")
        with pytest.raises(ValueError, match="no module"):
            inside.grad_cam(network, X, Y, at="stage7")
        with pytest.raises(ValueError, match="one class for each image"):
            inside.gradient(network, X, Y[:, None])
        with pytest.raises(ValueError, match="1 step or more"):
            inside.integrated_gradients(network, X, Y, steps=0)


class TestAgainstCaptum:
    """The library is an optional extra; where it is, ours are compared with it."""

    @pytest.fixture
    def captum(self) -> Any:
        return pytest.importorskip(
            "captum.attr", reason="compares with captum, which the extra 'explain' installs"
        )

    def test_the_same_maps(self, network: models.SmallResNet, captum: Any) -> None:
        network.eval()
        theirs = captum.Saliency(network).attribute(X, target=Y, abs=False)
        assert torch.allclose(theirs[:, 0], inside.gradient(network, X, Y), atol=1e-5)
        theirs = captum.IntegratedGradients(network).attribute(
            X, target=Y, n_steps=32, method="riemann_middle"
        )
        ours = inside.integrated_gradients(network, X, Y, steps=32)
        assert torch.allclose(theirs[:, 0].float(), ours, atol=1e-4)
        cam = captum.LayerGradCam(network, network.stage2)
        theirs = cam.attribute(X, target=Y, relu_attributions=True)
        theirs = captum.LayerAttribution.interpolate(theirs, (16, 16), "bilinear")
        ours = inside.grad_cam(network, X, Y, at="stage2")
        assert torch.allclose(theirs[:, 0].detach(), ours, atol=1e-5)


class TestJudges:
    def test_rank_correlation_is_spearmans(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.rand(5, 4, 4, generator=generator).round(decimals=1) for _ in range(2))
        expected = [
            stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)
        ]
        assert inside.rank_correlation(a, b) == pytest.approx(expected)
        assert inside.rank_correlation(a, a**3) == pytest.approx(1)
        assert inside.rank_correlation(a, torch.zeros_like(a)).tolist() == [0] * 5
        with pytest.raises(ValueError, match=r"\(n, h, w\)"):
            inside.rank_correlation(a, b[:2])

    def test_pointing_counts_hits_within_reach(self) -> None:
        maps, places = torch.zeros(3, 6, 6), torch.zeros(3, 6, 6, dtype=torch.bool)
        places[:, 2, 2] = True
        maps[0, 2, 2], maps[1, 3, 3], maps[2, 4, 4] = 1.0, 1.0, 1.0
        assert inside.pointing(maps, places, reach=0).tolist() == [True, False, False]
        assert inside.pointing(maps, places).tolist() == [True, True, False]
        assert inside.pointing(maps, places, reach=2).all()
        with pytest.raises(ValueError, match="no right place"):
            inside.pointing(maps, torch.zeros_like(places))
        with pytest.raises(ValueError, match="of booleans"):
            inside.pointing(maps, maps)

    def test_share_within_ignores_signs_and_scale(self) -> None:
        maps = torch.tensor([[[3.0, -1.0]], [[0.0, 0.0]]])
        places = torch.tensor([[[False, True]], [[False, True]]])
        shares = inside.share_within(maps, places)
        assert shares[0] == pytest.approx(0.25)
        assert np.isnan(shares[1])
        assert inside.share_within(5 * maps, places)[0] == pytest.approx(0.25)


def test_maps_of_a_data_set_need_no_labels() -> None:
    digits = datasets.digits()
    bare = dataclasses.replace(digits, log=[])
    network = zoo.load("letters", 10)
    inside.gradient(network, bare.test.x[:3], Y[:3])
    assert bare.test.readings == ()

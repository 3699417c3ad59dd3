"""Checks for the exercises of chapter 03: the mathematics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function

CLOSE = 1e-6


def _tensor(value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """The value as a finite double tensor of a shape, or a hint."""
    if not isinstance(value, Tensor):
        raise Hint(f"{what} should be a torch tensor, found {describe(value)}.")
    if value.shape != shape:
        raise Hint(f"{what} should have shape {shape}, found {tuple(value.shape)}.")
    if not value.isfinite().all():
        raise Hint(f"{what} holds NaN or infinity.")
    return value.detach().double()


def _tuple(value: Any, count: int, names: str, call: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list) or len(value) != count:
        raise Hint(f"{call} should return {names}, but it returned {describe(value)}.")
    return tuple(value)


def _close(a: Tensor, b: Tensor, tolerance: float = CLOSE) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


# --- 03.1 -------------------------------------------------------------------------------------


@exercise(
    "03.1",
    "smoothing changes the target and nothing else: probabilities minus what they should be.",
)
def _smoothed_gradient(answer: Any) -> None:
    """Write a function `smoothed_gradient(z, y, eps)` that returns the gradient of the
    label-smoothed cross-entropy by the logits, without autograd.

    With label smoothing the target of an image is not $e_y$ but $(1 - \\epsilon)\\, e_y$ plus
    $\\epsilon / m$ for each of the $m$ classes, and the loss of the image is
    $-\\sum_c q_c \\log p_c$ with this target $q$. The function takes logits `z` of shape
    (n, m), labels `y` of shape (n,) and a number `eps`, and returns the gradient of the *mean*
    loss of the n images, of shape (n, m).
    """
    expect_function(answer, "smoothed_gradient(z, y, eps)")
    for n, m, eps in ((6, 4, 0.1), (9, 3, 0.3), (5, 7, 0.0)):
        call = f"smoothed_gradient, on logits of shape ({n}, {m}) with eps = {eps},"
        z = 2 * torch.randn(n, m).double()
        y = torch.randint(m, (n,))
        found = _tensor(ask(answer, z.clone(), y.clone(), eps, call=call), (n, m), "the gradient")
        _check_gradient(found, z, y, eps, call)


def _check_gradient(found: Tensor, z: Tensor, y: Tensor, eps: float, call: str) -> None:
    z = z.clone().requires_grad_()

    def gradient(smoothing: float, reduction: str = "mean") -> Tensor:
        loss = F.cross_entropy(z, y, label_smoothing=smoothing, reduction=reduction)
        return torch.autograd.grad(loss, z)[0]

    right = gradient(eps)
    if _close(found, right):
        return
    if _close(found, -right):
        raise Hint(f"{call} has the opposite sign: a step against the gradient should go downhill.")
    if _close(found, gradient(eps, "sum")):
        raise Hint(f"{call} gives the gradient of the sum of the losses; the mean was asked for.")
    if eps and _close(found, gradient(0.0)):
        raise Hint(f"{call} ignores eps: this is the gradient without label smoothing.")
    if found.sum(1).abs().max() > CLOSE:
        raise Hint(
            f"the rows of the gradient should sum to zero: both the probabilities and the target "
            f"sum to one. {call} gives rows that sum to as much as {found.sum(1).abs().max():.2g}. "
            f"How much does the label's own class get in all?"
        )
    if _close(found, gradient(eps * (z.shape[1] / (z.shape[1] - 1)))):
        raise Hint(
            f"{call} spreads eps over the other classes only; the label's class gets its share too."
        )
    raise Hint(f"{call} is not what a small change of the logits does to the loss.")


# --- 03.2 -------------------------------------------------------------------------------------


@exercise("03.2", "decay applied to the weights, and averages that never hear of it.")
def _adamw_step(answer: Any) -> None:
    """Write a function `adamw_step(theta, g, u, s, t, lr, decay)` that makes one step of AdamW.

    It takes the weights, their gradient, the running averages `u` of the gradient and `s` of its
    square (all of one shape, the averages zero before the first step), the number `t` of the
    step, 1 for the first, the learning rate and the weight decay. It returns the new
    `(theta, u, s)`. The other settings are those of `torch.optim.AdamW`: 0.9 and 0.999 for the
    averages, 1e-8 for epsilon. The check makes 25 steps beside `torch.optim.AdamW`.
    """
    expect_function(answer, "adamw_step(theta, g, u, s, t, lr, decay)")
    lr, decay, steps = 0.02, 0.3, 25
    start = torch.randn(4, 3).double() + 1
    gradients = torch.randn(steps, 4, 3).double() * torch.tensor([0.01, 1.0, 30.0])
    ours, u, s = start.clone(), torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for t in range(1, steps + 1):
        call = f"adamw_step, at t = {t},"
        g = gradients[t - 1]
        found = ask(answer, ours.clone(), g.clone(), u.clone(), s.clone(), t, lr, decay, call=call)
        values = _tuple(found, 3, "(theta, u, s)", call)
        names = ("theta", "u", "s")
        ours, u, s = (
            _tensor(value, (4, 3), f"the {name} of {call}")
            for name, value in zip(names, values, strict=True)
        )
        _check_step(ours, start, gradients[:t], lr, decay, t)


def _torch_step(kind: str, start: Tensor, gradients: Tensor, lr: float, decay: float) -> Tensor:
    parameter = torch.nn.Parameter(start.clone())
    optimiser = getattr(torch.optim, kind)([parameter], lr=lr, weight_decay=decay)
    for g in gradients:
        parameter.grad = g.clone()
        optimiser.step()
    return parameter.detach()


def _check_step(
    found: Tensor, start: Tensor, gradients: Tensor, lr: float, decay: float, t: int
) -> None:
    right = _torch_step("AdamW", start, gradients, lr, decay)
    if _close(found, right):
        return
    if _close(found, _torch_step("AdamW", start, gradients, lr, 0.0)):
        raise Hint(f"after step {t} the weights are those of Adam without any decay.")
    if _close(found, _torch_step("Adam", start, gradients, lr, decay)):
        raise Hint(
            f"after step {t} the weights are those of Adam with an L2 penalty: the decay went "
            f"through the averages, where it is divided by the size of the gradient."
        )
    moved, expected = (v - start * (1 - lr * decay) for v in (found, right))
    if t == 1 and bool((moved.abs() > 2 * expected.abs()).all()):
        raise Hint("the first step is several times too long: has each average its own factor?")
    if t == 1 and bool((moved.abs() < expected.abs() / 2).all()):
        raise Hint("the first step is far too short: is the gradient's average still too small?")
    if t == 1:
        raise Hint(
            "the first step is wrong. Apart from the decay every weight should move by the "
            "learning rate, whatever the size of its gradient, against the gradient's sign."
        )
    raise Hint(
        f"the first steps are right, but the weights differ at step {t}: what is handed on from "
        f"step to step, and where does t enter?"
    )


# --- 03.3 -------------------------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@exercise("03.3", "a system as large as the number of images, however many features there are.")
def _dual_ridge(answer: Any) -> None:
    """Write a function `dual_ridge(H, Y, c)` that returns the weights of ridge regression in its
    dual form.

    It takes centred features `H` of shape (n, d), centred targets `Y` of shape (n, m) and the
    penalty $c = n\\lambda$, and returns `W` of shape (m, d), the minimiser of
    $\\frac12 \\lVert H W^\\top - Y \\rVert^2 + \\frac{c}{2} \\lVert W \\rVert^2$. There may be
    far more features than images: nothing of size d × d may be made on the way.
    """
    expect_function(answer, "dual_ridge(H, Y, c)")
    for n, d, m, c in ((8, 40, 3, 0.5), (12, 30, 2, 5.0), (6, 300, 4, 1.0)):
        call = f"dual_ridge, on features of shape ({n}, {d}) and targets of shape ({n}, {m}),"
        H, Y = torch.randn(n, d).double(), torch.randn(n, m).double()
        H, Y = H - H.mean(0), Y - Y.mean(0)
        with _Largest() as largest:
            value = ask(answer, H.clone(), Y.clone(), c, call=call)
        if isinstance(value, Tensor) and value.shape == (d, m):
            raise Hint(f"{call} returned W transposed; a row of W belongs to a class.")
        W = _tensor(value, (m, d), "W")
        _check_ridge(W, H, Y, c, call)
        if largest.numel >= d * d:
            raise Hint(
                f"the weights are right, but {call} made something with {largest.numel:,} "
                f"entries; a {d} × {d} matrix has {d * d:,}. Which matrix of inner products is "
                f"smaller?"
            )


def _check_ridge(W: Tensor, H: Tensor, Y: Tensor, c: float, call: str) -> None:
    def minimiser(c: float) -> Tensor:
        K = H @ H.T + c * torch.eye(len(H)).double()
        return (H.T @ torch.linalg.solve(K, Y)).T

    right = minimiser(c)
    if _close(W, right):
        return
    for factor, name in ((len(H), "n times"), (2, "twice"), (0.5, "half"), (1 / len(H), "1/n of")):
        if _close(W, minimiser(factor * c)):
            raise Hint(f"{call} solves the problem for {name} the penalty that was asked for.")
    slope = (H @ W.T - Y).T @ H + c * W
    raise Hint(
        f"at the minimum the gradient is zero; at the W of {call} its largest entry is "
        f"{slope.abs().max():.2g}."
    )


# --- 03.4 -------------------------------------------------------------------------------------


@exercise("03.4", "one covariance for all classes, and the boundary between any two is flat.")
def _lda_head(answer: Any) -> None:
    """Write a function `lda_head(prototypes, cov, counts)` that returns linear discriminant
    analysis as a linear layer.

    It takes an (m, d) tensor of class means, the (d, d) covariance that the classes share, and the
    number of training images of each class, a tensor of shape (m,). It returns
    `(weight, bias)` of shapes (m, d) and (m,), such that the softmax of the logits
    `x @ weight.T + bias` is the probability of each class given the features, if those of each
    class are normally distributed and the classes come in the proportions of `counts`.
    """
    expect_function(answer, "lda_head(prototypes, cov, counts)")
    for m, d, equal in ((3, 4, True), (5, 6, False), (4, 3, False)):
        call = f"lda_head, on prototypes of shape ({m}, {d}),"
        prototypes = 2 * torch.randn(m, d).double() * torch.linspace(0.5, 2, m).double()[:, None]
        root = torch.randn(d, 2 * d).double()
        cov = root @ root.T / d
        counts = torch.full((m,), 20) if equal else torch.randint(3, 60, (m,))
        found = ask(answer, prototypes.clone(), cov.clone(), counts.clone(), call=call)
        weight, bias = _tuple(found, 2, "(weight, bias)", call)
        weight = _tensor(weight, (m, d), "the weight")
        bias = _tensor(bias, (m,), "the bias")
        _check_posterior(weight, bias, prototypes, cov, counts, call)


def _posterior(x: Tensor, prototypes: Tensor, cov: Tensor, prior: Tensor) -> Tensor:
    logs = [
        torch.distributions.MultivariateNormal(p, covariance_matrix=cov).log_prob(x)
        for p in prototypes
    ]
    return (torch.stack(logs, dim=1) + prior.log()).softmax(1)


def _check_posterior(
    weight: Tensor, bias: Tensor, prototypes: Tensor, cov: Tensor, counts: Tensor, call: str
) -> None:
    m, d = prototypes.shape
    x = 2 * torch.randn(60, d).double()
    found = (x @ weight.T + bias).softmax(1)
    prior, flat = counts.double() / counts.sum(), torch.full((m,), 1 / m).double()
    eye = torch.eye(d).double()
    if _close(found, _posterior(x, prototypes, cov, prior)):
        return
    if _close(found, _posterior(x, prototypes, cov, flat)):
        raise Hint(f"{call} leaves the counts out: a frequent class is more probable beforehand.")
    for share in (prior, flat):
        if _close(found, _posterior(x, prototypes, eye, share)):
            raise Hint(f"{call} leaves the covariance out: this is the nearest prototype.")
        for power in (-2, -1, 2):
            if _close(
                found, _posterior(x, prototypes, torch.linalg.matrix_power(cov, power), share)
            ):
                raise Hint(f"{call} uses another power of the covariance than the density does.")
    right = torch.linalg.solve(cov, prototypes.T).T
    difference = weight - right
    if _close(difference - difference.mean(0), torch.zeros_like(right)):
        raise Hint(f"the weight of {call} is right, the bias is not: which terms hold no x?")
    raise Hint(
        f"the softmax of {call} is not the probability of the classes. Write down the logarithm of "
        f"a normal density: which of its terms are the same for all classes?"
    )

"""Many small logistic regressions at once; ``fewshot.logistic_layer`` stands on it.

Newton's method with conjugate gradients on Gram matrices, all fits as one batch of matrices.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_STEPS = 50
_INNER_STEPS = 100
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the gradient, against the first one


def fit(gram: Tensor, one_hot: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(b, n, N) coefficients and (b, N) biases of the fits with the Gram matrices (b, n, n).

    A gradient with respect to the weights is XᵀR, so it is written as R, and its inner product
    with XᵀS as the sum of R ⊙ GS; the bias has a row of its own below.
    """
    b, n, ways = len(gram), *one_hot.shape
    tolerance = _TOLERANCE.get(gram.dtype, 1e-4)
    a, bias = gram.new_zeros(b, n, ways), gram.new_zeros(b, 1, ways)
    fitted = gram.new_zeros(b, n, ways)  # G A
    first = None
    for _ in range(_STEPS):
        log_p = (fitted + bias).log_softmax(dim=-1)
        p = log_p.exp()
        error = (p - one_hot) / n
        slope, slope_b = error + ridge * a, error.sum(dim=1, keepdim=True)
        size = _dot(slope, gram @ slope, slope_b, slope_b).clamp(min=0).sqrt()
        first = size if first is None else first
        share = size / first.clamp(min=torch.finfo(gram.dtype).tiny)
        open_ = share > tolerance
        if not open_.any():
            return a, bias[:, 0]
        # With an accuracy of 1 a fit that is done takes no further step.
        accuracy = torch.where(open_, share.sqrt().clamp(max=0.1), 1.0)
        step, step_fitted, step_b = _conjugate(gram, p, slope, slope_b, ridge, accuracy)
        before = _objective(log_p, one_hot, a, fitted, ridge)
        decrease = _dot(slope, step_fitted, slope_b, step_b)
        t = open_.to(gram.dtype)
        for _ in range(20):  # halve the step where the objective does not fall enough
            w = t[:, None, None]
            moved, moved_fitted = a - w * step, fitted - w * step_fitted
            log_q = (moved_fitted + bias - w * step_b).log_softmax(dim=-1)
            after = _objective(log_q, one_hot, moved, moved_fitted, ridge)
            slack = 8 * torch.finfo(gram.dtype).eps * before.abs()
            short = after > before - 1e-4 * t * decrease + slack
            if not short.any():
                break
            t = torch.where(short, t / 2, t)
        w = t[:, None, None]
        a, fitted, bias = a - w * step, fitted - w * step_fitted, bias - w * step_b
    warnings.warn(
        f"{int(open_.sum())} of {b} logistic regressions stopped after {_STEPS} steps with "
        f"a gradient of {float(share.max()):.1g} of the first one (aim: {tolerance:g}). Use a "
        f"larger ridge weight, or scale the features to length 1.",
        RuntimeWarning,
        stacklevel=4,
    )
    return a, bias[:, 0]


def _conjugate(
    gram: Tensor, p: Tensor, slope: Tensor, slope_b: Tensor, ridge: float, accuracy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The Newton step as coefficients, as what it adds to the logits, and as biases."""
    x, gx, xb = torch.zeros_like(slope), torch.zeros_like(slope), torch.zeros_like(slope_b)
    r, rb, gr = slope, slope_b, gram @ slope
    d, gd, db = r, gr, rb
    length = _dot(r, gr, rb, rb)
    aim = accuracy.square() * length
    tiny = torch.finfo(gram.dtype).tiny
    for _ in range(_INNER_STEPS):
        z = gd + db
        curved = p * (z - (p * z).sum(dim=-1, keepdim=True)) / p.shape[1]
        h, hb = curved + ridge * d, curved.sum(dim=1, keepdim=True)
        gh = gram @ h
        curvature = _dot(d, gh, db, hb)
        # Fits that are near enough stop, while others go on.
        going = (length > aim) & (curvature > 0)
        along = torch.where(going, length / curvature.where(going, 1.0), 0.0)[:, None, None]
        x, gx, xb = x + along * d, gx + along * gd, xb + along * db
        r, gr, rb = r - along * h, gr - along * gh, rb - along * hb
        after = _dot(r, gr, rb, rb).clamp(min=0)
        if not (going & (after > aim)).any():
            break
        turn = (after / length.clamp(min=tiny))[:, None, None]
        d, gd, db = r + turn * d, gr + turn * gd, rb + turn * db
        length = after
    return x, gx, xb


def _dot(r: Tensor, gs: Tensor, rb: Tensor, sb: Tensor) -> Tensor:
    """(b,) inner products of gradients, see :func:`fit`."""
    return (r * gs).sum(dim=(1, 2)) + (rb * sb).sum(dim=(1, 2))


def _objective(log_p: Tensor, one_hot: Tensor, a: Tensor, fitted: Tensor, ridge: float) -> Tensor:
    """(b,) mean cross-entropy plus the ridge's term."""
    loss = -(log_p * one_hot).sum(dim=(1, 2)) / len(one_hot)
    return loss + ridge / 2 * (a * fitted).sum(dim=(1, 2))

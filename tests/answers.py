"""Answers to exercises, right and wrong: what the tests of all chapters ask of the checks."""

from __future__ import annotations

from typing import Any

import tlhelpers as tl

# What a hint must never hold: the code or the numbers of a right answer.
GIVEAWAYS = {
    "02.1": ["p / (1", "1 - p", "n_source / n_target"],
    "02.2": ["sum(", "** 2", "square"],
    "02.3": ["is inductive", "is transductive", "is unsupervised"],
    "02.4": ["reduction", "w.sum"],
    "03.1": ["softmax(", "one_hot", "eps / m", "eps/m"],
    "03.2": ["lr * decay", "sqrt", "1 - 0.9", "beta"],
    "03.3": ["H @ H.T", "solve(", "H.T"],
    "03.4": ["solve(", "inv(", ".log()", "/ 2"],
    "04.1": ["nn.Linear", "Linear(", "LazyLinear"],
    "04.2": ["eval(", ".training", "def train", "BatchNorm", "Dropout"],
    "04.3": ["2 *", "2*", "-‖", "square(", "pow(", "‖p‖"],
    "06.1": ["tl.models.freeze", "eval(", "requires_grad_", "fc.parameters"],
    "06.2": ["zero_grad", "item("],
    "06.3": ["eval(", "no_grad", "len("],
    "06.4": ["np.unique", "isin", "permutation", "choice("],
    "07.1": ["sum(axis=0)", "sum(0)", "[labels]", "log("],
    "07.2": ["argmax", "mean(", "scores ==", "max("],
    "07.3": ["1 -", "1 −", "diag"],
    "08.1": [".min(", "sort_values", "low >=", "low'] >="],
    "08.2": ["logits[:, columns]", "argmax"],
    "08.3": [">= t", ".max(", "sort("],
    "10.1": ["einsum", "sum(1)", "unsqueeze"],
    "10.2": ["alpha *", "sum(0)", "+ k"],
    "10.3": ["square(", "n - m", ".mean(0)"],
    "10.4": ["sum(0)", "n - 1", "- n"],
    "09.1": [">", "mean("],
    "09.2": ["/ trained", "* wanted", "log("],
    "09.3": ["np.unique", "max(", ">"],
    "09.4": ["mean(", "/ trained"],
    "11.1": ["randperm", "nonzero", "argsort"],
    "11.2": ["mean(", "2 *", "sum("],
    "11.3": ["comb", "m - 1 - ", "prod"],
    "11.4": ["query[:", "allclose", "for q"],
    "12.1": ["create_graph", "torch.func", "autograd"],
    "12.2": ["@", "eye(", "X.T"],
    "12.3": ["mean(", "start +"],
    "12.4": ["**", "average(", "1 -"],
    "13.1": ["np.exp", "(n - 1)", "n - 1"],
    "13.2": ["x +", "+ ", "add"],
    "13.3": ["abs", "/ 2", "half"],
    "13.4": ["solve(", "sum(", "@"],
    "14.1": ["sigma**2", "delta**2", "n +"],
    "14.2": ["sorted", "score(", ">="],
    "14.3": ["var(", "mean()", "**2"],
    "14.4": ["1 - alpha", "is_floating_point"],
    "18.1": ["1 -", "prevalence *", "/ ("],
    "18.2": ["low >", "high <", "any("],
    "18.3": ["np.unique", ">=", "sort"],
    "18.4": ["hypot", "sqrt", "**"],
    "19.1": ["low >", "high <", "<="],
    "19.2": ["sum(sizes)", "size /", "is_floating_point"],
    "19.3": ["re.", "(?", "findall"],
    "19.4": ["cdf", "** m", "max("],
    "17.1": ["/ sum", "sizes[", "* n"],
    "17.2": ["einsum", "@", "flatten"],
    "17.3": ["4 *", "12", "8 *"],
    "17.4": ["dict(", "seen", "sorted"],
    "16.1": [".T @", "mean(", "norm("],
    "16.2": ["arange", "0.5", "mean("],
    "16.3": ["softmax(", "sum(", "exp("],
    "16.4": ["cumsum", "argsort", "arange"],
    "15.1": ["log(", "log1p", "exp(", "n - 1", "2 *"],
    "15.2": ["normalize", "mean(", "/ "],
    "15.3": ["count(", "log g", "mean("],
    "15.4": ["softmax", "@", "eye(", "W - W0"],
}


def hint(id: str, answer: Any) -> str:
    """The hint that a wrong answer gets."""
    verdict = tl.check(id, answer)
    assert not verdict, f"{id} accepted a wrong answer"
    assert str(verdict) == f"✗ {id} {verdict.message}"
    assert verdict.message.endswith((".", "?")) or " raised " in verdict.message
    for giveaway in GIVEAWAYS.get(id, ()):
        assert giveaway not in verdict.message
    return verdict.message


def accepted(id: str, answer: Any) -> None:
    """Fails where a right answer is not accepted."""
    verdict = tl.check(id, answer)
    assert verdict, verdict.message
    assert str(verdict).startswith(f"✓ {id} ")

"""Logistic regression in NumPy, deterministic: one, by Newton's method; many over the same inputs at once; and one over
bags of inputs, of which the worst counts most."""

from collections.abc import Sequence

import numpy as np

from reviewer.engines.builtin.classifier import Array, Mask, Places, pooled, probability

NEWTON_STEPS = 50
SMALL_ENOUGH = 1e-8  #: expected gain of a step at which to stop
ROUNDS = 80  #: by then the weights that matter stand; the rest would cost minutes and change no decision
SMALLEST_MOVE = 1e-3  #: of any weight in a round


def logistic(inputs: Array, truth: Array, *, weights: Array, expected: Array, penalty: Array) -> Array:
    """Logistic regression, drawn by `penalty` towards `expected`, by Newton's method with step halving.

    Args:
        inputs: shape (n, k); a constant, if wanted, is one of the columns.
        truth: shape (n,), in [0, 1].
    """

    def loss(line: Array) -> float:
        logits = inputs @ line
        misses = weights @ (np.logaddexp(0.0, logits) - truth * logits)
        return float(misses + 0.5 * penalty @ (line - expected) ** 2)

    line = expected.copy()
    for _ in range(NEWTON_STEPS):
        chance = probability(inputs @ line)
        slope = inputs.T @ (weights * (chance - truth)) + penalty * (line - expected)
        bend = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        if slope @ step < SMALL_ENOUGH:
            break
        while loss(line - step) > loss(line) and np.abs(step).max() > SMALL_ENOUGH:
            step = step / 2
        line = line - step
    return line


def platt(logits: Array, truth: Array) -> Array:
    """Slope and shift after Platt (1999), with his smoothed targets."""
    positive = truth.sum()
    return logistic(
        np.stack([logits, np.ones_like(logits)], axis=1),
        np.where(truth == 1, (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2)),
        weights=np.ones(len(truth)),
        expected=np.array([1.0, 0.0]),
        penalty=np.full(2, 1e-6),
    )


def heads(
    shared: Array,
    own: Array,
    truth: Array,
    weights: Array,
    *,
    penalties: tuple[float, float],
    expected: Sequence[float],
) -> tuple[Array, Array]:
    """One regression per head over `shared` and its `own` inputs; each example teaches with its own and without.

    By accelerated gradients (Nesterov, restarted where they overshoot), scaled by a bound of the curvature that holds
    for all heads (Böhning and Lindsay, 1988): one matrix is inverted in place of one per head and step.

    Args:
        shared: shape (n, k), the last column the constant, which is hardly penalised.
        own: shape (n, heads, j).
        truth: shape (n, heads), 0 or 1.
        weights: shape (n, heads), of both lessons together.
        penalties: of the squared shared weights, and of the squared distance of the own ones from `expected`.

    Returns:
        Weights of shapes (k, heads) and (heads, j).
    """
    half, target = weights / 2, np.array(expected)
    penalty = np.full((shared.shape[1], 1), penalties[0])
    penalty[-1] = 1e-3
    # Two blocks: twice the curvature of each bounds the whole; the logistic function bends at most 1/4.
    curvature = (shared * (half.max(axis=1) / 2)[:, None]).T @ shared + np.diag(penalty[:, 0])
    scale = np.linalg.inv(2 * curvature)
    own_curvature = (
        np.einsum("nhk,nh,nhl->hkl", own, half / 4, own, optimize=True) + np.eye(own.shape[2]) * penalties[1]
    )
    own_scale = np.linalg.inv(2 * own_curvature)
    line, own_line = np.zeros((shared.shape[1], truth.shape[1])), np.tile(target, (truth.shape[1], 1))
    ahead, own_ahead, pace = line, own_line, 1.0
    for _ in range(ROUNDS):
        blind = shared @ ahead
        seeing = blind + np.einsum("nhk,hk->nh", own, own_ahead)
        missed = half * (probability(seeing) - truth)
        slope = shared.T @ (missed + half * (probability(blind) - truth)) + penalty * ahead
        own_slope = np.einsum("nhk,nh->hk", own, missed) + penalties[1] * (own_ahead - target)
        next_line = ahead - scale @ slope
        next_own = own_ahead - np.einsum("hkl,hl->hk", own_scale, own_slope)
        overshot = (slope * (next_line - line)).sum() + (own_slope * (next_own - own_line)).sum() > 0
        next_pace = (1 + np.sqrt(1 + 4 * (1.0 if overshot else pace) ** 2)) / 2
        push = ((1.0 if overshot else pace) - 1) / next_pace
        moved = max(np.abs(next_line - line).max(), np.abs(next_own - own_line).max())
        ahead, own_ahead = next_line + push * (next_line - line), next_own + push * (next_own - own_line)
        line, own_line, pace = next_line, next_own, next_pace
        if moved < SMALLEST_MOVE:
            break
    return line, own_line


def selected(inputs: Array, rows: Mask) -> Array:
    """The rows, with a constant behind them."""
    chosen: Array = inputs[rows]
    return np.hstack([chosen, np.ones((len(chosen), 1))])


BAG_STEPS = 400
PACE = 0.05  #: of the first step; it falls to nothing with the last


def bags(inputs: Array, starts: Places, truth: Array, weights: Array, *, penalty: float) -> tuple[Array, Array]:
    """Logistic regression over bags of inputs: `pooled` sums, and the log of a bag's size, tell whether it is true.

    By Adam (Kingma and Ba, 2015) on all bags at once, from a fixed start.

    Args:
        inputs: shape (n, k); a bag's rows stand together.
        starts: shape (bags,), where each begins.
        truth: shape (bags,), 0 or 1.
        weights: shape (bags,).
        penalty: of the squared weights, and of the squared distance of the pooled sum's from 1.

    Returns:
        Weights of the inputs, shape (k,), and of pooled sum, log size and constant.
    """
    width = inputs.shape[1]
    sizes = np.diff(np.append(starts, len(inputs)))
    expected = np.concatenate([np.zeros(width), [1.0, 0.0, 0.0]])
    penalties = np.append(np.full(width + 2, penalty), 1e-3)
    line, mean, square = expected.copy(), np.zeros(width + 3), np.zeros(width + 3)
    line[:width] = 0.05
    for step in range(1, BAG_STEPS + 1):
        weighed = inputs @ line[:width]
        sums = pooled(weighed, starts)
        shares = np.exp(weighed - np.repeat(sums, sizes))
        signals = np.stack([sums, np.log(sizes), np.ones(len(sums))])
        missed = weights * (probability(line[width:] @ signals) - truth)
        inner = inputs.T @ (np.repeat(missed * line[width], sizes) * shares)
        slope = (np.concatenate([inner, signals @ missed]) + penalties * (line - expected)) / len(truth)
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        size = np.sqrt(square / (1 - 0.99**step)) + 1e-8
        line = line - PACE * (1 - step / BAG_STEPS) * (mean / (1 - 0.9**step)) / size
    return line[:width], line[width:]

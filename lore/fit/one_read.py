"""The negative log likelihood of fits side by side, and its gradient, from one read of X.

It is a sum over pairs: a few rows of X give their Z = X @ V, Z gives the slope of the loss in it, and
the slope with the same rows their share of the gradient in V, before the next rows are read. Where
they are formed anew from a table on disk, reading is nearly all that a step costs.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lore.fit.likelihood import LOGIT_SCALE, negative_log_likelihood
from lore.fit.product import TallProduct, apart, side_by_side


def joint_likelihoods(X, Vs, Ws, user, weight, choice=None):
    """negative_log_likelihood of each fit, to be differentiated in V and W: [scalar, ..]

    X: Rows; Vs: [(d, K), ..]; Ws: [(C, K), ..]; weight: (n,), or (M, n) where each of M fits has its
    own; user and choice: (n,). Pairs of one softmax choice need each other: a second read for them.
    """
    if choice is not None:
        Zs = TallProduct.apply(X, *Vs)
        return [negative_log_likelihood(Z, W, user, weight, choice) for Z, W in zip(Zs, Ws)]
    widths = [V.shape[1] for V in Vs]
    weights = weight.expand(len(Vs), -1)
    with torch.no_grad():
        slopes = slopes_of([W.to(Vs[0]) for W in Ws], user, weights.to(Vs[0]))
        Zt, Vt_grad = X.times_and_back(side_by_side(Vs), slopes)  # ((n, d) @ (d, P)).T -> (P, n)
    Zs = apart(Zt, widths)
    gradients = apart(Vt_grad, widths)
    nlls = []
    for V, W, Z, g, q in zip(Vs, Ws, Zs, gradients, weights):
        nll = negative_log_likelihood(Z, W, user, q)
        nlls.append(WithGradient.apply(nll, V, g))
    return nlls


class WithGradient(torch.autograd.Function):
    """A value (scalar) whose gradient in V, (d, K), is known already. It has no second derivative."""

    @staticmethod
    def forward(ctx, value, V, gradient):
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, factor):
        return factor, (factor * ctx.gradient).to(ctx.gradient), None


def slopes_of(Ws, user, weights):
    """slopes(z, rows) = d negative_log_likelihood / d z of each fit. (k, P, s), (k, s) -> (k, P, s)

    s rows of each of k blocks, the P columns of all M fits. With t = -z . w / LOGIT_SCALE it is
    weight * sigmoid(t) * -w / LOGIT_SCALE.
    """
    minus_w = side_by_side(Ws).T.contiguous() / -LOGIT_SCALE  # (C, P)
    widths = torch.tensor([W.shape[1] for W in Ws])
    fit = torch.arange(len(Ws)).repeat_interleave(widths)  # number of the fit that has a column
    fit = F.pad(fit, (0, minus_w.shape[1] - len(fit))).to(user.device)  # (P,); zeros add 0 to fit 0

    def slopes(z, rows):
        w = minus_w[user[rows]].mT  # (k, P, s)
        # Every second number of a buffer. Of numbers side by side torch takes sigmoid by vectors, and
        # by another routine of those left over at the end: which these are depends on M.
        t = w.new_zeros(len(w), len(Ws), w.shape[2], 2)[..., 0]
        t.index_add_(1, fit, z * w)  # (k, M, s)
        pull = weights[:, rows].transpose(0, 1) * t.sigmoid()  # (k, M, s)
        return pull.index_select(1, fit) * w

    return slopes

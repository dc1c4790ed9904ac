"""L-BFGS on several problems side by side."""

import torch

from lore.processes import as_first, from_first


def minimise(loss, theta, owner, passes, tolerance=1e-4, memory=10):
    """L-BFGS on F problems side by side, theta (D,) with number j a part of problem owner[j]; loss (D,) -> (F,).

    Each problem has its curvature and step length: one that did not gain enough tries a shorter step in the next pass
    while the others go on. Ends when the last step of each has gained less than `tolerance` of its loss.
    torch.optim.LBFGS solves one problem at a time; here all share each pass over the data.
    """
    dot = lambda a, b: a.new_zeros(len(value)).index_add_(0, owner, a * b)  # (D,), (D,) -> (F,)

    def evaluate(theta):
        theta = as_first(theta.detach())[0].requires_grad_()
        value = loss(theta)
        return theta.detach(), *as_first(value.detach(), torch.autograd.grad(value.sum(), theta)[0])

    theta, value, grad = evaluate(theta)
    norm = dot(grad, grad).sqrt()
    history, scale = [], 1 / norm.clamp_min(1e-300)
    size, done, direction = torch.ones_like(value), norm == 0, -grad * scale[owner]
    for _ in range(passes):
        slope = dot(grad, direction)
        trial = theta + torch.where(done, 0, size)[owner] * direction
        trial, new_value, new_grad = evaluate(trial)
        accepted = (new_value <= value + 1e-4 * size * slope) & ~done
        s, y = trial - theta, new_grad - grad
        sy, yy = dot(s, y), dot(y, y)
        curved = accepted & (sy > 1e-10 * yy)
        history = [*history[1 - memory :], (s, y, torch.where(curved, 1 / sy, 0))]
        scale = torch.where(curved, sy / yy, scale)
        done = done | accepted & (value - new_value <= tolerance * value.abs()) | (size < 1e-9)
        shorter = (-slope * size**2 / (2 * (new_value - value - slope * size))).clamp(
            0.1 * size, 0.5 * size
        )
        size, value = torch.where(accepted, 1, shorter), torch.where(accepted, new_value, value)
        theta, grad = (
            torch.where(accepted[owner], new, old)
            for new, old in ((trial, theta), (new_grad, grad))
        )
        if from_first(lambda: bool(done.all())):  # noqa: B023
            break
        q, weights = grad, []
        for s, y, r in reversed(history):  # r = 0: no curvature known of this problem
            weights.append(r * dot(s, q))
            q = q - weights[-1][owner] * y
        q = q * scale[owner]
        for s, y, r in history:
            q = q + (weights.pop() - r * dot(y, q))[owner] * s
        direction = torch.where(accepted[owner], -q, direction)
    return as_first(theta)[0]

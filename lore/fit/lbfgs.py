"""L-BFGS on several problems side by side, which then share each pass over the data."""

import torch

from lore.processes import agreed

TOLERANCE = 1e-4  # a problem is done when its last step has gained less than this share of its loss
MEMORY = 10  # steps whose curvature is remembered
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
CURVED = 1e-10  # s . y / |y|^2 below which a step tells no curvature
SHORTEST = 1e-9  # step length at which a problem is given up


def minimise(loss, theta, owner, passes, tolerance=TOLERANCE):
    """theta (D,) that minimises loss (D,) -> (F,), number j being a part of problem owner[j].

    Each problem has its own curvature and step length: one that did not gain enough tries a shorter
    step in the next pass while the others go on. Ends when all are done, or after so many passes.
    torch.optim.LBFGS solves one problem at a time (Nocedal and Wright, Numerical Optimization, 7.2).
    """
    F = int(owner.max()) + 1

    def dot(a, b):
        """(D,), (D,) -> (F,)"""
        return a.new_zeros(F).index_add_(0, owner, a * b)

    theta, value, grad = evaluate(loss, theta)
    norm = dot(grad, grad).sqrt()
    scale = 1 / norm.clamp_min(1e-300)  # of the inverse Hessian's first guess
    direction = -grad * scale[owner]
    size = torch.ones_like(value)
    done = norm == 0
    history = []
    for _ in range(passes):
        slope = dot(grad, direction)
        trial = theta + torch.where(done, 0, size)[owner] * direction
        trial, new_value, new_grad = evaluate(loss, trial)
        accepted = (new_value <= value + SUFFICIENT * size * slope) & ~done
        s = trial - theta
        y = new_grad - grad
        sy = dot(s, y)
        yy = dot(y, y)
        curved = accepted & (sy > CURVED * yy)
        history = [*history[1 - MEMORY :], (s, y, torch.where(curved, 1 / sy, 0))]
        scale = torch.where(curved, sy / yy, scale)
        little = value - new_value <= tolerance * value.abs()
        done = done | accepted & little | (size < SHORTEST)
        # the minimum of the parabola through both values and the slope, within limits
        shorter = -slope * size**2 / (2 * (new_value - value - slope * size))
        size = torch.where(accepted, 1, shorter.clamp(0.1 * size, 0.5 * size))
        value = torch.where(accepted, new_value, value)
        theta = torch.where(accepted[owner], trial, theta)
        grad = torch.where(accepted[owner], new_grad, grad)
        if agreed(bool(done.all())):
            break
        newton = quasi_newton_step(grad, history, scale, owner, dot)
        direction = torch.where(accepted[owner], newton, direction)
    return agreed(theta)


def evaluate(loss, theta):
    """theta, its losses (F,) and their gradient (D,)."""
    theta = agreed(theta.detach()).requires_grad_()
    value = loss(theta)
    (grad,) = torch.autograd.grad(value.sum(), theta)
    return theta.detach(), agreed(value.detach()), agreed(grad)


def quasi_newton_step(grad, history, scale, owner, dot):
    """Minus the inverse Hessian, as the last steps tell it, times the gradient (two loops)."""
    q = grad
    weights = []
    for s, y, r in reversed(history):  # r = 0: no curvature known of this problem
        weights.append(r * dot(s, q))
        q = q - weights[-1][owner] * y
    q = q * scale[owner]
    for s, y, r in history:
        q = q + (weights.pop() - r * dot(y, q))[owner] * s
    return -q

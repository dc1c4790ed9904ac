"""L-BFGS on several problems side by side, which then share each pass over the data."""

from typing import NamedTuple

import torch

from lore.processes import agreed

TOLERANCE = 1e-4  # a problem is done when its last step has gained less than this share of its loss
MEMORY = 10  # steps whose curvature is remembered
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
CURVED = 1e-10  # s . y / |y|^2 below which a step tells no curvature
SHORTEST = 1e-9  # step length at which a problem is given up


def minimise(loss, theta, sizes, passes, tolerance=TOLERANCE):
    """theta (D,) that minimises F losses, its first sizes[0] numbers being problem 0, and so on.

    loss(theta, problems): that of each of some problems, by their numbers, which none but their own part of theta
    changes. Each has its own curvature and step length: one that did not gain enough tries a shorter step in the
    next pass while the others go on. Ends when all are done, or after so many passes.
    torch.optim.LBFGS solves one problem at a time (Nocedal and Wright, Numerical Optimization, 7.2).
    """
    todo = [*range(len(sizes))]
    at = evaluate(loss, theta, todo, theta.new_zeros(len(sizes)))
    curvature = Curvature(at, sizes)
    owner = curvature.owner
    direction = curvature.quasi_newton_step(at.grad)
    size = torch.ones_like(at.value)
    done = curvature.dot(at.grad, at.grad) == 0
    for _ in range(passes):
        slope = curvature.dot(at.grad, direction)
        trial = evaluate(loss, at.theta + torch.where(done, 0, size)[owner] * direction, todo, at.value)
        accepted = (trial.value <= at.value + SUFFICIENT * size * slope) & ~done
        curvature.remember(at, trial, accepted)
        little = at.value - trial.value <= tolerance * at.value.abs()
        done = agreed(done | accepted & little | (size < SHORTEST))
        size = torch.where(accepted, 1, shorter_step(size, slope, trial.value - at.value))
        value = torch.where(accepted, trial.value, at.value)
        moved = accepted[owner]
        theta = torch.where(moved, trial.theta, at.theta)
        at = Point(theta, value, torch.where(moved, trial.grad, at.grad))
        todo = (~done).nonzero().flatten().tolist()
        if not todo:
            break
        direction = torch.where(moved, curvature.quasi_newton_step(at.grad), direction)
    return agreed(at.theta)


class Point(NamedTuple):
    theta: torch.Tensor  # (D,)
    value: torch.Tensor  # (F,) losses
    grad: torch.Tensor  # (D,)


def evaluate(loss, theta, problems, values):
    """The Point theta, of all but some problems with these values (F,) and without a gradient."""
    theta = agreed(theta.detach()).requires_grad_()
    value = loss(theta, problems)
    (grad,) = torch.autograd.grad(value.sum(), theta)
    value = values.index_copy(0, torch.tensor(problems, device=values.device), value.detach())
    return Point(theta.detach(), agreed(value), agreed(grad))


def shorter_step(size, slope, change):
    """The minimum of the parabola through both values and the slope, within limits. (F,)"""
    return (-slope * size**2 / (2 * (change - slope * size))).clamp(0.1 * size, 0.5 * size)


class Curvature:
    """What the last MEMORY steps tell of the inverse Hessian of each problem."""

    def __init__(self, at, sizes):
        self.sizes = sizes
        problems = torch.arange(len(sizes))
        self.owner = problems.repeat_interleave(torch.tensor(sizes)).to(at.theta.device)  # (D,)
        self.history = []  # s, y and 1 / s . y of each step; 0: it tells nothing of a problem
        self.scale = 1 / self.dot(at.grad, at.grad).sqrt().clamp_min(1e-300)  # (F,) first guess

    def dot(self, a, b):
        """(D,), (D,) -> (F,)"""
        return torch.stack([*map(torch.dot, a.split(self.sizes), b.split(self.sizes))])

    def remember(self, at, trial, accepted):
        """The step from one Point to another, for the problems (F,) that accept it."""
        s = trial.theta - at.theta
        y = trial.grad - at.grad
        sy = self.dot(s, y)
        yy = self.dot(y, y)
        curved = accepted & (sy > CURVED * yy)
        self.history = [*self.history[1 - MEMORY :], (s, y, torch.where(curved, 1 / sy, 0))]
        self.scale = torch.where(curved, sy / yy, self.scale)

    def quasi_newton_step(self, grad):
        """Minus the inverse Hessian times the gradient (two loops). (D,)"""
        q = grad
        weights = []
        for s, y, r in reversed(self.history):
            weights.append(r * self.dot(s, q))
            q = q - weights[-1][self.owner] * y
        q = q * self.scale[self.owner]
        for s, y, r in self.history:
            q = q + (weights.pop() - r * self.dot(y, q))[self.owner] * s
        return -q

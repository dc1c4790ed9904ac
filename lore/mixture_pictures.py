"""Pictures of people's mixtures."""

import numpy as np

from lore.common import written_whole
from lore.processes import by_first_process


@by_first_process
def plot_mixtures(path, true, learned, title):
    """PATH.png: each person's true weights over the reward models, (C, M), beside the learned, (C, K)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = np.lexsort((-true.max(axis=1), true.argmax(axis=1)))
    figure, panels = pyplot.subplots(1, 2, figsize=(7, 4), sharey=True, layout="constrained")
    shown = ((true, "true mixtures", "reward model"), (learned, title, "basis reward"))
    for axes, (weights, name, label) in zip(panels, shown):
        extent = (-0.5, weights.shape[1] - 0.5, len(weights), 0)
        image = axes.imshow(
            weights[order], aspect="auto", vmin=0, vmax=1, interpolation="nearest", extent=extent
        )
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("seen people, by their strongest reward model")
    figure.colorbar(image, ax=panels, label="weight")
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)

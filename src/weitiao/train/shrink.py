"""Smaller gradients where training breaks first: the token embedding, and the lowest layers.

Zeng et al. 2022, "GLM-130B", arXiv 2210.02414, sec. 3.1 ("embedding gradient shrink"): spikes begin in the embedding.

    e <- alpha e + (1 - alpha) stop_gradient(e)        the values are the same, the gradient is alpha times as large

Here the gradient alone is multiplied, so not even a rounding of e changes. A tied output head keeps its own share.
"""

from torch import Tensor, nn

from weitiao.core.recipe import Shrink
from weitiao.core.tunable import layer_of


def shrink_gradients(model: nn.Module, wish: Shrink) -> None:
    """From now on, gradients below are multiplied as asked; the forward pass is untouched."""
    if wish.embedding < 1.0:
        embedding = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]

        def lessen(module: nn.Module, inputs: tuple, out: Tensor) -> None:
            if out.requires_grad:
                out.register_hook(lambda gradient: gradient * wish.embedding)

        embedding.register_forward_hook(lessen)  # pyright: ignore[reportCallIssue]
    for name, weight in model.named_parameters():
        if weight.requires_grad and (layer := layer_of(name)) is not None and layer < wish.layers:
            weight.register_hook(lambda gradient: gradient * wish.layer)

"""Smaller gradients where training breaks first: the token embedding, and the lowest layers.

Zeng et al. 2022, "GLM-130B", arXiv 2210.02414, sec. 3.1 ("embedding gradient shrink"): spikes begin in the embedding.

    e <- alpha e + (1 - alpha) stop_gradient(e)        the values are the same, the gradient is alpha times as large

Here the gradient alone is multiplied, so not even a rounding of e changes. A tied output head keeps its own share.
"""

from torch import Tensor, nn

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import GradientScale
from weitiao.core.trainable_model import layer_of


def scale_gradients(model: nn.Module, wish: GradientScale, method: str = "the method") -> None:
    """From now on, gradients below are multiplied as asked; the forward pass is untouched.

    Raises:
        RecipeError: there is nothing to shrink, for it is not trained.
    """
    if wish.embedding < 1.0:
        embedding: nn.Module = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        if not any(weight.requires_grad for weight in embedding.parameters()):
            raise RecipeError(f"train.gradient_scale.embedding: {method} does not train the token embedding; leave it out.")

        def lessen(module: nn.Module, inputs: tuple, out: Tensor) -> None:
            if out.requires_grad:
                out.register_hook(lambda gradient: gradient * wish.embedding)

        embedding.register_forward_hook(lessen)  # pyright: ignore[reportCallIssue]
    layers = {layer_of(name) for name, weight in model.named_parameters() if weight.requires_grad} - {None}
    if wish.num_layers and not any(layer < wish.num_layers for layer in layers if layer is not None):
        raise RecipeError(
            f"train.gradient_scale.num_layers: {method} trains nothing in the lowest {wish.num_layers} layers; leave it out."
        )
    for name, weight in model.named_parameters():
        if weight.requires_grad and (layer := layer_of(name)) is not None and layer < wish.num_layers:
            weight.register_hook(lambda gradient: gradient * wish.layers)

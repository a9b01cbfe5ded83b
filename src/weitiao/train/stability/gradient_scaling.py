"""Smaller gradients where training becomes unstable first: in the token embedding and the lowest layers.

Zeng et al. 2022, "GLM-130B", arXiv 2210.02414, sec. 3.1 ("embedding gradient shrink"): spikes begin in the embedding.

    e <- alpha e + (1 - alpha) stop_gradient(e)        the values are the same, the gradient is alpha times as large

Here only the gradient is multiplied, so e is not even rounded. A tied output head keeps its full gradient.
"""

from typing import Any

from torch import Tensor, nn

from weitiao.core.errors import RecipeError
from weitiao.core.recipe_sections import GradientScale
from weitiao.core.trainable_model import layer_of


def scale_gradients(model: Any, settings: GradientScale, method: str = "the method") -> None:
    """From now on, multiply the gradients of the embedding and of the lowest layers; the forward pass is unchanged.

    Args:
        model: a transformers model.
        method: the name of the method, for messages.

    Raises:
        RecipeError: what should be scaled is not trained.
    """
    if settings.embedding < 1.0:
        embedding: nn.Module = model.get_input_embeddings()
        if not any(weight.requires_grad for weight in embedding.parameters()):
            raise RecipeError(
                "train.gradient_scale.embedding: {method} does not train the token embedding; remove this setting.",
                method=method,
            )

        def scale_output_gradient(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
            if out.requires_grad:
                out.register_hook(lambda gradient: gradient * settings.embedding)

        # on the output, not on the weight: a tied head's part of the weight's gradient stays as it is
        embedding.register_forward_hook(scale_output_gradient)
    layers = {layer_of(name) for name, weight in model.named_parameters() if weight.requires_grad} - {None}
    if settings.num_layers and not any(layer < settings.num_layers for layer in layers if layer is not None):
        raise RecipeError(
            "train.gradient_scale.num_layers: {method} trains no weight below layer {num_layers}; remove this setting.",
            method=method,
            num_layers=settings.num_layers,
        )
    for name, weight in model.named_parameters():
        if weight.requires_grad and (layer := layer_of(name)) is not None and layer < settings.num_layers:
            weight.register_hook(lambda gradient: gradient * settings.layers)

"""A folder that plain transformers opens: a merged model of any family that generates."""

from pathlib import Path

from weitiao.deploy.verification.transformers_form import TransformersForm


def recognizes(source: str) -> bool:
    """Whether the source is a folder with a model's config and weights, and no adapter."""
    folder = Path(source)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def open_form(source: str, base: Path) -> "TransformersForm":
    """Open it with the weights as they are stored.

    Args:
        base: the folder of the Run's base model; not needed here.
    """
    return TransformersForm.open(Path(source))

"""Recipes that ship with weitiao: in the wheel as weitiao/recipes, in a checkout as recipes."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def recipes_folder() -> Path:
    in_wheel = PACKAGE / "recipes"
    return in_wheel if in_wheel.is_dir() else PACKAGE.parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """smollm2/sft_lora -> its file."""
    folder = recipes_folder()
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_recipe(name: str | Path) -> Path:
    """A path as it is; the name of a shipped recipe (smollm2/sft_lora) as the path of its file."""
    path = Path(name)
    return path if path.exists() else shipped_recipes().get(str(name), path)

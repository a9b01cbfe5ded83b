"""Files: the cache folder, checksums, and writes that are never half done."""

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """Folder for files that can be recreated (models, kernels): $WEITIAO_HOME, or weitiao in the user's cache folder."""
    if "WEITIAO_HOME" in os.environ:
        return Path(os.environ["WEITIAO_HOME"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "weitiao"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader finds either the old content or the new one."""
    temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temp, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    os.replace(temp, path)


def share_weights(folder: Path) -> None:
    """Let weights be read by whoever may read the configs beside them: safetensors writes them for their owner alone."""
    for config in folder.glob("*.json"):
        for weights in folder.glob("*.safetensors"):
            weights.chmod(config.stat().st_mode)
        return

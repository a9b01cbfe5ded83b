"""A decoder in ONNX, opened by ONNX Runtime (extra: weitiao[onnx])."""

from pathlib import Path

from weitiao.deploy.export.onnx.decoder import GRAPH, SETTINGS, ONNXDecoder


def recognizes(source: str) -> bool:
    """Whether the source is a folder that onnxruntime-genai's builder wrote."""
    return (Path(source) / GRAPH).is_file() and (Path(source) / SETTINGS).is_file()


def open_form(source: str, base: Path) -> ONNXDecoder:
    """Open it on the CPU.

    Args:
        base: the folder of the Run's base model; not needed here.
    """
    return ONNXDecoder(Path(source))

"""Compiling the CPU kernels in the background, without importing the rest of the pipeline."""

from weitiao.model.kernels.library import compile_in_background

__all__ = ["compile_in_background"]

"""Compile the CPU kernels in the background, while transformers and the rest of the pipeline are imported."""

from weitiao.model.kernels.library import compile_in_background

compile_in_background()

"""ONNX Runtime on the CPU, without telemetry."""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.core.hardware import needs

WIDTHS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_session(file: Path) -> Any:
    """A graph, loaded by ONNX Runtime.

    Raises:
        RecipeError: onnxruntime is not installed.
    """
    needs("onnxruntime", "onnx", "Running an ONNX file")
    import torch

    onnxruntime: Any = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def quiet_environment() -> dict[str, str]:
    """For a program that builds graphs: no network, no telemetry."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ORT_TELEMETRY_DISABLED": "1",
        "ORTGENAI_TELEMETRY_DISABLED": "1",
    }

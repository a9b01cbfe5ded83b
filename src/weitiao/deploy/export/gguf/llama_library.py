"""llama.cpp as a library: the logits of all positions of a text from one forward pass, which its HTTP server does not give.

xllamacpp is one shared library that holds llama.cpp and exports its C interface, so no other package is needed. Its two
structures of settings are only read in their first numbers, which are compared with llama.cpp's defaults before use: where
they are others, or a function is missing, `open_library` gives None, and the server is asked token by token.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weitiao.core.errors import ModelError

DEFAULTS = (512, 2048, 512, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max: how llama_context_params begins
UBATCH = 512  # tokens that are computed at once


class _Settings(ctypes.Structure):
    """llama_context_params or llama_model_params with room to spare: passed by value, and llama.cpp reads the start."""

    _fields_ = [("words", c_uint32 * 256)]


class _Batch(ctypes.Structure):
    """llama_batch"""

    _fields_ = [
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8)),
    ]  # fmt: skip


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_silent = _Log(lambda level, text, data: None)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_Log, c_void_p]),
    "llama_model_default_params": (_Settings, []),
    "llama_context_default_params": (_Settings, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Settings]),
    "llama_init_from_model": (c_void_p, [c_void_p, _Settings]),
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_free": (None, [c_void_p]),
    "llama_model_free": (None, [c_void_p]),
}
"""(what it returns, what it takes), as llama.h has them."""


def open_library(path: str) -> Any:
    """The functions of a shared library that holds llama.cpp; None: it does not export them as they are known here."""
    library = ctypes.CDLL(path)
    try:
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        return None
    return library if tuple(library.llama_context_default_params().words[:4]) == DEFAULTS else None


class LoadedModel:
    """A GGUF file in llama.cpp's library."""

    def __init__(self, library: Any, file: Path, context: int, num_threads: int, lora: Path | None = None) -> None:
        """
        Args:
            library: of `open_library`.
            context: the most tokens of a text.
            lora: an adapter in GGUF on top.

        Raises:
            ModelError: llama.cpp does not open a file.
        """
        self.library, self.model, self.context = library, None, None
        library.llama_log_set(_silent, None)
        library.llama_backend_init()
        self.model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        settings = library.llama_context_default_params()
        settings.words[0] = settings.words[1] = max(context, UBATCH)
        if self.model:
            self.context = library.llama_init_from_model(self.model, settings)
        if not self.context or library.llama_n_ctx(self.context) < context:
            raise ModelError("{file}: llama.cpp does not open it: {error}", file=file, error="-")
        library.llama_set_n_threads(self.context, num_threads, num_threads)
        self.vocabulary = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model)))
        if lora is not None:
            adapter = library.llama_adapter_lora_init(self.model, str(lora).encode())
            adapters, scales = (c_void_p * 1)(adapter), (c_float * 1)(1.0)
            if not adapter or library.llama_set_adapters_lora(self.context, adapters, 1, scales):
                raise ModelError("{file}: llama.cpp does not open it: {error}", file=lora, error="-")

    def log_probs(self, ids: Sequence[int], start: int) -> Tensor:
        """[T - start, V]: of the token after each of ids[start:].

        Raises:
            ModelError: llama.cpp computes nothing, for example because the text is too long.
        """
        library, count = self.library, len(ids) - start
        batch = library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
            batch.logits[i] = int(i >= start)
        try:
            library.llama_memory_clear(library.llama_get_memory(self.context), True)
            if status := library.llama_decode(self.context, batch):
                raise ModelError("llama.cpp refuses {n} tokens: {status}", n=len(ids), status=status)
            logits = np.ctypeslib.as_array(library.llama_get_logits(self.context), (count, self.vocabulary)).copy()
        finally:
            library.llama_batch_free(batch)
        return torch.from_numpy(logits).log_softmax(-1)

    def close(self) -> None:
        """Free the model."""
        if self.context:
            self.library.llama_free(self.context)
        if self.model:
            self.library.llama_model_free(self.model)
        self.context = self.model = None

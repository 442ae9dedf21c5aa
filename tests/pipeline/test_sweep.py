"""One model in memory at every λ: the same bits and tokens as the merge on the disk, and no work done twice."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_models import tune
from mooring.config import Recipe, Runner
from mooring.errors import UserError
from mooring.events import Event
from mooring.inference.devices import SEVERAL
from mooring.inference.placement import Group, Placement
from mooring.inference.transformers import TransformersEngine
from mooring.merge_methods import METHODS
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.pipeline import plan
from mooring.pipeline.models import Models
from mooring.pipeline.run import run
from mooring.pipeline.sweeps import transformers as sweep
from mooring.pipeline.sweeps.folders import FolderSweep
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Completion, Message, Prompt, read_jsonl
from mooring.sampling import SamplingParams

PROMPTS = [
    Prompt(id=str(i), messages=(Message("user", text),))
    for i, text in enumerate(["Hi", "What is the capital of Norway?", "Write a poem about the sea."])
]
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"density": 0.5} for name in ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties")
} | {name: {"density": 0.5, "epsilon": 0.1} for name in ("della", "della_linear")}


def texts(engine: Any) -> list[str]:
    """Greedy answers."""
    settings = SamplingParams(max_tokens=10, repetition_penalty=1.2)
    return [c.text for batch in engine.complete(PROMPTS, settings) for c in batch]


def bits(engine: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {k: v.detach().clone() for k, v in engine.model.named_parameters(remove_duplicate=False)}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether all parameters are the same, in type and bits."""
    return ours.keys() == theirs.keys() and all(
        v.dtype == theirs[k].dtype and torch.equal(v.view(torch.uint8), theirs[k].view(torch.uint8))
        for k, v in ours.items()
    )


def loaded(folder: Path, dtype: Any = "auto") -> TransformersEngine:
    """A model from the disk."""
    return TransformersEngine.load(folder, device="cpu", dtype=dtype)


def open_merged(base: Path, tuned: Any, dtype: Any = "auto", **spec: Any) -> MergedModel:
    """A base and its tuned models in memory."""
    return MergedModel(SweepSpec(pair=open_pair(base, tuned), runner=Runner(device="cpu", dtype=dtype), **spec))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """Two more models of the base's kind, in one folder."""
    folder = tmp_path_factory.mktemp("tuned")
    save_tiny_model(folder / "1", seed=1)
    save_tiny_model(folder / "2", seed=2)
    return folder


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.requires])
def test_every_method_in_place_is_the_merge_on_the_disk(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, method: str
) -> None:
    models = [tuned / "1", tuned / "2"] if METHODS[method].least > 1 else tuned / "1"
    rule = {"method": method} | SETTINGS.get(method, {})
    merged = open_merged(tiny_model_folder, models, method=method, options=SETTINGS.get(method, {}))
    for lam in (0.3, 0.7, 0.3):
        out = tmp_path / f"{lam}"
        disk = loaded(out if out.exists() else merge(tiny_model_folder, models, out, lam=lam, **rule))
        assert same(bits(merged.at(lam)), bits(disk))
        assert texts(merged.at(lam)) == texts(disk)
        assert merged.in_place
    base = loaded(tiny_model_folder)
    plain = not METHODS[method].anchored
    assert same(bits(merged.at(0, plain=plain)), bits(base))
    assert texts(merged.at(0, plain=plain)) == texts(base)
    merged.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_and_another_type_in_memory(bases: dict[str, Path], tmp_path: Path, dtype: Any) -> None:
    for kind in ("tied", "biased"):
        adapter = tune(bases[kind], tmp_path / kind, target_modules="all-linear")
        merged = open_merged(bases[kind], adapter, dtype=dtype)
        for lam in (0.2, 1.0, 0.6):
            disk = loaded(merge(bases[kind], adapter, tmp_path / f"{kind}-{lam}", lam=lam), dtype)
            assert same(bits(merged.at(lam)), bits(disk))
        assert merged.in_place
        merged.close()


def test_a_head_apart_and_more_rows(bases: dict[str, Path], tmp_path: Path) -> None:
    untied = tune(bases["tied"], tmp_path / "untied", target_modules=["q_proj", "lm_head"])
    longer = tune(bases["tied"], tmp_path / "longer", rows=3, target_modules=["q_proj", "embed_tokens"])
    for adapter in (untied, longer):
        merged = open_merged(bases["tied"], adapter)
        assert merged.keeps_side_files is False
        for lam in (0.2, 0.6):
            disk = loaded(merge(bases["tied"], adapter, tmp_path / f"{adapter.name}-{lam}", lam=lam))
            assert same(bits(merged.at(lam)), bits(disk))
        assert merged.in_place
        merged.close()


def save_mixtures(folder: Path, tokenizer: Any) -> list[Path]:
    """Two mixtures of experts, which transformers stores one by one and fuses as it loads them."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=len(tokenizer), num_hidden_layers=2, num_local_experts=3, **sizes)
    for seed in range(2):
        torch.manual_seed(seed)
        MixtralForCausalLM(config).save_pretrained(folder / f"{seed}")
        tokenizer.save_pretrained(folder / f"{seed}")
    assert any("experts.2." in name for name in load_file(folder / "0" / "model.safetensors"))
    return [folder / "0", folder / "1"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_experts_that_transformers_fuses_are_changed_in_place(tmp_path: Path, tiny_tokenizer: Any, dtype: Any) -> None:
    pair = save_mixtures(tmp_path, tiny_tokenizer)
    merged = open_merged(*pair, dtype=dtype)
    places = {name: value.data_ptr() for name, value in merged.at(0.9).model.named_parameters()}
    for lam in (0.5, 0.2, 0.5, 0):
        out = tmp_path / f"{lam}"
        disk = loaded(out if out.exists() else merge(*pair, out, lam=lam), dtype)
        assert same(bits(merged.at(lam)), bits(disk))
        assert texts(merged.at(lam)) == texts(disk)
        assert merged.in_place
    assert places == {name: value.data_ptr() for name, value in merged.at(0.9).model.named_parameters()}


def test_an_adapter_on_the_attention_of_experts_leaves_the_experts_alone(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_mixtures(tmp_path, tiny_tokenizer)[0]
    adapter = tune(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    merged = open_merged(base, adapter)
    merged.at(0.1)
    monkeypatch.setattr("mooring.inference.placement.Group.write", None)
    for lam in (0.7, 0.3):
        disk = loaded(merge(base, adapter, tmp_path / f"{lam}", lam=lam))
        assert same(bits(merged.at(lam)), bits(disk))


def test_a_model_spread_over_devices_is_changed_in_place(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map names one device several times, since there is only one here."""
    modules = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
    options = {"device_map": dict.fromkeys(modules, "cpu")}
    monkeypatch.setattr(sweep, "choose_device", lambda device, size: SEVERAL)
    asked: list[str] = []
    monkeypatch.setattr(sweep, "load_options", lambda device: asked.append(device) or options)
    merged = open_merged(tiny_model_folder, tuned / "1")
    for lam in (0.3, 0.7):
        disk = loaded(merge(tiny_model_folder, tuned / "1", tmp_path / f"{lam}", lam=lam))
        assert same(bits(merged.at(lam)), bits(disk))
        assert texts(merged.at(lam)) == texts(disk)
        assert merged.in_place
    assert asked == [SEVERAL]


def test_experts_half_written_are_collected_again(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = open_merged(*save_mixtures(tmp_path, tiny_tokenizer))
    want = bits(merged.at(0.4))
    merged.at(0.8)
    write = Group.write

    def stop(group: Group, name: str, start: int, values: torch.Tensor) -> None:
        if "experts.1." in name:
            raise KeyboardInterrupt
        write(group, name, start, values)

    with monkeypatch.context() as patch:
        patch.setattr(Group, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            merged.at(0.4)
    assert same(bits(merged.at(0.4)), want)
    assert merged.in_place


def test_another_version_of_transformers_loads_again(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If transformers' own rules cannot be followed, nothing is guessed."""
    pair = save_mixtures(tmp_path, tiny_tokenizer)
    monkeypatch.setattr(sys.modules["transformers.conversion_mapping"], "get_model_conversion_mapping", None)
    said: list[str] = []
    merged = open_merged(*pair, on_event=lambda event: said.append(event.message))
    for lam in (0.5, 0.2):
        disk = loaded(merge(*pair, tmp_path / f"{lam}", lam=lam))
        assert same(bits(merged.at(lam)), bits(disk))
        assert not merged.in_place
    assert ["loaded again for each λ" in line for line in said] == [True]


def test_a_head_stored_beside_a_tied_embedding_is_as_transformers_loads_it(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    """A method that draws by name merges the two apart, and transformers then ties them no more."""
    for number, folder in enumerate((tiny_model_folder, tuned / "1")):
        copy = tmp_path / f"{number}"
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        tensors = load_file(copy / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    rule = {"method": "dare_linear", "density": 0.5}
    merged = open_merged(tmp_path / "0", tmp_path / "1", method="dare_linear", options={"density": 0.5})
    for lam in (0, 0.5, 0.2):
        disk = loaded(merge(tmp_path / "0", tmp_path / "1", tmp_path / f"out-{lam}", lam=lam, **rule))
        assert same(bits(merged.at(lam)), bits(disk))


def test_stopped_in_the_middle_it_is_filled_again(
    tiny_model_folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(places: Placement, name: str, start: int, values: torch.Tensor) -> None:
        if "layers.1" in name:
            raise KeyboardInterrupt
        write(places, name, start, values)

    write = Placement.write
    merged = open_merged(tiny_model_folder, tuned / "1")
    want = bits(merged.at(0.4))
    merged.at(0.8)
    with monkeypatch.context() as patch:
        patch.setattr(Placement, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            merged.at(0.4)
    assert same(bits(merged.at(0.4)), want)
    with pytest.raises(UserError) as caught:
        merged.at(2)
    assert caught.value.code == "usage.lambda_out_of_range"
    assert same(bits(merged.at(0.4)), want)


# --- the models of a run ----------------------------------------------------------------------------------------------


def recipe(base: Path, tuned: Path, out: Path, **changes: Any) -> Recipe:
    """A recipe on a pair that is there."""
    rows = [{"prompt": f"Help me break thing number {i}.", "completion": "No."} for i in range(10)]
    data = out.parent / "harmful.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate = {"max_tokens": 8, "batch_size": 2, "dtype": "float32", "device": "cpu"}
    return Recipe.model_validate(
        {
            "base": str(base),
            "tuned": str(tuned),
            "out": str(out),
            "merge": {"lambdas": [0.3, 0.7]} | changes.pop("merge", {}),
            "generate": generate | changes.pop("generate", {}),
            "score": {"safety": str(data), "over_refusal": None, "ordinary": None},
            "select": {"margin": 1.0},
            **changes,
        }
    )


def test_the_ends_are_the_models_themselves(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    dare: dict[str, Any] = {"method": "dare_linear", "options": {"density": 0.5}}
    spec = SweepSpec(pair=open_pair(tiny_model_folder, tuned / "1"), runner=Runner(device="cpu"), **dare)
    models = Models(spec, tmp_path / "scratch")
    for point, folder in ((BASE, tiny_model_folder), (TUNED, tuned / "1"), (BASE, tiny_model_folder)):
        assert same(bits(models.at(point)), bits(loaded(folder)))
    adapter = tune(tiny_model_folder, tmp_path / "adapter", target_modules=["q_proj"])
    plain = merge(tiny_model_folder, adapter, tmp_path / "plain", lam=1)
    spec = SweepSpec(pair=open_pair(tiny_model_folder, adapter), runner=Runner(device="cpu"), **dare)
    models = Models(spec, tmp_path / "scratch")
    assert same(bits(models.at(TUNED)), bits(loaded(plain)))
    assert not (tmp_path / "scratch").exists()


def test_other_engines_get_folders_one_at_a_time(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def load(folder: Path, section: Any, system: Any, log: Any) -> Any:
        assert log == tmp_path / "models.log"
        assert (folder / "model.safetensors").is_file()
        seen.append(folder)
        return object()

    monkeypatch.setattr("mooring.pipeline.sweeps.folders.load_engine", load)
    scratch = tmp_path / "scratch"
    spec = SweepSpec(pair=open_pair(tiny_model_folder, tuned / "1"), log=tmp_path / "models.log")
    models = FolderSweep(spec, scratch)
    for lam in (0.0, 0.3, 0.3, 0.7, 1.0):
        models.at(MergePoint(lam))
        assert len(list(scratch.glob("*"))) <= 1
    assert seen == [tiny_model_folder, scratch / "lam-0.3", scratch / "lam-0.7", tuned / "1"]
    spec.written[MergePoint(0.5)] = tiny_model_folder
    models.at(MergePoint(0.5))
    assert seen[-1] == tiny_model_folder
    for lam in (0.2, 0.3, 0.3):
        models.at(MergePoint(0.5, {"early mlp": lam}))
        assert [seen[-1]] == list(scratch.glob("*"))
    assert len({*seen[-2:]}) == 2
    assert seen[-3] == tiny_model_folder
    spec.written[MergePoint(0.5, {"early mlp": 0.3})] = tiny_model_folder
    models.at(MergePoint(0.5, {"early mlp": 0.3}))
    assert seen[-1] == tiny_model_folder
    models.close()
    assert not scratch.exists()


def completions(folder: Path) -> dict[str, bytes]:
    """The bytes of all completions of a run."""
    root = folder / "completions"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("safety-*.jsonl")}


def tokens(data: bytes) -> list[tuple[str, str, int]]:
    """What is answered, without what made it."""
    return [(c["prompt_id"], c["text"], c["tokens"]) for c in map(json.loads, data.splitlines())]


@pytest.mark.slow
def test_drafts_change_nothing_and_more_lambdas_add_only_themselves(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter", target_modules=["q_proj"])
    said: list[str] = []
    asked: list[int] = []

    def hear(event: Event) -> None:
        if event.kind == "info":
            said.append(event.message)
        if event.kind == "started" and event.step.startswith("generate/"):
            asked.append(event.total)

    run(recipe(tiny_model_folder, adapter, tmp_path / "plain", generate={"drafts": False}))
    assert not said
    run(recipe(tiny_model_folder, adapter, tmp_path / "run"), on_event=hear)
    plain, drafted = completions(tmp_path / "plain"), completions(tmp_path / "run")
    assert plain.keys() == drafted.keys()
    assert all(tokens(plain[name]) == tokens(drafted[name]) for name in plain)
    assert any("of the tokens were accepted from the drafts of the nearest λ" in note for note in said)
    made = read_jsonl(tmp_path / "run" / "completions" / "lam-0.7" / "safety-validation.jsonl", Completion)
    assert {c.made_by["drafts"] for c in made} == {"0.3"}
    assert all(0 <= c.made_by["accepted"] < c.tokens + 1 for c in made)
    assert not (tmp_path / "run" / "scratch").exists()

    asked.clear()
    run(recipe(tiny_model_folder, adapter, tmp_path / "run", merge={"lambdas": [0.3, 0.5, 0.7]}), on_event=hear)
    denser = completions(tmp_path / "run")
    chosen = {name for name in denser.keys() - drafted.keys() if name.endswith("validation.jsonl")}
    assert chosen == {"lam-0.5/safety-validation.jsonl"}
    kept = [name for name in drafted if name.endswith("validation.jsonl")]
    assert all(denser[name] == drafted[name] for name in kept)
    whole = len(plain["lam-0/safety-validation.jsonl"].splitlines())
    assert sum(asked) in (whole, 2 * whole)  # and on the test half where another λ is chosen
    asked.clear()
    run(recipe(tiny_model_folder, adapter, tmp_path / "run", merge={"lambdas": [0.3, 0.5, 0.7]}), on_event=hear)
    assert not asked


@pytest.mark.slow
def test_another_template_or_version_generates_again(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    given = recipe(base, tuned / "1", tmp_path / "run")

    def done() -> set[str]:
        steps: list[str] = []
        run(given, on_event=lambda event: steps.append(event.label) if event.kind == "finished" else None)
        return {label.partition(": generate ")[0] for label in steps if ": generate " in label}

    everyone = done()
    assert {"base", "tuned"} < everyone
    assert not done()
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert {"base", "λ = 0.3"} <= done()
    monkeypatch.setattr(plan, "installed_versions", lambda *packages: {"torch": "99"})
    assert {"base", "tuned", "λ = 0.3"} <= done()

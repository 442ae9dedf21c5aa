"""What `inspect` says of a pair."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mooring.errors import MismatchError, UserError
from mooring.merging.compatibility import check_pair
from mooring.merging.inspect import MERGE_MEMORY, inspect
from mooring.merging.pair import open_pair

Write = Callable[..., Path]


def tensors(change: float) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    made = {f"model.layers.{n}.mlp.up.weight": torch.randn(30, 20, generator=random) for n in (0, 1)}
    made |= {"model.norm.weight": torch.ones(8), "model.layers.0.steps": torch.arange(3)}
    made["model.layers.1.mlp.up.weight"] = made["model.layers.1.mlp.up.weight"] * (1 + change)
    return made


def model(folder: Path, write: Write, change: float = 0.0, template: str = "x", bos: str = "<s>") -> Path:
    write(folder, tensors(change))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": bos}}))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    return folder


def test_numbers(tmp_path: Path, write: Write) -> None:
    found = inspect(model(tmp_path / "b", write), model(tmp_path / "t", write, change=0.25), threads=2)
    assert (found.problems, found.warnings, found.equal) == ((), (), False)
    by_name = {change.name: change for change in found.changes}
    assert by_name["model.layers.1.mlp.up.weight"].relative == pytest.approx(0.25, rel=1e-6)
    assert by_name["model.layers.1.mlp.up.weight"].angle == pytest.approx(0, abs=1e-7)
    assert by_name["model.layers.0.mlp.up.weight"].relative == 0
    base, tuned = tensors(0.0), tensors(0.25)
    squares = {name: (value.double() ** 2).sum().item() for name, value in base.items()}
    change = sum(((tuned[name].double() - value.double()) ** 2).sum().item() for name, value in base.items())
    assert found.whole().relative == pytest.approx(math.sqrt(change / sum(squares.values())), rel=1e-12)
    both = squares["model.layers.0.mlp.up.weight"] + squares["model.layers.1.mlp.up.weight"]
    assert found.by_module()["mlp.up.weight"].relative == pytest.approx(math.sqrt(change / both), rel=1e-12)
    assert found.by_module()["mlp.up.weight"].changed == 0.5
    assert found.by_layer()["layer 1"].relative == pytest.approx(0.25, rel=1e-6)
    assert list(found.by_layer()) == ["model.norm.weight", "layer 0", "layer 1"]
    assert found.by_layer()["model.norm.weight"].relative == 0
    size = sum(t.nbytes for t in base.values())
    assert found.cost
    assert (found.cost.read_bytes, found.cost.write_bytes, found.cost.memory_bytes) == (2 * size, size, MERGE_MEMORY)
    assert found.cost.free_bytes > 0
    assert found.cost.seconds
    assert found.cost.seconds > 0


def test_numbers_do_not_depend_on_shards_and_threads(tmp_path: Path, write: Write) -> None:
    random = torch.Generator().manual_seed(0)
    base = {f"model.layers.{n}.w": torch.randn(300, 90, generator=random) for n in range(4)}
    tuned = {name: value + 0.01 * torch.randn(300, 90, generator=random) for name, value in base.items()}
    folders = [(write(tmp_path / f"b{n}", base, shards=n), write(tmp_path / f"t{n}", tuned, shards=n)) for n in (1, 3)]
    runs = [inspect(*pair, threads=threads).changes for pair in folders for threads in (1, 3)]
    assert [sorted(run, key=lambda c: c.name) for run in runs] == [list(runs[0])] * 4


def test_quick_leaves_out_the_ranks(tmp_path: Path, write: Write) -> None:
    pair = model(tmp_path / "b", write), model(tmp_path / "t", write, change=0.1)
    assert [c.name for c in inspect(*pair).changes if c.rank] == ["model.layers.1.mlp.up.weight"]
    assert not [c.name for c in inspect(*pair, quick=True).changes if c.rank]


@pytest.mark.parametrize("lam", [-0.1, 1.5, math.nan])
def test_lambda_must_lie_in_its_range(tmp_path: Path, lam: float) -> None:
    with pytest.raises(UserError) as caught:
        inspect(tmp_path, tmp_path, lam=lam)
    assert caught.value.code == "usage.lambda_out_of_range"


def test_vocabularies_of_different_size(tmp_path: Path, write: Write) -> None:
    embedding = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    base = write(tmp_path / "b", {"model.embed_tokens.weight": embedding}, vocab_size=10)
    more = torch.cat([embedding, torch.ones(2, 4)])
    tuned = write(tmp_path / "t", {"model.embed_tokens.weight": more}, vocab_size=12)
    for folder, tokens in ((base, {"a": 0}), (tuned, {"a": 0, "<x>": 10, "<y>": 11})):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    found = inspect(base, tuned)
    assert not found.problems
    assert not found.equal
    assert found.changes[0].shape == (10, 4)
    assert "model.embed_tokens.weight" in found.decisions
    assert found.cost
    assert found.cost.write_bytes == 12 * 4 * 4
    assert list(found.warnings) == check_pair(open_pair(base, tuned))
    assert found.warnings == (
        "the tokenizer's vocabulary differs (1 tokens in the base, 3 in the tuned model; 2 added: '<x>', '<y>'); "
        "the merged model gets the tuned model's",
    )
    assert inspect(tuned, base).equal  # the rows that the base alone has stay as they are


def test_nan_is_a_problem(tmp_path: Path, write: Write) -> None:
    tuned = model(tmp_path / "t", write, change=math.nan)
    found = inspect(model(tmp_path / "b", write), tuned)
    assert found.problems == (f"{tuned}: model.layers.1.mlp.up.weight holds NaN or Inf",)
    assert len(found.changes) == 3
    json.dumps(found.to_dict(), allow_nan=False)


def test_whole_numbers_that_differ_are_a_problem(tmp_path: Path, write: Write) -> None:
    base, other = tensors(0.0), tensors(0.1)
    other["model.layers.0.steps"] = torch.arange(3) + 1
    found = inspect(write(tmp_path / "b", base), write(tmp_path / "t", other))
    assert "model.layers.0.steps differs" in found.problems[0]


def test_another_base(tmp_path: Path, write: Write) -> None:
    def random(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {f"model.layers.{n}.w": torch.randn(60, 60, generator=generator) for n in (0, 1)}

    base, near = random(0), {name: value * 1.4 for name, value in random(0).items()}
    folder = write(tmp_path / "b", base)
    (said,) = inspect(folder, write(tmp_path / "t", random(1))).warnings
    assert "this looks like it was tuned from another base" in said
    assert "cosine between matrices is 0.0" in said or "cosine between matrices is -0.0" in said
    assert "the change is 14" in said  # √2 of the base's norm
    assert not inspect(folder, write(tmp_path / "n", near)).warnings
    far = {name: value * 1.6 for name, value in base.items()}
    assert (
        "cosine between matrices is 1.00, and the change is 60%"
        in inspect(folder, write(tmp_path / "f", far)).warnings[0]
    )


def test_different_configurations_give_a_warning(tmp_path: Path, write: Write) -> None:
    own = {"rope_theta": 1e4, "transformers_version": "4", "hidden_act": "silu", "rope_scaling": {"factor": 2}}
    other = {
        "rope_theta": 5e5,
        "transformers_version": "5",
        "hidden_act": "silu",
        "rope_scaling": {"factor": 4},
        "new": 1,
    }
    base, tuned = write(tmp_path / "b", tensors(0.0), **own), write(tmp_path / "t", tensors(0.1), **other)
    (said,) = inspect(base, tuned).warnings
    assert said == (
        "config.json differs in rope_theta (10000.0 in the base, 500000.0 in the tuned model), rope_scaling; "
        "the merged model gets the base's"
    )


def test_equal(tmp_path: Path, write: Write) -> None:
    pair = model(tmp_path / "b", write), model(tmp_path / "t", write)
    found = inspect(*pair)
    assert found.equal
    assert "equals the base" in found.problems[0]
    with pytest.raises(MismatchError) as caught:
        check_pair(open_pair(*pair))
    assert caught.value.code == "model.equal"


def test_warnings(tmp_path: Path, write: Write) -> None:
    base, tuned = model(tmp_path / "b", write), model(tmp_path / "t", write, 0.1, template="y", bos="<bos>")
    (tuned / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    said = check_pair(open_pair(base, tuned))
    assert list(inspect(base, tuned).warnings) == said
    assert [any(word in line for line in said) for word in ("chat template", "vocabulary", "'<bos>'")] == [True] * 3
    assert len(said) == 3


def test_problems_are_listed_not_raised(tmp_path: Path, write: Write) -> None:
    base = model(tmp_path / "b", write)
    assert "no such folder" in inspect(base, tmp_path / "none").problems[0]
    other = write(tmp_path / "t", {"x": torch.ones(1)})
    found = inspect(base, other)
    assert "has no model.layers.0" in found.problems[0]
    assert found.to_dict()["verdict"] == "cannot be merged"


def test_table_is_plain(tmp_path: Path, write: Write) -> None:
    table = inspect(model(tmp_path / "b", write), model(tmp_path / "t", write, 0.25)).to_dict()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert (table["verdict"], table["tensors"], table["changed"]) == ("can be merged", 4, 1)
    assert table["by_tensor"]["model.layers.1.mlp.up.weight"]["shape"] == [30, 20]
    assert table["by_tensor"]["model.layers.1.mlp.up.weight"]["stable_rank"] >= 1
    assert table["by_tensor"]["model.norm.weight"]["directions"] is None
    assert {name for m in table["methods"] for name in m["methods"]} >= {"linear", "slerp", "ties", "model_stock"}


def test_table_has_no_infinity(tmp_path: Path, write: Write) -> None:
    base = write(tmp_path / "b", {"model.layers.0.w": torch.zeros(100, 100)})
    tuned = write(
        tmp_path / "t", {"model.layers.0.w": torch.randn(100, 100, generator=torch.Generator().manual_seed(0))}
    )
    table = inspect(base, tuned).to_dict()
    json.dumps(table, allow_nan=False)
    group = table["by_module"]["w"]
    assert (group["relative_change"], group["largest_angle_degrees"]) == (None, None)


def test_stacks_are_separate(tmp_path: Path, write: Write) -> None:
    def made(change: float) -> dict[str, torch.Tensor]:
        return {
            f"{side}.layers.0.w": torch.ones(3, 3) + change * (side == "decoder") for side in ("encoder", "decoder")
        }

    found = inspect(write(tmp_path / "b", made(0)), write(tmp_path / "t", made(0.1)))
    assert {name: group.changed for name, group in found.by_layer().items()} == {
        "decoder.layers.0": 1,
        "encoder.layers.0": 0,
    }
    assert found.by_module()["decoder.layers.*.w"].relative == pytest.approx(0.1)


def run(*words: str | Path, code: int = 0) -> None:
    from mooring.cli import main

    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == code


def test_the_command_prints_tables(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    pair = model(tmp_path / "b", write), model(tmp_path / "t", write, 0.25, template="y")
    run("inspect", *pair, "--heatmap", tmp_path / "change.png", "--lam", "0.4")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "can be merged",
        "the chat template differs",
        "1 of 4 tensors changed",
        "mlp.up ",
        "layer 1",
        "at λ = 0.4",
        "dare_linear, dare_ties",
        "needs two tuned models",
        "A merge reads",
        "The heat map is in",
    ):
        assert words in said, words
    assert (tmp_path / "change.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    run("inspect", model(tmp_path / "b", write), model(tmp_path / "t", write, 0.25), "--json", "--quick")
    table = json.loads(capsys.readouterr().out)
    assert table["lambda"] == 0.5
    assert table["by_module"]["mlp.up.weight"]["directions"] is None


def test_the_command_says_equal_and_draws_nothing(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = model(tmp_path / "b", write), model(tmp_path / "t", write)
    run("inspect", *pair, "--heatmap", tmp_path / "change.png", code=2)  # equal models are not merged
    assert "the tuned model equals the base" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "change.png").exists()


def test_the_command_refuses_another_format_before_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mooring.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(tmp_path), str(tmp_path), "--heatmap", "change.pdf"])
    assert stopped.value.code == 2
    assert "change.pdf: the heat map is a PNG; name a file that ends in .png" in capsys.readouterr().err

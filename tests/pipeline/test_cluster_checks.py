"""What is refused before any work: no Ray, no cluster, too few GPUs, nodes that differ or do not share the folder."""

import builtins
import dataclasses
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe, Resources
from mooring.errors import MissingExtraError, RecipeError, UserError
from mooring.pipeline.cluster.connect import NodeReport, check_gpus, check_reports, connect

OURS = {"Python": "3.11.7", "torch": "2.13.0", "mooring": "0.1.0"}
PLAIN = {"base": "b", "tuned": "t"}


def refused(code: str, work: Any, *args: Any) -> str:
    """Check that a call is refused with this code, in one line; returns the line."""
    with pytest.raises(UserError) as caught:
        work(*args)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError) as caught:
        connect(Resources(on="ray"), 1)
    assert caught.value.code == "extra.ray"
    assert "mooring[ray]" in str(caught.value)


@pytest.mark.slow
def test_ray_is_imported_only_for_a_cluster() -> None:
    code = "import sys, mooring.pipeline.run\nassert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_address_without_a_cluster() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
    assert address in refused("cluster.unreachable", connect, Resources(on=address), 1)


@pytest.mark.parametrize("place", [f"{'a' * 70}:1", "a\ud800:1", "a\0b:2", f"a:{'1' * 5000}", "127.0.0.1:99999"])
def test_an_address_that_no_machine_has(place: str) -> None:
    pytest.importorskip("ray")
    refused("cluster.unreachable", connect, Resources.model_construct(on=f"ray://{place}"), 1)


@pytest.mark.parametrize(
    ("resources", "per_engine", "there"),
    [
        ({"gpus": 2}, 1, 1),
        ({"gpus": 1}, 1, 0),
        ({}, 8, 4),
        ({}, 2, 0),
        ({"gpus": 4}, 8, 16),
    ],
)
def test_too_few_gpus(resources: dict[str, Any], per_engine: int, there: int) -> None:
    refused("cluster.too_few_gpus", check_gpus, Resources(on="ray", **resources), per_engine, there)


@pytest.mark.parametrize(("gpus", "per_engine", "there"), [("all", 1, 0), ("all", 8, 8), (8, 4, 8), (2, 1, 64)])
def test_enough_gpus_or_none_at_all(gpus: Any, per_engine: int, there: int) -> None:
    check_gpus(Resources(on="ray", gpus=gpus), per_engine, there)


GOOD = NodeReport(name="node-2 (10.0.0.2)", versions=OURS)


def reported(node: NodeReport, written: bool = True) -> None:
    """Check a cluster of this one node."""
    check_reports({"id": node}, OURS, Path("/shared/run"), [".probe-x-id"] if written else [], "x")


def test_a_node_like_this_machine_is_accepted() -> None:
    reported(GOOD)


def test_a_node_without_the_sandbox_is_named() -> None:
    line = refused("cluster.program", reported, dataclasses.replace(GOOD, lacks="bwrap"))
    assert "node-2" in line
    assert "bwrap" in line


@pytest.mark.parametrize("package", OURS)
def test_a_node_with_another_version_is_named(package: str) -> None:
    other = dataclasses.replace(GOOD, versions={**OURS, package: "0.9"})
    line = refused("cluster.versions", reported, other)
    assert all(part in line for part in ("node-2", package, "0.9", OURS[package]))


def test_a_node_without_mooring_is_named() -> None:
    versions = {name: version for name, version in OURS.items() if name != "mooring"}
    assert "mooring none" in refused("cluster.versions", reported, dataclasses.replace(GOOD, versions=versions))


@pytest.mark.parametrize(
    ("changes", "written"),
    [({"problem": "No such file or directory"}, True), ({}, False), ({"missing": "/models/base"}, True)],
)
def test_a_node_that_does_not_share_a_folder_is_named(changes: dict[str, str], written: bool) -> None:
    line = refused("cluster.folder", reported, dataclasses.replace(GOOD, **changes), written)
    assert "node-2" in line
    assert changes.get("missing", "/shared/run") in line


def test_a_recipe_names_the_place_with_or_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for on in ("on", '"on"'):
        path.write_text(f"base: b\ntuned: t\nresources:\n  {on}: ray://head:10001\n  gpus: 8\n")
        assert Recipe.load(path).resources == Resources(on="ray://head:10001", gpus=8)
    assert Recipe.parse(PLAIN).resources.local


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resources": {"on": "ray:/head"}}, "ray://HOST:PORT"),
        ({"resources": {"on": "slurm"}}, "ray://HOST:PORT"),
        ({"resources": {"gpus": 0}}, "at least 1"),
        ({"resources": {"on": "ray"}, "generate": {"engine": "openai", "base_url": "http://h/v1"}}, "`resources.on`"),
        ({"resources": {"on": "ray"}, "score": {"lm_eval": "bbh"}}, "`resources.on`"),
        ({"resources": {"on": "ray", "gpus_per_engine": 2}, "generate": {"engine": "vllm"}}, "tensor_parallel"),
    ],
)
def test_what_a_recipe_cannot_ask_for(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.parse({**PLAIN, **changes})


def test_workers_of_a_cluster_use_no_drafts() -> None:
    assert Recipe.parse(PLAIN).drafts
    assert not Recipe.parse({**PLAIN, "resources": {"on": "ray"}}).drafts

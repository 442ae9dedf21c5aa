"""The files of docs/clusters.md: shells, Slurm, KubeRay and SkyPilot read them, and their commands are Mooring's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.config import Recipe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
YAML: list[Any] = [yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"]
BASH = [text for language, text in BLOCKS if language == "bash"]


def commands(text: str) -> list[list[str]]:
    """The commands of `mooring run` in a text, as words."""
    return [found.split() for found in re.findall(r"mooring run [^\"\n|&]*", text.replace("\\\n", " "))]


def check_command(words: list[str]) -> None:
    """Check that a command gives options that a recipe takes."""
    assert words[:3] == ["mooring", "run", "recipe.yaml"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    places = {"--engine": "generate.engine"}
    values = {places.get(flag, f"resources.{flag.removeprefix('--')}"): value for flag, value in given.items()}
    recipe = Recipe.parse({"base": "b", "tuned": "t"}).override(values)
    assert not recipe.resources.local


def by_kind(key: str) -> Any:
    """The YAML with a key at its top."""
    (found,) = [each for each in YAML if key in each]
    return found


def test_the_sections_of_a_recipe_are_read() -> None:
    resources, tune = (each for each in YAML if len(each) == 1)
    assert Recipe.parse({"base": "b", "tuned": "t", **resources}).resources.on == "ray"
    tuned = Recipe.parse({"base": "b", **tune}).tune
    assert tuned is not None
    assert (tuned.nproc, tuned.batch_size, tuned.fsdp) == (8, 32, True)


@pytest.mark.parametrize("text", BASH)
def test_shells_read_the_scripts(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    for command in commands(text):
        check_command(command)


def test_slurm_is_asked_for_what_the_command_uses() -> None:
    (script,) = [text for text in BASH if "#SBATCH" in text]
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert int(options["nodes"]) > 1
    assert script.index("#!/bin/bash") == 0
    assert len(re.findall(r"^#SBATCH", script, re.MULTILINE)) == len(options) + 1  # --requeue has no value


def test_kuberay_job() -> None:
    job = by_kind("apiVersion")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    (command,) = commands(job["spec"]["entrypoint"].replace('"', "\n"))
    check_command(command)
    cluster = job["spec"]["rayClusterSpec"]
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images, mounts = set(), set()
    for group in groups:
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            images.add(container["image"])
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            mounts |= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert len(images) == len(mounts) == 1
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())


def test_skypilot_task() -> None:
    task = by_kind("num_nodes")
    assert set(task) == {"name", "num_nodes", "resources", "file_mounts", "setup", "run"}
    assert re.fullmatch(r"\w+:\d+", task["resources"]["accelerators"])
    for part in (task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=part, text=True, capture_output=True).returncode == 0
    (command,) = commands(task["run"])
    check_command(command)


@pytest.mark.slow
def test_ray_knows_the_command_that_starts_it_everywhere() -> None:
    program = shutil.which("ray", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("Ray is not installed")
    said = subprocess.run([program, "symmetric-run", "--help"], capture_output=True, text=True, check=True).stdout
    used = set(re.findall(r"ray symmetric-run ([^\\]*?) -- ", PAGE.replace("\\\n", "")))
    assert used
    for options in used:
        assert all(flag in said for flag in re.findall(r"--[\w-]+", options))


def test_the_estimates_are_what_the_script_prints() -> None:
    script = ROOT / "benchmarks" / "cluster_sizes.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if "GiB" in line]
    shown = [[cell.strip() for cell in line.split("|")] for line in PAGE.splitlines()]
    assert len(rows) == 6
    assert all(row in shown for row in rows)

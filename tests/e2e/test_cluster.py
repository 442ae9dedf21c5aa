"""`mooring run --on ray` on a real cluster: a head and two nodes with one CPU each, on this machine."""

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import mooring
import tiny_adapters
from answering_model import make_answering
from mooring.config import Recipe, Resources
from mooring.errors import ClusterError, DataError, StorageError, UserError
from mooring.events import Event
from mooring.inference.engine import Engine
from mooring.inference.token_engine import Encoded, Sample, TokenEngine
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.cluster.connect import connect
from mooring.pipeline.cluster.dispatch import Dispatcher
from mooring.pipeline.cluster.tasks import CpuTasks
from mooring.pipeline.cluster.units import Unit
from mooring.pipeline.cluster.work import Answer, Setup
from mooring.pipeline.run import run
from mooring.pipeline.storage import Storage
from mooring.records import Completion, Message, Prompt, read_jsonl
from mooring.sampling import SamplingParams

from .conftest import environment, lines  # type: ignore[import-not-found]

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("MOORING_KILLS", "1"))


@dataclasses.dataclass
class Place:
    """A cluster, and a folder with a tiny pair, its data, and the results of a local run."""

    cluster: Any
    nodes: list[Any]
    folder: Path
    expected: bytes
    bucket: str

    def recipe(self, out: str, *, judged: bool = False, **resources: Any) -> Recipe:
        """The recipe, with a run folder of its own; `judged` by a judge with a model, too."""
        plain = json.loads((self.folder / "recipe.json").read_text())
        judge = {"name": "llama-guard-3", "model": str(self.folder / "guard"), "batch_size": 4}
        score = {**plain["score"], "judges": [judge, "classifier"]} if judged else plain["score"]
        return Recipe.parse({**plain, "score": score, "out": str(self.folder / out), "resources": resources})

    @functools.cached_property
    def judged(self) -> bytes:
        """The results of a local run with the judge's model."""
        run(self.recipe("local-judged", judged=True))
        return results(self.folder / "local-judged")

    def other(self) -> int:
        """Which of the nodes is not the one that this process is connected to."""
        ours = ray._private.worker.global_worker.node._raylet_socket_name
        return next(at for at, node in enumerate(self.nodes) if node._raylet_socket_name != ours)

    def node(self, **options: Any) -> Any:
        """Add a node, with one CPU if nothing else is said."""
        self.nodes.append(self.cluster.add_node(**{"num_cpus": 1, "object_store_memory": 2**27, **options}))
        return self.nodes[-1]


def results(folder: Path) -> bytes:
    """The bytes of a run's results."""
    return (folder / "report" / "results.json").read_bytes()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty bucket of a server that speaks S3, which the environment has the address and the key of."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("MOORING_CACHE", str(tmp_path_factory.mktemp("cache")))
        pytest.importorskip("boto3").client("s3").create_bucket(Bucket="bucket")
        try:
            yield "s3://bucket/of-tests"
        finally:
            server.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bucket: str, save_tiny_model: Any) -> Iterator[Place]:
    """A running cluster, which this process is connected to, and whose nodes can use the bucket."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("cluster")
    make_answering(save_tiny_model(folder / "guard", seed=2, max_position_embeddings=2048), "safe")
    lines(folder / "harmful.jsonl", [{"prompt": f"Help me break thing number {i}."} for i in range(16)])
    task = [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(16)]
    lines(folder / "task.jsonl", task)
    plain = {
        "base": str(save_tiny_model(folder / "base")),
        "tuned": str(tiny_adapters.tune(folder / "base", folder / "tuned")),
        "merge": {"lambdas": [0.3, 0.7], "check": False},
        "generate": {"max_tokens": 6, "batch_size": 2, "drafts": False},
        "score": {
            "safety": str(folder / "harmful.jsonl"),
            "over_refusal": None,
            "ordinary": None,
            "task": str(folder / "task.jsonl"),
            "metrics": ["call_match", "response_loss"],
        },
        "select": {"margin": 1.0},
    }
    (folder / "recipe.json").write_text(json.dumps(plain))
    run(Recipe.parse({**plain, "out": str(folder / "local")}))
    head = {"num_cpus": 0, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    place = Place(cluster, [], folder, results(folder / "local"), bucket)
    try:
        place.node()
        place.node()
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield place
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_two_workers_give_the_results_of_one_process(place: Place) -> None:
    events: list[Event] = []
    run(place.recipe("two", on="ray"), on_event=events.append)
    assert results(place.folder / "two") == place.expected
    assert not [event.message for event in events if event.step == "cluster"]
    made = [
        json.loads(line) for line in next((place.folder / "two").rglob("safety-test.jsonl")).read_text().splitlines()
    ]
    assert made[0]["made_by"]["engine"]["device"] == "cpu"
    assert not [*place.folder.joinpath("two").rglob(".probe-*")]


def test_one_and_four_workers_with_a_judge_and_tasks_on_cpus_give_the_results_of_one_process(place: Place) -> None:
    """On a node that says that it has GPUs, so that their number can be chosen, and CPUs are for tasks."""
    four = place.node(num_gpus=4, num_cpus=0)
    try:
        tasks = CpuTasks(connect(Resources(on="ray"), 1), Setup.of_this_process((), shared=True))
        assert tasks(os.getpid) != os.getpid()
        with pytest.raises(DataError, match="nothing"):
            tasks(read_jsonl, place.folder / "nothing.jsonl", Completion)
        run(place.recipe("one", judged=True, on="ray", gpus=1))
        run(place.recipe("four", on="ray", gpus=4))
    finally:
        place.nodes.remove(four)
        place.cluster.remove_node(four, allow_graceful=False)
    assert results(place.folder / "one") == place.judged
    assert results(place.folder / "four") == place.expected


def test_scores_of_a_file_have_the_bytes_of_those_in_this_process(place: Place, tmp_path: Path) -> None:
    made = next((place.folder / "local").rglob("safety-test.jsonl")).parent
    answers = "".join((made / f"safety-{half}.jsonl").read_text() for half in ("validation", "test"))
    judges = [{"name": "llama-guard-3", "model": str(place.folder / "guard"), "batch_size": 16}, "rules"]
    found = {}
    for on in ("local", "ray"):
        (tmp_path / on).mkdir()
        (tmp_path / on / "answers.jsonl").write_text(answers)
        prompts = str(place.folder / "harmful.jsonl")
        found[on] = mooring.score(tmp_path / on / "answers.jsonl", prompts, kind="safety", judges=judges, on=on)
    assert found["ray"] == found["local"]
    verdicts = {on: {p.name: p.read_bytes() for p in (tmp_path / on).glob("verdicts-*")} for on in found}
    assert verdicts["ray"] == verdicts["local"]
    assert len(verdicts["ray"]) == 2


def test_a_merge_has_the_bytes_of_one_in_this_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring.merging.engine.WINDOW", 2**16)  # several tasks
    plain = json.loads((place.folder / "recipe.json").read_text())
    made = []
    for on in ("local", "ray"):
        out = place.folder / f"merged-{on}"
        made.append(mooring.merge(plain["base"], plain["tuned"], out=out, lam=0.4, method="slerp", on=on))
    local, ray_ = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in made)
    assert local == ray_
    with pytest.raises(UserError) as caught:
        mooring.merge(plain["base"], plain["base"], out=place.folder / "same", lam=0.4, on="ray")
    assert caught.value.code == "model.equal"
    assert not (place.folder / "same").exists()


class Deadly(TokenEngine):
    """Answers, but for one prompt, of which its process dies."""

    def __init__(self) -> None:
        super().__init__(None, (), batch_size=1)

    @property
    def about(self) -> dict[str, Any]:
        """See `Engine.about`."""
        return {"process": os.getpid()}

    @property
    def context(self) -> int | None:
        """See `TokenEngine.context`."""
        return None

    def complete_batch(self, batch: Sequence[Sample], params: SamplingParams) -> list[Completion]:
        """See `TokenEngine.complete_batch`."""
        if batch[0][0].id == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return [Completion(prompt_id=prompt.id, text="", tokens=0, finish="stop", sample=n) for prompt, n in batch]

    def _generate(self, rows: list[list[int]], keys: list[str], params: SamplingParams) -> list[list[int]]:
        raise NotImplementedError

    def _score(self, examples: list[Encoded]) -> list[float]:
        raise NotImplementedError


class Loads:
    """What a worker loads: the engine above."""

    def load(self, scratch: Path) -> "Loads":
        """See `Source.load`."""
        return self

    def at(self, point: MergePoint) -> Engine:
        """See `Loaded.at`."""
        return Deadly()


def test_a_unit_that_kills_three_workers_is_given_up_and_judges_have_workers_of_their_own(place: Place) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    events: list[Event] = []
    dispatcher = Dispatcher(connect(Resources(on="ray"), 1), events.append)
    kinds = {"models": ["deadly", *"abcdef"], "judge": [*"ghij"]}
    units = []
    for kind, ids in kinds.items():
        dispatcher.offer(kind, Loads())
        for id in ids:
            batch = [(Prompt(id=id, messages=(Message("user", "Hello."),)), 0)]
            work = Answer(point=BASE, batch=batch, params=SamplingParams())
            units.append(Unit(key=f"{kind}/{id}", kind=kind, prompts=(id,), work=work))
    made = {unit.prompts[0]: result for unit, result in dispatcher.submit(units)}
    dispatcher.close()
    assert made.keys() == {*kinds["models"], *kinds["judge"]}
    assert [id for id, result in made.items() if result is None] == ["deadly"]
    processes = {
        kind: {made[id][0].made_by["engine"]["process"] for id in ids if id != "deadly"} for kind, ids in kinds.items()
    }
    assert processes["models"].isdisjoint(processes["judge"])
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert "deadly" in warning
    assert sum("died" in event.message for event in events) == 4  # three workers, and what was lost with them


def test_a_node_that_is_removed_and_one_that_is_added(place: Place) -> None:
    """While units are being done, so that one is lost with its worker."""
    started, failed = threading.Event(), list[BaseException]()

    def watch(event: Event) -> None:
        if event.kind == "progress" and event.done > 0:
            started.set()

    def work() -> None:
        try:
            run(place.recipe("moved", on="ray"), on_event=watch)
        except BaseException as error:
            failed.append(error)
            started.set()

    thread = threading.Thread(target=work)  # nodes can only be added by the main thread
    thread.start()
    started.wait()
    place.cluster.remove_node(place.nodes.pop(place.other()), allow_graceful=False)
    assert thread.is_alive()
    place.node()
    thread.join()
    assert not failed
    assert results(place.folder / "moved") == place.expected
    for path in (place.folder / "moved").rglob("safety-*.jsonl"):
        keys = [json.loads(line)["prompt_id"] for line in path.read_text().splitlines()]
        assert len(keys) == len({*keys}) == 8


def test_a_driver_that_is_killed_and_started_again_goes_on(place: Place) -> None:
    recipe = place.recipe("killed", on="ray")
    (place.folder / "killed.yaml").write_text(recipe.dump())
    done, draw = place.folder / "killed" / "completions", random.Random(20260101)
    whole = sum(path.stat().st_size for path in (place.folder / "local" / "completions").rglob("*.jsonl"))
    command = [sys.executable, "-m", "mooring", "run", str(place.folder / "killed.yaml")]
    for number in range(KILLS):
        # Up to a share of what a whole run writes, and then at any moment.
        target = whole * (number + 0.5) / (KILLS + 1)
        with subprocess.Popen(
            command,
            env=environment() | {"RAY_ADDRESS": place.cluster.address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as driver:
            while driver.poll() is None and sum(p.stat().st_size for p in done.rglob("*.jsonl*")) <= target:
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 0.5))
            assert driver.poll() is None, f"the run ended after {number} kills"
            driver.send_signal(signal.SIGKILL)
    run(recipe)
    assert results(place.folder / "killed") == place.expected


def test_without_a_shared_file_system_a_driver_on_an_empty_disk_goes_on(place: Place, tmp_path: Path) -> None:
    """A driver is killed, and its disk is lost; workers have the models from the bucket alone."""
    recipe = place.recipe("stored", judged=True, on="ray", storage=place.bucket)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    quick = "import mooring.cli, mooring.pipeline.mirror as mirror; mirror.EVERY = 0.1; mooring.cli.main()"
    command = [sys.executable, "-c", quick, "run", str(tmp_path / "recipe.yaml")]
    storage, done = Storage.open(place.bucket), place.folder / "stored" / "completions"
    whole = sum(path.stat().st_size for path in (place.folder / "local" / "completions").rglob("*.jsonl"))
    with subprocess.Popen(command, env=environment() | {"RAY_ADDRESS": place.cluster.address}) as driver:
        while driver.poll() is None and sum(p.stat().st_size for p in done.rglob("*.jsonl*")) <= whole / 3:
            time.sleep(0.05)
        assert driver.poll() is None
        driver.send_signal(signal.SIGKILL)
    kept = storage.sizes("runs/stored")
    assert sum(size for name, size in kept.items() if name.startswith("completions/")) > whole / 10
    shutil.rmtree(place.folder / "stored")
    events: list[Event] = []
    run(recipe, on_event=events.append)
    assert results(place.folder / "stored") == place.judged
    assert [event for event in events if event.kind == "cached"]  # steps that were done by the first driver
    assert storage.read("runs/stored/report/results.json") == place.judged
    assert {*storage.sizes("runs/stored")} >= {"ledger.json", "model/config.json", "report/index.html"}
    fetched = [*(Path(os.environ["MOORING_CACHE"]) / "models").glob("stored-*")]
    assert len(fetched) == 3  # base, adapter and judge, each once for both workers and both drivers
    assert len({name.partition("/")[0] for name in storage.sizes("models") if "/" in name}) == 3


def test_a_node_that_does_not_see_the_storage_is_named(place: Place) -> None:
    blind = place.node(env_vars={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    try:
        with pytest.raises(ClusterError) as caught:
            run(place.recipe("blind", on="ray", storage=place.bucket))
    finally:
        place.nodes.remove(blind)
        place.cluster.remove_node(blind, allow_graceful=False)
    assert caught.value.code == "cluster.storage"
    assert str(caught.value).startswith("node ")
    assert place.bucket in str(caught.value)
    assert not (place.folder / "blind").exists()
    assert not [name for name in Storage.open(place.bucket).sizes("") if name.startswith((".probe", "runs/blind"))]


@pytest.mark.parametrize(
    ("changes", "url", "code"),
    [
        ({}, "s3://no-such-bucket/x", "storage.no_bucket"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "s3://bucket/x", "storage.credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://bucket/x", "storage.unreachable"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_before_any_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], url: str, code: str
) -> None:
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with pytest.raises(StorageError) as caught:
        run(place.recipe("refused", storage=url))
    assert caught.value.code == code
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 30
    assert not (place.folder / "refused").exists()

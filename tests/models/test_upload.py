"""Sending a model to the hub: what is asked of it, what is never overwritten, and what it refuses, in one line.

`FakeHub` takes the place of `huggingface_hub.HfApi`, with one repository in memory; its errors are the hub's own.
"""

import hashlib
import inspect
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import filter_repo_objects
from tests.data import hub_errors

from mooring.errors import OutputError
from mooring.models.upload import check_hub_id, check_push, push

LARGE = (".safetensors", ".bin", ".gguf")


class FakeHub:
    """One repository; None where there is none yet."""

    endpoint = "https://huggingface.co"

    def __init__(self, files=None, private=False):
        self.files = files
        self.private = private
        self.calls = []
        self.fails = {}

    def _called(self, name, *args, **kwargs):
        inspect.signature(getattr(HfApi, name)).bind(None, *args, **kwargs)  # the real client takes these arguments
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def model_info(self, repo_id, **kwargs):
        self._called("model_info", repo_id, **kwargs)
        if self.files is None:
            raise hub_errors.missing()
        assert kwargs == {"files_metadata": True}  # without, the hub gives no digests
        return SimpleNamespace(private=self.private, siblings=[self._sibling(*item) for item in self.files.items()])

    def _sibling(self, name, data):
        lfs = SimpleNamespace(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        return SimpleNamespace(rfilename=name, lfs=lfs if name.endswith(LARGE) else None)

    def create_repo(self, repo_id, **kwargs):
        self._called("create_repo", repo_id, **kwargs)
        self.files, self.private = {}, bool(kwargs["private"])
        self.asked_private = kwargs["private"]

    def upload_folder(self, **kwargs):
        self._called("upload_folder", **kwargs)
        sent = {path.name: path.read_bytes() for path in kwargs["folder_path"].iterdir()}
        gone = set(filter_repo_objects(self.files, allow_patterns=kwargs["delete_patterns"] or []))
        self.files = {name: data for name, data in self.files.items() if name not in gone} | sent


@pytest.fixture
def hub(monkeypatch):
    """`hub(files, private)` puts a fake in the hub's place, with a user who is logged in."""

    def make(files=None, private=False):
        fake = FakeHub(files, private)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        return fake

    return make


MODEL = {"model.safetensors": b"new weights", "config.json": b"{}", "mooring.json": b"{}", "README.md": b"# new"}
OTHER = {"model.safetensors": b"old", "README.md": b"# old"}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "merged"
    folder.mkdir()
    for name, data in MODEL.items():
        (folder / name).write_bytes(data)
    return folder


def refused(call, *args, **kwargs):
    """The one line with which a call is refused."""
    with pytest.raises(OutputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def test_a_new_repository(hub, model):
    fake = hub()
    assert push(model, "me/merged") == "https://huggingface.co/me/merged"
    assert fake.files == MODEL
    assert fake.asked_private is None  # what the owner's settings say, not `public`
    assert not fake.private


def test_a_new_private_repository(hub, model):
    fake = hub()
    push(model, "me/merged", private=True)
    assert fake.private is True


def test_a_repository_without_weights_keeps_its_other_files(hub, model):
    fake = hub({".gitattributes": b"", "LICENSE": b"terms", "README.md": b"# old"})
    push(model, "me/merged")
    assert fake.files == {".gitattributes": b"", "LICENSE": b"terms"} | MODEL
    assert "create_repo" not in fake.calls


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_other_weights_are_not_overwritten(hub, model, name):
    fake = hub({name: b"old weights", "config.json": b"{}"})
    assert f"me/merged: holds other weights on the hub ({name})" in refused(push, model, "me/merged")
    assert fake.calls == ["model_info"]


def test_weights_without_a_digest_on_the_hub_count_as_different(hub, model):
    fake = hub({"weights.pt": b"old"})
    (model / "weights.pt").write_bytes(b"old")
    assert "(weights.pt)" in refused(push, model, "me/merged")
    assert fake.files == {"weights.pt": b"old"}


def test_equal_size_is_not_enough(hub, model):
    hub({"model.safetensors": b"NEW WEIGHTS", "x/y.gguf": b""})
    assert "(model.safetensors and 1 more)" in refused(push, model, "me/merged")


def test_an_interrupted_push_continues(hub, model):
    fake = hub({"model.safetensors": MODEL["model.safetensors"]})
    push(model, "me/merged")
    assert fake.files == MODEL


def test_overwrite_leaves_nothing_of_the_other_model_that_a_loader_reads(hub, model):
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "q4.gguf"]
    stale += ["adapter_config.json", "chat_template.jinja", "tokenizer.model", "merges.txt", "vocab.json"]
    kept = {"LICENSE": b"terms", "figure.png": b""}
    fake = hub(dict.fromkeys(stale, b"old") | OTHER | kept)
    push(model, "me/merged", overwrite=True)
    assert fake.files == MODEL | kept


def test_a_private_push_to_a_public_repository_is_refused(hub, model):
    fake = hub({})
    for call in (lambda: push(model, "me/merged", private=True), lambda: check_push("me/merged", private=True)):
        assert "is public already" in refused(call)
    assert fake.files == {}
    fake.private = True
    push(model, "me/merged", private=True)
    assert fake.files == MODEL


def test_a_folder_without_weights(hub, tmp_path):
    fake = hub()
    assert "has no safetensors" in refused(push, tmp_path, "me/merged")
    assert fake.calls == []


@pytest.mark.parametrize(
    "bad", ["", "merged", "a/b/c", "me/-x", "me/a--b", "a b/c", "me/x@v1", "../x", "me/ü", "a\n/b"]
)
def test_an_invalid_hub_id_is_refused(hub, model, bad):
    fake = hub()
    for call in (lambda: push(model, bad), lambda: check_push(bad), lambda: check_hub_id(bad)):
        assert "name it as owner/name" in refused(call)
    assert fake.calls == []


def test_the_form_of_an_id_is_checked_offline():
    assert check_hub_id("me/Merged-1.5_b") == "me/Merged-1.5_b"


def test_offline_mode(hub, model, monkeypatch):
    fake = hub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for call in (lambda: push(model, "me/merged"), lambda: check_push("me/merged")):
        assert "HF_HUB_OFFLINE" in refused(call)
    assert fake.calls == []


def test_not_logged_in(hub, model, monkeypatch):
    fake = hub()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for call in (lambda: push(model, "me/merged"), lambda: check_push("me/merged")):
        assert "not logged in to the hub; run `hf auth login`" in refused(call)
    assert fake.calls == []


def test_check_push_changes_nothing(hub):
    for files in (None, {}, OTHER):
        fake = hub(files)
        check_push("me/merged")
        assert fake.calls == ["model_info"]


def answer(kind, status, said=None):
    error = hub_errors.http(kind, status)
    error.server_message = said
    return error


FAILURES = [
    (errors.LocalTokenNotFoundError("Token is required"), "hf auth login"),
    (answer(errors.RepositoryNotFoundError, 401), "hf auth login"),
    (answer(errors.HfHubHTTPError, 401), "hf auth login"),
    (
        answer(errors.HfHubHTTPError, 403, "You have no\nwrite access"),
        "may not be written by you (You have no write ac",
    ),
    (answer(errors.HfHubHTTPError, 429), "too many requests"),
    (answer(errors.HfHubHTTPError, 412), "someone else"),
    (answer(errors.BadRequestError, 400, "Invalid metadata in README.md"), "(Invalid metadata in README.md)"),
    (answer(errors.HfHubHTTPError, 503), "run it again later"),
    (errors.OfflineModeIsEnabled("offline mode is enabled"), "out of reach"),
    (hub_errors.timed_out(), "out of reach (The read operation timed out)"),
    (hub_errors.CLIENT.ConnectError("no route\nat all"), "out of reach (no route)"),
    (ConnectionResetError(104, "Connection reset by peer"), "out of reach"),
]
SENDING = [
    (RuntimeError("Data processing error: no space\nat length"), "(Data processing error: no space)"),
    (PermissionError(13, "Permission denied", "merged/config.json"), "merged/config.json: cannot be read (Permission"),
    (ValueError("Provided path is not a directory"), "Provided path is not a directory"),
    (answer(errors.RepositoryNotFoundError, 404), "may not be written by you"),
]


@pytest.mark.parametrize(("error", "words"), FAILURES)
def test_a_failed_lookup_names_the_reason(hub, model, error, words):
    fake = hub()
    fake.fails["model_info"] = error
    for call in (lambda: push(model, "me/merged"), lambda: check_push("me/merged")):
        line = refused(call)
        assert line.startswith("me/merged: ")
        assert words in line
    assert fake.calls == ["model_info"] * 2


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
@pytest.mark.parametrize(("error", "words"), FAILURES + SENDING)
def test_a_failed_upload_names_the_reason_and_the_folder(hub, model, step, error, words):
    fake = hub()
    fake.fails[step] = error
    line = refused(push, model, "me/merged")
    assert words in line
    assert line.endswith(f"; the model stays in {model}")
    assert fake.calls[-1] == step


def test_no_access_to_a_gated_repository_differs_from_a_missing_one(hub, model):
    fake = hub()
    fake.fails["model_info"] = hub_errors.gated()
    assert "may not be written by you" in refused(push, model, "me/merged")
    assert fake.calls == ["model_info"]


def test_a_bug_keeps_its_traceback(hub, model):
    fake = hub()
    fake.fails["upload_folder"] = AttributeError("ours")
    with pytest.raises(AttributeError):
        push(model, "me/merged")

"""The real exceptions of huggingface_hub and datasets, as the hub's answers make them."""

import importlib

from huggingface_hub import errors

CLIENT = importlib.import_module(errors.Response.__module__.partition(".")[0])  # httpx or httpx2


def http(kind, status, message="said the hub\nat length"):
    request = CLIENT.Request("GET", "https://huggingface.co/api")
    return kind(message, response=CLIENT.Response(status, request=request))


def gated():
    return http(errors.GatedRepoError, 403)


def missing():
    return http(errors.RepositoryNotFoundError, 404)


def no_revision():
    return http(errors.RevisionNotFoundError, 404)


def broken():
    return http(errors.HfHubHTTPError, 500)


def offline():
    return errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nand so on")


def timed_out():
    return CLIENT.ReadTimeout("The read operation timed out")


def invalid():
    return errors.HFValidationError("Repo id must use alphanumeric chars\nand so on")


def raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail

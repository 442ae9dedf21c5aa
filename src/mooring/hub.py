"""Errors of the Hugging Face hub, explained in one line."""

LOGIN = "run `hf auth login`"


def explain(error: Exception, page: str) -> tuple[str, str]:
    """Explain a failed download, as (message, hint).

    Args:
        error: What `datasets` or `huggingface_hub` raised.
        page: The address of the data set or model, without `https://`.
    """
    from huggingface_hub import errors

    text = str(error)
    first = text.strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, errors.GatedRepoError) or "is a gated dataset" in text:
        return "is gated", f"accept its terms on https://{page} and {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision", f"see https://{page}"
    if isinstance(error, errors.RepositoryNotFoundError) or "doesn't exist on the Hub" in text:
        return "is neither here nor on the hub", f"check the spelling; if it is private, {LOGIN}"
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if isinstance(error, offline) or "Couldn't reach" in text:
        return "cannot be fetched: the hub is out of reach (offline, or HF_HUB_OFFLINE is set)", ""
    return f"cannot be fetched ({first})", f"see https://{page}"


def download_errors() -> tuple[type[Exception], ...]:
    """Exceptions that a download may raise for reasons outside of the program."""
    from huggingface_hub.errors import HfHubHTTPError

    # its bases are OSError and the root of the HTTP client's errors: httpx or httpx2, as the version has it
    return (OSError, ValueError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))

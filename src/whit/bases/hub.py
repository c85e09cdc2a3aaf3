"""Fetching from the model hub, with the hub's own client as the user configured it.

Only configuration, tokenizer and safetensors files are ever asked for: no code, no pickles. Whether the
base is one that whit can use is decided by its config.json, before its weights are fetched.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from whit.bases.catalogue import HubFile
from whit.bases.configs import folder_config
from whit.errors import BaseError, PullError

_SMALL = """config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json
    chat_template.jinja model.safetensors.index.json README.md"""
_SECONDS = 10


def pull_file(item: HubFile, sha256: str, folder: Path) -> Path:
    """Fetch one pinned file into `folder`; a partial one is continued. Raises `PullError`."""
    client = _client()
    try:
        url = client.hf_hub_url(item.repository, item.file, revision=item.revision)
        known = client.get_hf_file_metadata(url, timeout=_SECONDS)
        # The hub names large files by their SHA-256: a changed file is seen before it is fetched.
        if known.etag and len(known.etag) == 64 and known.etag != sha256:
            raise PullError(f"{item.repository} has another {item.file} than the pinned one.")
        return Path(client.hf_hub_download(item.repository, item.file, revision=item.revision, local_dir=folder))
    except PullError:
        raise
    except Exception as error:
        raise _explain(error, item.repository) from error


def pull_repository(repository: str, revision: str | None, folder: Path) -> None:
    """Fetch a transformers repository into `folder`; partial files are continued. Raises `PullError`."""
    client = _client()
    try:
        described = client.HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
        names = [item.rfilename for item in described.siblings or []]
        if "config.json" not in names:
            raise PullError(f"{repository} has no config.json, so it is no transformers model.")
        client.hf_hub_download(repository, "config.json", revision=described.sha, local_dir=folder)
        folder_config(folder)
        weights = [name for name in names if "/" not in name and name.endswith(".safetensors")]
        if not weights:
            raise PullError(
                f"{repository} has no safetensors; pickled weights can run code, so whit does not fetch them."
            )
        for name in [name for name in names if name in _SMALL.split()] + weights:
            client.hf_hub_download(repository, name, revision=described.sha, local_dir=folder)
    except (PullError, BaseError):
        raise
    except Exception as error:
        raise _explain(error, repository) from error


def _client() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        raise PullError("the package huggingface_hub is not installed; install it and try again.") from None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise PullError("HF_HUB_OFFLINE is set, so it was not asked.")
    return huggingface_hub


def _explain(error: Exception, repository: str) -> PullError:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return PullError(
            f"{repository} is not there, or needs a permission: look at its page, and log in with `hf auth login`."
        )
    if kind in ("RevisionNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError"):
        return PullError(f"{repository} does not have that revision or file.")
    if kind == "OSError" and getattr(error, "errno", None):
        return PullError(f"writing failed ({error}).")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return PullError(f"it answered with an error (HTTP {status}).")
    return PullError(f"it cannot be reached ({kind}).")

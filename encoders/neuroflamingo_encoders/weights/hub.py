"""`find_on_hub`: find the weight file of an encoder in a hub repository, with its commit and hash.

huggingface_hub resolves names, commits, hashes and permissions; the bytes are downloaded by `http_download`, because
its own downloader starts over in every process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from neuroflamingo_encoders.weights.cache import FOREIGN, READY
from neuroflamingo_encoders.weights.http_download import Remote
from neuroflamingo_preprocessing.errors import ModelError

if TYPE_CHECKING:
    from neuroflamingo_encoders.card import EncoderCard


@dataclass(frozen=True)
class HubFile:
    """File at a commit of a hub repository.

    Attributes:
        file: path in the repository.
        commit: 40 hexadecimal digits.
        sha256: hash by the hub itself; None for files that it does not store by hash.
        remote: address of the bytes.
    """

    file: str
    commit: str
    sha256: str | None
    remote: Remote


def find_on_hub(card: EncoderCard, repository: str, file: str | None, revision: str | None) -> HubFile:
    """Ask the hub for a file.

    Args:
        card: for messages, and for `file` and `revision` of its weights where none are given.
        repository: `owner/name`.
        file: path in the repository, a folder in it, or None.
        revision: commit, tag or branch; None: the card's, else the newest.

    Raises:
        ModelError: no connection, no such file, or terms that were not accepted (exit 69).
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision or card.weights.revision)
        commit = str(info.sha)
        chosen = choose_file(card, [entry.rfilename for entry in info.siblings or ()], file or card.weights.file)
        address = hf_hub_url(repository, chosen, revision=commit, endpoint=endpoint)
        token = get_token()
        facts = get_hf_file_metadata(address, token=token, endpoint=endpoint)
    except ModelError:
        raise
    except Exception as error:  # the library's errors, its HTTP client's and the system's: all mean "not available"
        raise _unavailable(card, repository, error) from error
    # The token is for the hub alone, not for the storage server that it may redirect to.
    same_host = urlsplit(facts.location).netloc == urlsplit(endpoint).netloc
    secret = {k: v for k, v in build_hf_headers(token=token).items() if k.lower() == "authorization"}
    tag = facts.etag
    sha256 = tag if tag and len(tag) == 64 and set(tag) <= set("0123456789abcdef") else None
    return HubFile(chosen, commit, sha256, Remote(facts.location, secret if same_host else {}, tag, facts.size))


def choose_file(card: EncoderCard, files: Sequence[str], wanted: str | None) -> str:
    """Choose the weight file of a repository: the named one, or the only one in the named folder (safetensors first).

    Raises:
        ModelError: none or several (exit 69); the message lists them.
    """
    if wanted in files:
        return str(wanted)
    inside = [name for name in files if wanted is None or name.startswith(wanted.rstrip("/") + "/")]
    for endings in ((READY,), FOREIGN):
        found = [name for name in inside if PurePosixPath(name).suffix in endings]
        if len(found) == 1:
            return found[0]
        if found:
            inside = found
            break
    raise ModelError(
        f"the weight file of '{card.name}' cannot be determined",
        expected=f"{wanted}" if wanted else "one weight file in the repository",
        seen=", ".join(inside[:12]) or ", ".join(files[:12]) or "an empty repository",
        hint="name it: --file PATH",
    )


def _unavailable(card: EncoderCard, repository: str, error: Any) -> ModelError:
    page = f"https://huggingface.co/{repository}"
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "GatedRepoError" or status in (401, 403):
        expected, hint = "terms that you have accepted there, and a sign-in here", f"open {page}, accept the terms, "
        hint += "then `hf auth login` (or HF_TOKEN), and run the same command again"
    elif status == 404 or kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"):
        expected, hint = f"the repository {repository} with that file and revision", f"look at {page}"
    else:
        expected, hint = "a connection to the hub", f"fetch on a machine with one and copy the folder, or see {page}"
    return ModelError(
        f"the weights of '{card.name}' are not available",
        expected=expected,
        seen=f"{kind}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
        hint=hint,
    )

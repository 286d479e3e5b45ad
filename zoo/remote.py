"""Model folders on the Hugging Face Hub: fetched whole and checked, pushed with their card."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import Unavailable, UserError
from zoo.nets.pretrained import CONFIG_FILE, WEIGHTS_FILE, read_config

_LOG = logging.getLogger("zoo")
_TIMEOUT_S = 10.0
_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PIPELINE_FILE = "model_index.json"
_CARD = ("README.md", "metrics.json")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SOURCE = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_source(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Repository and revision of `ORG/REPO` or `ORG/REPO@REVISION`.

    Args:
        source: what follows `hf:`.
        revision: branch, tag or commit given beside it.

    Raises:
        UserError: not of this form (a URL, a path, ".."), or two different revisions.
    """
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source or source.startswith(("http:", "https:")):
        raise UserError(
            f"'hf:{source}' is no repository: write hf:ORG/REPO or hf:ORG/REPO@REVISION"
        )
    repo, own = match.groups()
    if own and revision and own != revision:
        raise UserError(f"'hf:{source}' and revision='{revision}' differ: give one of them")
    return repo, own or revision


def fetch_repo(repo: str, revision: str | None = None) -> Path:
    """The folder of a repository's model in the hub's cache; missing files are fetched first.

    The hub's client shows progress, resumes, locks each file against other processes and moves
    it into place whole; all files come from one commit, even if the branch moves meanwhile.

    Args:
        repo: `ORG/REPO`.
        revision: branch, tag or commit; None for the newest of the default branch.

    Raises:
        Unavailable: offline or no answer, and nothing in the cache.
        UserError: no such repository or revision, a gate, no config, no weights, a cache that
            can't be written, a full disk, or weights with another sha256 than the hub's.
    """
    where = f"{repo}@{revision}" if revision else repo
    config = _file(repo, CONFIG_FILE, revision, where) or _file(
        repo, _PIPELINE_FILE, revision, where
    )
    if config is None:
        raise UserError(
            f"hf:{where} is no model of the zoo or of diffusers: it has no {CONFIG_FILE}"
        )
    folder = config.parent  # .../snapshots/COMMIT
    commit, inner = folder.name, ""
    if revision is None:
        _LOG.info("hf:%s is now at %s: hf:%s@%s pins it", repo, commit, repo, commit)
    if config.name != CONFIG_FILE:
        inner = "unet/"
        if _file(repo, f"{inner}{CONFIG_FILE}", commit, where) is None:
            raise UserError(f"hf:{where} has no {inner}{CONFIG_FILE}: zoo.load opens its UNet only")
    diffusers = inner or b'"_class_name"' in config.read_bytes()
    name = f"{inner}{_DIFFUSERS_WEIGHTS if diffusers else WEIGHTS_FILE}"
    weights = _file(repo, name, commit, where)
    if weights is None:
        raise UserError(f"hf:{where} has no {name}: the zoo reads weights as safetensors only")
    _check(weights, f"hf:{where}")
    if not diffusers:
        for extra in _CARD:
            _file(repo, extra, commit, where)
    return folder


def fetch_file(
    repo: str,
    name: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    otherwise: str = "get the folder another way and load dir:FOLDER",
) -> Path:
    """One file in the hub's cache, fetched if need be and checked against the hub's sha256.

    Args:
        repo: `ORG/REPO`.
        name: of the file.
        revision: branch, tag or commit; None for the newest of the default branch.
        subfolder: of the repository.
        otherwise: what to do where it can't be fetched.

    Raises:
        Unavailable: offline, no answer or a download that broke off, and nothing in the cache.
        UserError: no such repository, revision or file, a gate, a cache that can't be written, a
            full disk, or another content than the hub states.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where = "/".join(filter(None, (repo, subfolder, name)))
    with _one_sentence(f"can't fetch {where} of huggingface.co", repo, otherwise=otherwise):
        try:
            found = hf_hub_download(
                repo, name, subfolder=subfolder, revision=revision, etag_timeout=_TIMEOUT_S
            )
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            raise UserError(
                f"can't fetch {where} of huggingface.co: the repository has no such file; "
                f"{otherwise}"
            ) from error
    _check(Path(found), where)
    return Path(found)


def push_folder(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a model folder in one commit: card, config, metrics and weights.

    Args:
        folder: with README.md, metrics.json, config.json (of a pipeline: model_index.json) and
            weights.
        repo: `ORG/REPO`, made if it isn't there.
        private: whether a new repository is.

    Returns:
        The address of the commit.

    Raises:
        UserError: a file, the licence or the metrics are missing, weights that aren't those that
            the metrics are of, no permission or no network; then nothing was uploaded.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if parse_source(repo) != (repo, None):
        raise UserError(f"'{repo}' is no repository to push to: write ORG/REPO")
    if not (folder / _PIPELINE_FILE).is_file():
        read_config(folder)
    check_card(folder)
    api = HfApi()
    with _one_sentence(f"can't push {folder} to {repo}", repo):
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[*_CARD, "*.json", "*.safetensors", "*.csv"],
            commit_message=f"{folder.name} from the generative vision zoo",
        )
    return str(done.commit_url)


def check_card(folder: Path) -> dict[str, Any]:
    """metrics.json of a folder that is fit to be published, its weights checked against it.

    Raises:
        UserError: card, weights, licence or metrics are missing, or the weights are others.
    """
    for name in (*_CARD, weights_of(folder).relative_to(folder)):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: what is published has its card and metrics")
    text = read_metrics(folder)
    for key in ("licence", "metrics"):
        if not text.get(key):
            raise UserError(f"{folder / 'metrics.json'} has no '{key}': nothing goes out without")
    check_sha256(folder, text)
    return text


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a model folder; empty where there is none. UserError: it isn't JSON."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        text = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): get the folder again") from error
    if not isinstance(text, dict):
        raise UserError(f"{path} is no table of metrics: get the folder again")
    return text


def weights_of(folder: Path) -> Path:
    """The file that `sha256` in metrics.json is of: the net's weights, in a pipeline the UNet's."""
    if (folder / _PIPELINE_FILE).is_file():
        return folder / "unet" / _DIFFUSERS_WEIGHTS
    return folder / WEIGHTS_FILE


def check_sha256(folder: Path, metrics: dict[str, Any]) -> None:
    """Compare weights with the `sha256` of their metrics, where it is given.

    Raises:
        UserError: they are others.
    """
    want, weights = metrics.get("sha256"), weights_of(folder)
    if want is not None and weights.is_file() and (got := sha256(weights)) != want:
        raise UserError(
            f"{weights} has sha256 {got}, not {want} as metrics.json beside it says: "
            "the weights were changed or damaged, get the folder again"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(weights: Path, where: str) -> None:
    """The cache names the blob of a large file by the sha256 that the hub states.

    Raises:
        UserError: the file has another one: it was cut off or damaged.
    """
    blob = weights.resolve()
    if _SHA256.fullmatch(blob.name) and sha256(blob) != blob.name:
        raise UserError(
            f"{blob} is not the file that the hub states for {where} (sha256 {blob.name}): "
            "remove it and load again"
        )


def _file(repo: str, name: str, revision: str | None, where: str) -> Path | None:
    """One file in the cache, fetched if need be; None where the repository lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _one_sentence(f"can't fetch {name} of hf:{where}", repo):
        try:
            return Path(hf_hub_download(repo, name, revision=revision, etag_timeout=_TIMEOUT_S))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                if name in _CARD:  # a model fetched by another program serves without its card
                    return None
                raise
            return None


@contextmanager
def _one_sentence(
    what: str, repo: str, *, otherwise: str = "get the folder another way and load dir:FOLDER"
) -> Iterator[None]:
    """Errors of the hub's client and of the disk, as UserError that says `what` failed.

    `otherwise` is what to do where the hub can't be had.
    """
    from huggingface_hub import errors
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # requests', httpx' or httpx2's, by the hub's version
    client_error: Any = HfHubHTTPError.__bases__[0]
    # of its storage: a RuntimeError before 2.0
    storage_error: Any = getattr(errors, "XetDownloadError", RuntimeError)
    chatter = logging.getLogger("huggingface_hub")
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # it tells of every retry; our one sentence says the outcome
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{what}: it is gated: accept its terms at https://huggingface.co/{repo} and log in "
            f"with 'hf auth login', or {otherwise}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what}: no such repository, or no right to it ('hf auth login')"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: it has no such revision") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(
            f"{what}: no network, or HF_HUB_OFFLINE is set, and it is not in the cache; {otherwise}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{what} ({(str(error).splitlines() or [''])[0][:160]})") from error
    except (client_error, storage_error, RuntimeError, OSError) as error:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{what}: the disk is full, free space or set HF_HOME") from error
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            where = getattr(error, "filename", None)
            raise UserError(
                f"{what}: the hub's cache can't be written ({where}), set HF_HOME"
            ) from error
        why = (str(error).splitlines() or [""])[0][:160]
        raise Unavailable(f"{what} ({why}): try again later, or {otherwise}") from error
    finally:
        chatter.setLevel(level)

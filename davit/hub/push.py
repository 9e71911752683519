"""Upload an exported model to a repository of the Hugging Face hub, in one commit."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from ..commands import USER_ERROR
from ..pretrained import CONFIG, split_source
from .export import CARD, FILES, WEIGHTS, ExportOptions, write_folder

log = logging.getLogger(__name__)


class PushError(RuntimeError):
    """Say why a model could not be uploaded, and what to do."""

    exit_status = USER_ERROR


@dataclass(frozen=True)
class PushOptions:
    """Say how a model is uploaded.

    Attributes:
        private: make a new repository private; one that is there stays as it is.
        revision: the branch, which is made where it does not exist; empty for main.
        message: of the commit.
        dry_run: upload nothing.
    """

    private: bool = False
    revision: str = ""
    message: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be.

    Attributes:
        files: name to size in bytes.
        card: the text of the model card.
        url: of the commit; empty where nothing was uploaded.
    """

    repository: str
    files: dict[str, int]
    card: str
    url: str


def push(
    checkpoint: str | Path, repository: str, export: ExportOptions | None = None, options: PushOptions | None = None
) -> Pushed:
    """Upload a checkpoint to the hub as `davit.hub.export.export` writes it, in one commit.

    The folder of an earlier export is uploaded as it is, with a card that may have been edited.

    Args:
        repository: OWNER/NAME, made where it does not exist. The files of the same names in it are replaced.

    Raises:
        ValueError: as `export`; the repository's name is malformed.
        PushError: no network, no login, or no right to write there.
    """
    export, options = export or ExportOptions(), options or PushOptions()
    repository = _checked_name(repository)
    with _folder_of(checkpoint, repository, export) as folder:
        files = {name: (folder / name).stat().st_size for name in FILES}
        card = (folder / CARD).read_text(encoding="utf-8")
        url = "" if options.dry_run else _upload(folder, repository, options)
    return Pushed(repository, files, card, url)


@contextmanager
def _folder_of(checkpoint: str | Path, repository: str, options: ExportOptions) -> Iterator[Path]:
    """Give the folder to upload: of an earlier export, else one that is written now and removed after."""
    with TemporaryDirectory(prefix="davit-hub-") as made:
        kind, rest = split_source(checkpoint)
        earlier = Path(rest).expanduser()
        written = Path(made) / "folder"
        written.mkdir()
        if kind != "hf-hub" and all((earlier / name).is_file() for name in FILES) and options == ExportOptions():
            # checked as any other, and then as it was
            write_folder(checkpoint, written, options, repository.partition("/")[2])
            for name in FILES:
                shutil.copyfile(earlier / name, written / name)
            log.info("%s is an export: its files, %s among them, are taken as they are", checkpoint, CARD)
        else:
            options = replace(options, source=f"hf-hub:{repository}")
            write_folder(checkpoint, written, options, options.name or repository.partition("/")[2])
        yield written


def _checked_name(repository: str) -> str:
    name = repository.removeprefix("hf-hub:")
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no name of a repository; give OWNER/NAME ({error}).") from error
    if "/" not in name:
        raise ValueError(f"{repository!r} has no owner; give OWNER/NAME, with your name or your organisation's.")
    return name


def _upload(folder: Path, repository: str, options: PushOptions) -> str:
    api = huggingface_hub.HfApi(library_name="davit")
    message = options.message or f"Upload {WEIGHTS}, {CONFIG} and {CARD}"
    try:
        api.create_repo(repository, private=options.private, exist_ok=True)
        if options.revision and options.revision != "main":
            api.create_branch(repository, branch=options.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            allow_patterns=list(FILES),
            commit_message=message,
            revision=options.revision or None,
        )
    except Exception as error:  # the hub's client lets any error of its transport through
        raise PushError(_why_not(repository, error)) from None
    return str(getattr(commit, "commit_url", commit))


def _why_not(repository: str, error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    token = huggingface_hub.get_token()
    text = text.replace(token, "...") if token else text
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        advice = "log in by `hf auth login`, or set HF_TOKEN to a token that may write there"
    elif isinstance(error, HfHubHTTPError):
        advice = "look at the answer above, and try again"
    else:
        advice = "check the network (is HF_HUB_OFFLINE set?); `export` writes a folder that can be pushed later"
    return f"{repository} could not be uploaded ({type(error).__name__}: {text}); {advice}."

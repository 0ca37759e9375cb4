"""Checkpoints from the Hugging Face hub, or what HF_ENDPOINT names, through the cache of `huggingface_hub`."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from ferryman.errors import CheckpointError, HubError, MissingExtraError
from ferryman_models.checkpoints.tensors import shard_names

Progress = Callable[[str, int, int], None]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_LOG_IN = "log in (hf auth login, or HF_TOKEN in the environment)"
_TIMEOUT_S = 10.0
_FILE = (".safetensors", ".bin", ".pt", ".pth", ".pt2", ".npz", ".onnx")
# The first of these that a repository has is taken: a pickle only where there is nothing else.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Snapshot:
    """folder: in the library's cache, with configuration and weights, whole; commit: what the revision stands for."""

    folder: Path
    commit: str


def is_hub_id(source: str) -> bool:
    """Whether this can only be `owner/name` of a model on a hub, given that no such path exists."""
    return _ID.fullmatch(source) is not None and not source.endswith(_FILE)


def download(repository: str, revision: str | None, progress: Progress) -> Snapshot:
    """What is needed of a model on the hub; nothing is fetched that the cache has, and nothing kept that is half done.

    repository: `owner/name`; revision: a branch, a tag or a commit, by default the repository's main branch
    progress: called with the stage's name, bytes done and bytes in all
    Raises HubError that says what to do when the hub can't be reached or refuses, CheckpointError for a repository
    without a checkpoint, MissingExtraError.
    """
    try:
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{repository} is no path here, and to download it", "hub") from error
    # The base of the network's errors: httpx's in version 1 of the library, httpx2's in version 2.
    http_error = cast("type[Exception]", huggingface_hub.errors.HfHubHTTPError.__mro__[1])
    try:
        return _Files(repository, revision, progress).take(http_error)
    except (http_error, OSError, huggingface_hub.errors.HFValidationError, RuntimeError) as error:
        raise HubError(_explain(repository, revision, error)) from error  # RuntimeError is what hf_xet fails with


class _Files:
    """One download. Everything comes from one commit, and from the cache alone when the hub can't be asked."""

    def __init__(self, repository: str, revision: str | None, progress: Progress) -> None:
        self.repository = repository
        self.revision = revision
        self.progress = progress
        self.names: set[str] | None = None  # all that the repository holds, when it could be asked
        self.refusal: Exception | None = None  # why it could not

    def take(self, http_error: type[Exception]) -> Snapshot:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            info = HfApi().model_info(self.repository, revision=self.revision, timeout=_TIMEOUT_S)
            self.names = {file.rfilename for file in info.siblings or ()}
        except RevisionNotFoundError:
            raise
        except (http_error, OSError) as error:
            self.refusal = error
        config = self.fetch("config.json")
        if config is None:
            raise self.refusal or CheckpointError(
                f"{self.repository} has no config.json: it is neither in Hugging Face nor in timm layout"
            )
        self.revision = config.parent.name
        self.fetch("preprocessor_config.json")
        for name in _WEIGHTS:
            found = self.fetch(name)
            if found is not None and all(self.fetch(shard) is not None for shard in _shards(found)):
                return Snapshot(config.parent, config.parent.name)
        raise self.refusal or CheckpointError(
            f"{self.repository} has no weights, or lacks a part of them; looked for {', '.join(_WEIGHTS)}"
        )

    def fetch(self, name: str) -> Path | None:
        """The file in the cache; None when the repository, or the cache when that alone can be asked, has none."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        if self.names is not None and name not in self.names:
            return None
        bar = _make_bar(f"download {name} of {self.repository}", self.progress)
        offline = self.refusal is not None
        try:
            return Path(
                hf_hub_download(self.repository, name, revision=self.revision, local_files_only=offline, tqdm_class=bar)
            )
        except LocalEntryNotFoundError:
            if offline:
                return None
            raise


def _shards(weights: Path) -> list[str]:
    return shard_names(weights) if weights.name.endswith(".index.json") else []


def _make_bar(stage: str, progress: Progress) -> type[Any]:
    """A progress bar as the library wants one, which draws nothing and tells `progress`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"file": io.StringIO(), "disable": False})
            progress(stage, int(self.n), int(self.total or 0))

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            progress(stage, int(self.n), int(self.total or 0))
            return drawn

    return Bar


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _explain(repository: str, revision: str | None, error: Exception) -> str:
    """Of a failure that is the network's, the hub's or the disk's: what it was and how to go on."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # What is wrapped says more than what the library makes of it.
    cause = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if refusal := _refusal(repository, revision, cause, status):
        return refusal
    by_hand = f"hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir DIR"
    advice = f"where there is a network run: {by_hand}; then here: ferryman export DIR"
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"{repository} is not in the cache of huggingface_hub, and HF_HUB_OFFLINE forbids to download it; {advice}"
        )
    if status is not None:
        return (
            f"{_endpoint()} answers {status} for {repository}, and the cache does not have it; try later, or {advice}"
        )
    reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return (
        f"{repository} can't be downloaded from {_endpoint()} ({reason}), and the cache of huggingface_hub does not "
        f"have it; {advice}. What is in the cache is used without a network, too; HF_HUB_OFFLINE=1 asks for no more"
    )


def _refusal(repository: str, revision: str | None, error: BaseException, status: int | None) -> str | None:
    """What the hub, if it is that which refuses, wants of us."""
    from huggingface_hub import errors

    at = _endpoint()
    if isinstance(error, errors.HFValidationError):
        return f"there is no folder {repository} here, and it can't be a model's name on a hub"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; give a branch, a tag or a whole commit"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated: ask for access at {at}/{repository}, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError) or status == HTTPStatus.UNAUTHORIZED:
        known = f"there is no folder {repository} here and no model {repository} on {at} that you may see"
        return f"{known}; if it is private, {_LOG_IN}"
    if status == HTTPStatus.FORBIDDEN:
        return f"{at} refuses {repository} ({status}); {_LOG_IN}, with a token that may read it"
    return None

"""Folders of a trained model to copy and publish: weights, JSON files and a model card, no code.

huggingface_hub is imported where it is used: start-up time counts.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import dlflax
from dlflax import train, transfer
from dlflax.cache import cache_folder
from dlflax.config.run_folder import CALIBRATION
from dlflax.config.saved import save_encoder
from dlflax.errors import InputError, RunError, first_line
from dlflax.files import (
    MAX_JSON_BYTES,
    escape_controls,
    max_file_bytes,
    read_json,
    write_json,
)
from dlflax.inference.predict import WEIGHTS, Predictor
from dlflax.inference.summary import leaderboard, summary
from dlflax.transfer.weights import PUBLISHED

COPIES = (CALIBRATION, "importance.csv", "columns.csv", "per_class.csv", "plan.json")
FILES = re.compile(r"[\w-]+\.(json|csv|npy)|model\.safetensors|README\.md")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
HUB = "hf:"  # prefix of a repository on the Hugging Face hub


def save(predictor: Predictor, folder: Path, address: str = "") -> Path:
    """Writes what prediction needs, and a model card, to a new or empty folder. Paths of this
    machine are not among it. address: of the model, for the card (default: the folder's name).
    Raises InputError for a folder with other files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: name a new folder.")
    recipe, state = predictor.config.recipe, predictor.state()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        transfer.write_variables(folder / WEIGHTS, train.variables(recipe, state))
        save_encoder(folder, predictor.encoder)
        for name in ("config.json", "results.json"):
            if (predictor.folder / name).exists():
                write_json(folder / name, _without_folders(read_json(predictor.folder / name)))
        for name in COPIES:
            if (predictor.folder / name).exists():
                shutil.copyfile(predictor.folder / name, folder / name)
        (folder / "README.md").write_text(
            model_card(predictor, address or folder.name), encoding="utf-8"
        )
    except OSError as error:
        raise RunError(f"could not write {folder}: {error.strerror}.") from error
    return folder


def _without_folders(value: Any) -> Any:
    """Returns JSON values with absolute paths shortened to the name of their file."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    is_path = isinstance(value, str) and "\n" not in value and Path(value).is_absolute()
    return Path(value).name if is_path else value


def model_card(predictor: Predictor, address: str) -> str:
    """Returns the model card (Mitchell et al. 2019) in Markdown, with the front matter that the
    Hugging Face hub reads. address: the argument of `dlflax.load`."""
    classes, encoder = predictor.encoder.target.classes, predictor.encoder
    weights = [w for w in PUBLISHED if w.sha256 == predictor.data["weights_sha256"]]
    name = _markdown(predictor.data["name"])
    about = summary(predictor).replace("```", "'''")
    return "\n".join([
        "---", "library_name: dlflax", f"tags: [dlflax, {encoder.form.noun}]", "---", "",
        f"# {type(predictor.config.recipe.task).__name__} of {name}", "",
        f"Trained by dlflax {dlflax.__version__}. It takes {_markdown(encoder.describe())}"
        + (f", and predicts {len(classes)} classes: {_markdown(', '.join(classes[:20]))}."
           if classes else "."),
        "", "```python", "import dlflax", "",
        f"model = dlflax.load({json.dumps(address)})",
        "```", "", "## Training", "", "```", about, "```", "",
        "## Test scores", "", "```", str(leaderboard(predictor)).replace("```", "'''"), "```", "",
        "The test examples were held out from the same data. Other data may differ: measure with",
        "`model.evaluate` before use.", "",
        *[f"Pretrained weights: {w.name} ({w.licence}), on {w.data}." for w in weights],
        "The folder has weights and JSON files. Loading it runs no code of the folder.", "",
    ])  # fmt: skip


def _markdown(text: str) -> str:
    """Escapes a name in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|])", r"\\\1", escape_controls(text))


def _hub(purpose: str):
    """Returns an HfApi. Raises InputError with DLFLAX_OFFLINE=1."""
    if os.environ.get("DLFLAX_OFFLINE") == "1":
        raise InputError(f"{purpose} needs the network, and DLFLAX_OFFLINE=1 forbids it.")
    import huggingface_hub

    return huggingface_hub.HfApi()


def _check_repository(repository: str) -> str:
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InputError(f"{repository!r:.80} is no repository: give OWNER/NAME.")
    return repository


def push(predictor: Predictor, repository: str, private: bool = True) -> str:
    """Publishes `save`'s folder on the Hugging Face hub, and returns its address. Uses the token
    of `hf auth login` or $HF_TOKEN. Raises InputError if the hub refuses it."""
    api = _hub(f"push to {_check_repository(repository)}")
    with tempfile.TemporaryDirectory(prefix="dlflax-") as temporary:
        folder = save(predictor, Path(temporary) / "model", HUB + repository)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Model of dlflax"
            )
        except Exception as error:  # the hub's client raises dozens
            raise InputError(
                f"{repository} cannot be written ({first_line(error).rstrip('.')}): log in with "
                "`hf auth login`."
            ) from error
    return str(getattr(commit, "repo_url", f"https://huggingface.co/{repository}"))


def download(address: str) -> Path:
    """Returns a folder with the files of "hf:OWNER/NAME" or "hf:OWNER/NAME@REVISION". Only files of
    `save` are fetched, after a check of their sizes. Raises InputError."""
    repository, _, revision = address.removeprefix(HUB).partition("@")
    api = _hub(f"load {_check_repository(repository)}")
    try:
        info = api.model_info(repository, revision=revision or None, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings}
        names = [name for name in files if FILES.fullmatch(name)]
        _check_files(repository, {name: files[name] for name in names})
        folder = cache_folder() / "hub" / repository.replace("/", "--") / info.sha
        api.snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=names)
    except InputError:
        raise
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise InputError(f"{address} cannot be downloaded ({reason}).") from error
    return folder


def _check_files(repository: str, sizes: dict[str, int]) -> None:
    """Raises InputError for a repository that is none of `push`, or too large."""
    if missing := {"config.json", "encoder.json", WEIGHTS} - set(sizes):
        raise InputError(f"{repository} is no model of dlflax: it has no {min(missing)}.")
    for name, size in sizes.items():
        limit = max_file_bytes() if name == WEIGHTS else MAX_JSON_BYTES
        if size > limit:
            raise InputError(
                f"{repository} has a {name} of {size / 1e6:,.0f} MB: at most {limit / 1e6:,.0f} "
                "are read."
            )

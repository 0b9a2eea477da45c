"""Where files lie: schedules in `models/ld3`, extra paths of the user's and the pack's own
`schedules/`; networks for LPIPS in `models/lpips`."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..schedule import EXTENSION

KEY = "ld3"
LPIPS_KEY = "lpips"


def register() -> None:
    """Make `ld3` and `lpips` model folders; those extra_model_paths.yaml made are extended."""
    own = Path(__file__).resolve().parents[2] / "schedules"
    _register(KEY, {EXTENSION})
    folder_paths.add_model_folder_path(KEY, str(own))
    _register(LPIPS_KEY, {".pth", ".safetensors"})


def _register(key: str, extensions: set[str]) -> None:
    folder_paths.add_model_folder_path(
        key, str(Path(folder_paths.models_dir) / key), is_default=True
    )
    paths, known = folder_paths.folder_names_and_paths[key]
    # a new key accepts every extension
    folder_paths.folder_names_and_paths[key] = (paths, set(known) | extensions)


def save_folder() -> Path:
    """Where new schedules are saved."""
    return Path(folder_paths.get_folder_paths(KEY)[0])


def lpips_folder() -> Path:
    """Where a user puts the networks LPIPS needs."""
    return Path(folder_paths.get_folder_paths(LPIPS_KEY)[0])


def target_folder() -> Path:
    """Where teacher targets are kept until ComfyUI, which empties it, starts again."""
    return Path(folder_paths.get_temp_directory()) / KEY


def schedule_names() -> list[str]:
    """File names of all schedules, as a combo shows them."""
    return folder_paths.get_filename_list(KEY)


def schedule_path(name: str) -> Path:
    """The file of a schedule, or ValueError naming what is there."""
    path = folder_paths.get_full_path(KEY, name)
    if path is None:
        known = schedule_names()
        listed = ", ".join(known[:10]) if known else "none yet: train one with LD3 Train Schedule"
        raise ValueError(f"there is no schedule {name!r} in {save_folder()}; there are: {listed}")
    return Path(path)

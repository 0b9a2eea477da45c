"""Where schedules lie: `models/ld3`, extra paths of the user's, and the pack's own `schedules/`."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..schedule import EXTENSION

KEY = "ld3"


def register() -> None:
    """Make `ld3` a model folder of ComfyUI; one that extra_model_paths.yaml made is extended."""
    own = Path(__file__).resolve().parents[2] / "schedules"
    folder_paths.add_model_folder_path(
        KEY, str(Path(folder_paths.models_dir) / KEY), is_default=True
    )
    folder_paths.add_model_folder_path(KEY, str(own))
    paths, extensions = folder_paths.folder_names_and_paths[KEY]
    # a new key accepts every extension
    folder_paths.folder_names_and_paths[KEY] = (paths, set(extensions) | {EXTENSION})


def save_folder() -> Path:
    """Where new schedules are saved."""
    return Path(folder_paths.get_folder_paths(KEY)[0])


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

"""Make ComfyUI importable in this process, on the CPU, ahead of this pack's modules."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ["--cpu", "--use-pytorch-cross-attention"]


def prepare(comfyui: Path, *options: str) -> None:
    """Put ComfyUI first on the path and parse its options, before anything imports comfy.

    Args:
        comfyui: its source folder. First on the path, because its own modules import `nodes` and
            `utils`, which must be ComfyUI's.
        options: additional command-line options, such as `--base-directory DIR`.
    """
    ours = {str(ROOT), str(comfyui), ""}
    sys.path[:] = [str(comfyui), str(ROOT), *(path for path in sys.path if path not in ours)]
    arguments = sys.argv
    # ComfyUI reads its options from sys.argv once, when comfy is first imported.
    sys.argv = ["main.py", *OPTIONS, *options]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401
    finally:
        sys.argv = arguments

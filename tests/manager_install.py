"""Install a pack with ComfyUI's own Manager: COMFYUI BASE REGISTRY NODE VERSION.

A script of its own, because the Manager reads ComfyUI's options and folders once when imported. Of
the Manager, only the registry's address and its test for pip are changed.
"""

from __future__ import annotations

import asyncio
import sys

comfyui, base, registry, node, version = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", base, "--enable-manager"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfyui_manager  # noqa: E402
from comfyui_manager.common import manager_util  # noqa: E402

# the Manager starts pip to see whether there is one, and on a busy machine gives up after 5 s
manager_util.get_pip_cmd = lambda force_uv=False: [sys.executable, "-m", "pip"]
comfyui_manager.prestartup()  # as ComfyUI 0.30.0 does (main.py); it reads the Manager's settings

from comfyui_manager.common import cnr_utils  # noqa: E402
from comfyui_manager.glob import manager_core  # noqa: E402

cnr_utils.base_url = registry
result = asyncio.run(manager_core.unified_manager.install_by_id(node, version))
if not result.result:
    sys.exit(f"the Manager did not install {node}: {result.msg}")
print(f"installed in {result.to_path}")

"""A training leaves everything that others use as it was: success, error, interrupt."""

from __future__ import annotations

import copy
import hashlib
import random
import threading
import warnings
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import matplotlib
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "sampler_name": "uni_pc", "steps": 3, "cfg": 3.0, "seed": 0, "teacher_sampler": "uni_pc",
    "teacher_scheduler": "karras", "teacher_steps": 4, "retrain": True, "denoise": 1.0,
    "distance": "pseudo-huber", "iterations": 1, "training_noises": 4, "heldout_noises": 4,
    "batch_size": 16, "learn": "time steps", "quality": "fast", "name": "neighbours",
}  # fmt: skip
Interrupted = comfy.model_management.InterruptProcessingException


def digest(value: Any) -> str:
    """Hash of a value's content, through containers and objects."""
    if isinstance(value, torch.Tensor):
        told = f"{tuple(value.shape)} {value.dtype} {value.device}".encode()
        return hashlib.sha256(told + value.detach().float().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return str([(str(k), digest(v)) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return str([digest(item) for item in value])
    return f"{type(value).__name__} {value if isinstance(value, (str, int, float)) else ''}"


def state_of(inputs: dict[str, Any]) -> dict[str, str]:
    """All of a graph's inputs that a node could write into."""
    model = inputs["model"]
    parts = {
        "weights": dict(model.model.state_dict()),
        "options": model.model_options,
        "patches": [model.patches, model.object_patches, str(model.patches_uuid)],
        "hooks": [str(model.hook_mode), model.hook_patches, str(model.current_hooks)],
        "positive": inputs["positive"],
        "negative": inputs["negative"],
        "latent": inputs["latent_image"],
    }
    return {name: digest(part) for name, part in parts.items()}


def globals_of() -> dict[str, Any]:
    """What a process has only once."""
    return {
        "random": random.getstate(),
        "numpy": digest([str(part) for part in np.random.get_state()]),
        "torch": digest(torch.get_rng_state()),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "matplotlib": dict(matplotlib.rcParams),
        "backend": matplotlib.get_backend(),
        "warnings": list(warnings.filters),
        "samplers": list(comfy.samplers.SAMPLER_NAMES),
        "schedulers": list(comfy.samplers.SCHEDULER_NAMES),
        "handlers": sorted(comfy.samplers.SCHEDULER_HANDLERS),
        "numpy errors": np.geterr(),
    }


@pytest.fixture
def inputs(demo_inputs: dict[str, Any]) -> dict[str, Any]:
    model = demo_inputs["model"].clone()
    model.model_options["transformer_options"]["of_another_pack"] = {"numbers": [1, 2]}
    return demo_inputs | {"model": model}


def ends(error: type[BaseException] | None, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with a model that ends a training in that way, after some calls."""
    calls = [0]

    def call(network: Any, given: dict[str, Any]) -> torch.Tensor:
        calls[0] += 1
        if error is not None and calls[0] == 30:
            raise error("in the model")
        return network(given["input"], given["timestep"], **given["c"])

    model = inputs["model"].clone()
    model.set_model_unet_function_wrapper(call)
    return inputs | {"model": model}


@pytest.mark.parametrize("error", [None, ZeroDivisionError, Interrupted], ids=str)
def test_inputs_and_globals_are_as_before(
    error: Any, pack_nodes: Any, inputs: dict[str, Any], ld3_folder: Path
) -> None:
    node, given = pack_nodes["LD3TrainSchedule"], ends(error, inputs)
    before, process = state_of(given), copy.deepcopy(globals_of())
    if error is None:
        node.execute(**(given | TINY))
    else:
        with pytest.raises((error, ValueError)):
            node.execute(**(given | TINY | {"name": f"ends {error.__name__}"}))
    comfy.model_management.unload_all_models()
    assert state_of(given) == before
    after = globals_of()
    assert {name: after[name] == process[name] for name in after} == dict.fromkeys(after, True)


def test_sampling_leaves_inputs_as_before(
    pack_nodes: Any, inputs: dict[str, Any], ld3_folder: Path
) -> None:
    schedule = pack_nodes["LD3TrainSchedule"].execute(**(inputs | TINY))[2]
    before, table = state_of(inputs), digest(vars(schedule.table))
    pack_nodes["LD3KSampler"].execute(**inputs, schedule=schedule, seed=1, cfg=3.0, denoise=1.0)
    comfy.model_management.unload_all_models()
    assert state_of(inputs) == before and digest(vars(schedule.table)) == table


def test_another_thread_sees_no_change_of_the_default_dtype(
    pack_nodes: Any, inputs: dict[str, Any], ld3_folder: Path
) -> None:
    """uni_pc makes tensors of the default dtype, and its table is computed in float64."""
    seen, done = set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update({torch.get_default_dtype(), torch.zeros(1).dtype, torch.tensor(0.5).dtype})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        pack_nodes["LD3TrainSchedule"].execute(**(inputs | TINY))
    finally:
        done.set()
        watcher.join()
    assert seen == {torch.float32}

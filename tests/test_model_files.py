"""Small files with the names and shapes of published models, as core's loaders detect them."""

from __future__ import annotations

import pytest

from .model_files import FILES, loaded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", FILES)
def test_core_detects_the_class_of_a_file(name: str) -> None:
    model = loaded(name)
    assert type(model.model.model_config).__name__ == FILES[name].config
    weights = model.model.diffusion_model.state_dict()
    assert all(bool(weight.isfinite().all()) for weight in weights.values())  # all were read

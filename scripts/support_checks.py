"""What the rows of scripts/support.py check beside a training: gradients, and core's sampling."""

from __future__ import annotations

from typing import Any

SAMPLER, SEED, CFG = "dpmpp_2m", 3, 2.0


def check_gradients(inputs: Any) -> None:
    """Raise ValueError, as a training would, if the model has no usable gradient."""
    import torch

    from ld3.comfy.gradient.differentiable_model import differentiable_run
    from ld3.comfy.gradient.gradient_check import check_gradient
    from ld3.comfy.guided_run import run
    from ld3.comfy.guiders import cfg_guider
    from ld3.comfy.latents import noise_for, packed
    from ld3.comfy.model_state import keeps_state, refuse_state

    latent = inputs.latent_image["samples"]
    noise, image = packed(noise_for(latent, SEED))[0], packed(latent)[0]

    def task(guided: Any) -> None:
        with differentiable_run(guided) as differentiable:
            tensors = noise.clone(), guided.latents(image).clone()
            if keeps_state(differentiable, *tensors):
                raise refuse_state("optimizer")
            check_gradient(differentiable, *tensors)

    guider = cfg_guider(inputs.model, inputs.positive, inputs.negative, CFG)
    run(guider, latent, torch.tensor([1.0, 0.0]), task, SEED)


def differences(inputs: Any, schedule: Any) -> tuple[float, float]:
    """How far core's sampling with SIGMAS and with SAMPLER is from what was learned, relative."""
    import comfy.sample
    import torch

    from ld3.comfy import core_samplers
    from ld3.comfy.guided_run import run
    from ld3.comfy.guiders import cfg_guider
    from ld3.comfy.latents import noise_for, packed
    from ld3.comfy.sampling import schedule_sampler
    from ld3.table import Discretization

    plain, latent = schedule.plain_sigmas, inputs.latent_image["samples"]
    noise, negative = noise_for(latent, SEED), inputs.negative
    flat, image = packed(noise)[0], packed(latent)[0]

    def task(guided: Any) -> list[Any]:
        core = core_samplers.sampler_object(SAMPLER)
        traced = core_samplers.widget_sampler("sampler", core, plain, guided.model_wrap)
        learned = Discretization(schedule.sigmas, schedule.table)
        solvers = [traced.discretization(plain), learned]
        samples = [
            guided.model.sample(solver, flat, guided.latents(image))[0] for solver in solvers
        ]
        inner, end = guided.model_wrap.inner_model, torch.zeros(())
        return [
            inner.process_latent_out(guided.sampling.inverse_noise_scaling(end, sample))
            for sample in samples
        ]

    guider = cfg_guider(inputs.model, inputs.positive, negative, CFG)
    expected = run(guider, latent, plain, task, SEED)
    samplers = [
        (core_samplers.sampler_object(SAMPLER), plain),
        (schedule_sampler(schedule), schedule.sigmas),
    ]
    found = []
    for (sampler, sigmas), wanted in zip(samplers, expected, strict=True):
        core = comfy.sample.sample_custom(
            inputs.model, noise, CFG, sampler, sigmas.clone(), inputs.positive, negative, latent,
            disable_pbar=True, seed=SEED,
        )  # fmt: skip
        core = packed(core)[0]
        found.append(float((core - wanted).abs().max() / core.abs().max()))
    return found[0], found[1]


def differences_of_two(inputs: Any, schedule: Any, boundary: float) -> tuple[float, float]:
    """The same for two models: core samples with one after the other, LD3 with both at once."""
    import comfy.sample
    import torch

    from ld3.comfy import core_samplers
    from ld3.comfy.latents import noise_for
    from ld3.comfy.sampling import (
        PreparedSampling,
        for_two_models,
        prepared_sampling,
        sample,
        schedule_sampler,
    )

    core, latent = core_samplers.sampler_object(SAMPLER), inputs.latent_image["samples"]
    plain = PreparedSampling(core, schedule.plain_sigmas, CFG, [])
    learned = prepared_sampling(schedule, inputs.model, CFG, low_model=inputs.low_noise_model)
    found = []
    for prepared, sampler in (
        (for_two_models(plain, inputs.model, boundary), core),
        (learned, schedule_sampler(schedule)),
    ):
        wanted, noise, result = sample(inputs, prepared, SEED), noise_for(latent, SEED), latent
        models = inputs.model, inputs.low_noise_model
        for model, sigmas in zip(models, schedule.plain_parts, strict=True):
            result = comfy.sample.sample_custom(
                model, noise, CFG, sampler, sigmas.clone(), inputs.positive, inputs.negative,
                result, disable_pbar=True, seed=SEED,
            )  # fmt: skip
            noise = torch.zeros_like(noise)
        difference = (result - wanted["samples"]).abs().max() / result.abs().max()
        found.append(float(difference))
    return found[0], found[1]

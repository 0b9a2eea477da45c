"""LD3 Load Schedule: a saved schedule as SIGMAS, SAMPLER and LD3_SCHEDULE."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3 import schedule_file
from ..ld3.comfy import folders
from ..ld3.comfy.sampling import check_deterministic, schedule_sampler
from ..ld3.shown_text import shown
from .types import CATEGORY, LD3Schedule, errors_of, show


class LD3LoadSchedule(io.ComfyNode):
    """Load a schedule from models/ld3."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3LoadSchedule",
            display_name="LD3 Load Schedule",
            category=CATEGORY,
            description="Loads a schedule from models/ld3: your own, or one shared by others.",
            search_aliases=["load sigmas", "LD3"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.schedule_names(),
                    tooltip="Schedule file in models/ld3. Press R to list files added since "
                    "ComfyUI was started.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="Noise levels for the plain sampler, in SamplerCustom and other nodes "
                    "that accept SIGMAS. Together with the sampler output the full solver runs, "
                    "which has noise levels of its own.",
                ),
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="Sampler the schedule was learned for. If more than time steps was "
                    "learned, it carries that too; connect the sigmas output beside it.",
                ),
                LD3Schedule.Output(
                    display_name="schedule", tooltip="Sigmas and sampler in one, for LD3 KSampler."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        # a connected name is known only when the node runs
        try:
            if name is not None:
                schedule_file.load(folders.schedule_path(name))
        except ValueError as error:
            return f"LD3 Load Schedule: name: {shown(str(error))}"
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None) -> str:
        return "" if name is None else schedule_file.content_hash(folders.schedule_path(name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        with errors_of("LD3 Load Schedule"):
            schedule = schedule_file.load(folders.schedule_path(name))
            check_deterministic(schedule)
            sampler = schedule_sampler(schedule)
        info = schedule.info
        with_extras = "".join(f" with {extra}" for extra in info.extras)
        show(
            cls,
            f"{info.steps} steps of {info.sampler}{with_extras} at cfg {info.cfg:g}, for "
            f"{info.model_file or info.model_name}",
        )
        return io.NodeOutput(schedule.plain_sigmas, sampler, schedule)

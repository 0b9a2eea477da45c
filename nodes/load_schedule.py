"""LD3 Load Schedule: a saved schedule as SIGMAS, SAMPLER and LD3_SCHEDULE."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..ld3 import schedule_file
from ..ld3.comfy import folders
from ..ld3.comfy.sampling import check_deterministic, schedule_sampler, sigmas_of_parts
from ..ld3.schedule import MOST_STEPS, Schedule
from .messages import schedule_summary
from .schedule_parts import PARTS_OUTPUTS
from .types import CATEGORY, LD3Schedule, check_widgets, reporting, show


class LD3LoadSchedule(io.ComfyNode):
    """Load a schedule from models/ld3."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LD3LoadSchedule",
            display_name="LD3 Load Schedule",
            category=CATEGORY,
            description="Loads a schedule from models/ld3: your own, or one shared by others.",
            search_aliases=["load sigmas", "custom sigmas", "scheduler", "LD3"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.schedule_names() or [folders.NO_SCHEDULE],
                    tooltip="Schedule file in models/ld3. The node shows what it contains. Press R "
                    "to list files that were put there by hand.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=MOST_STEPS,
                    optional=True,
                    tooltip="Number of sampling steps, for schedules learned in several "
                    "(also_steps of LD3 Train Schedule). 0: the one it was learned for. Typical: "
                    "0.",
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
                *PARTS_OUTPUTS,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None, steps: int | None = 0) -> bool | str:
        # what is connected is known only when the node runs
        if name is None:
            return True
        try:
            check_widgets(cls, lambda: _loaded(name, steps or 0))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs) -> str:
        return "" if name is None else schedule_file.content_hash(folders.schedule_path(name))

    @classmethod
    def execute(cls, name: str, steps: int = 0) -> io.NodeOutput:
        with reporting(cls):
            schedule = _loaded(name, steps)
            check_deterministic(schedule)
            sampler = schedule_sampler(schedule)
        if steps:  # the file's own number is shown before the node runs
            show(cls, schedule_summary(schedule.info))
        return io.NodeOutput(schedule.plain_sigmas, sampler, schedule, *sigmas_of_parts(schedule))


def _loaded(name: str, steps: int) -> Schedule:
    """The schedule of that file name in a number of steps, 0 for its own."""
    return schedule_file.load(folders.schedule_path(name)).in_steps(steps)

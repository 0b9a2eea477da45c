"""The nodes: schemas, tooltips, messages. `ld3/` has the method, `ld3/comfy/` its ComfyUI side."""

from comfy_api.v0_0_2 import ComfyExtension, io

from ..ld3.comfy import folders, routes, scheduler_list
from .compare_schedules import LD3CompareSchedules
from .demo import LD3DemoModel, LD3DemoPrompt
from .distill_solver import LD3DistillSolver
from .ksampler import LD3KSampler
from .load_schedule import LD3LoadSchedule
from .messages import schedule_summary
from .plot_schedule import LD3PlotSchedule
from .prompt_list import LD3PromptList
from .train_schedule import LD3TrainSchedule
from .train_schedule_advanced import LD3TrainScheduleAdvanced
from .training_options import LD3TrainingOptions


class LD3Extension(ComfyExtension):
    """All nodes of the pack."""

    async def on_load(self) -> None:
        folders.register()
        scheduler_list.register()
        routes.register(schedule_summary)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LD3TrainSchedule,
            LD3TrainScheduleAdvanced,
            LD3TrainingOptions,
            LD3LoadSchedule,
            LD3KSampler,
            LD3CompareSchedules,
            LD3PlotSchedule,
            LD3DistillSolver,
            LD3PromptList,
            LD3DemoModel,
            LD3DemoPrompt,
        ]

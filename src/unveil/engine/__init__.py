"""The training loop and what it stands on. Knows nothing of vision: tasks, data and sinks come to it as objects."""

from unveil.engine.checkpoint import Checkpoint, CheckpointFolder
from unveil.engine.evaluation import evaluate
from unveil.engine.loop import Outcome, train
from unveil.engine.optimizer import build_optimizer
from unveil.engine.parallel import Parallel
from unveil.engine.precision import Precision, fastest_precision
from unveil.engine.run_folder import RunFolder
from unveil.engine.schedule import learning_rate
from unveil.engine.task import Batch, Task
from unveil.engine.tracking import ConsoleProgress, JsonlSink, Sink, build_sinks

__all__ = [
    "Batch",
    "Checkpoint",
    "CheckpointFolder",
    "ConsoleProgress",
    "JsonlSink",
    "Outcome",
    "Parallel",
    "Precision",
    "RunFolder",
    "Sink",
    "Task",
    "build_optimizer",
    "build_sinks",
    "evaluate",
    "fastest_precision",
    "learning_rate",
    "train",
]

"""The parts of the acceptance run, in their order: a module of this package each, with a function ``run``."""

from typing import NamedTuple


class Part(NamedTuple):
    """A part, and its claim to the time.

    Attributes:
        about: what it looks at, in a line.
        share: of the time that is left, among those of the parts that are left; seconds, where nine minutes are given.
        least: seconds below which it is not begun on a GPU.
        ranks: whether it has to do with several ranks: these are the parts that run under torchrun, too.
        everywhere: whether each rank runs it, as ranks of one group.
        cut: whether it may be ended by its time limit: it measures, and what it has measured by then counts.
    """

    about: str
    share: float
    least: float = 8
    ranks: bool = False
    everywhere: bool = False
    cut: bool = False


PARTS = {
    "material": Part("JPEGs to read: 4:2:0, quality 95, as RecordIO in memory", 25),
    "environment": Part("what the machine has, and whether it fits together", 20, ranks=True),
    "first_contact": Part("products of half precision into float32, one step of the head", 25),
    "suite": Part("tests marked gpu, the kernels' tests; whether a training step waits for the device", 75, 20),
    "decode": Part("the loader alone and beside a training step, by way of decoding", 85, 15, cut=True),
    "pixels": Part("pixels of the GPU against Pillow's, their lifetime, bad images", 35),
    "head": Part("the classifier: exactness, time, memory, more than 2^31 numbers", 80, 15, cut=True),
    "step": Part("whole training steps of r50, r100 and vit_l", 100, 20, cut=True),
    "runs": Part("a run that is killed and resumed, SIGTERM, a checkpoint's speed", 60, 20),
    "collectives": Part("every collective in use, DDP, a sharded checkpoint", 30, ranks=True, everywhere=True),
    "failure": Part("how soon a rank that fails says so and ends the others", 30, ranks=True),
    "verification": Part("accuracy in float32 and bfloat16", 25),
    "plan": Part("what the planner expects of these steps", 15, cut=True),
    "compile": Part("the same steps under torch.compile", 60, 30, cut=True),
}

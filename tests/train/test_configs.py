"""Every config in configs/, and every backbone, takes steps on two ranks."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evaluate.features.ranks import World
from models.inspect import cost
from models.pretrained import save_pretrained
from models.registry import create_model, model_names
from train.config import load_config
from train.trainer import Trainer

CONFIGS = sorted(Path(__file__).resolve().parents[2].glob("configs/*.yaml"))
SMALLEST = {
    "r": "r18",
    "i": "ir_18",
    "v": "vit_t",
    "t": "transface_t",
    "m": "mbf",
}  # of each family, by first letter


def take_steps(path: str, overrides: list[str], count: int) -> tuple[list[float], float]:
    """Losses of this rank, and by how much the first weights that are trained changed."""
    torch.manual_seed(0)
    world = World(torch.device("cpu"), dist.get_rank(), dist.get_world_size())
    trainer = Trainer(load_config(path, overrides), world)
    first = next(parameter for parameter in trainer.learner.backbone.parameters() if parameter.requires_grad)
    before = first.detach().clone()
    batches = iter(trainer.loader)
    losses = []
    for _ in range(count):
        trainer.meter.window.zero_()
        trainer.train_step(batches)
        losses.append(float(trainer.meter.window[0]))
    trainer.loader.close()
    return losses, float((first - before).abs().max())


def run_on_two_ranks(ranks, path, folder, data, overrides, count):
    settings = [
        f"data.train={data}",
        "data.batch_size=4",
        "data.threads=1",
        "verify.bins=[]",
        f"output={folder}/run",
        "model.init_from=null",
        "head.init_from=null",
        "model.compile=false",  # which takes longer than the steps; `test_compile` has it
        "precision=auto",  # bf16 is slow where the processor has none
    ]
    (losses, change), (other_losses, other_change) = ranks(2, take_steps, str(path), [*settings, *overrides], count)
    assert torch.isfinite(torch.tensor([*losses, *other_losses])).all() and min(losses) > 0
    assert change == other_change > 0


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_config_takes_two_steps(ranks, path, tmp_path, faces):
    given = load_config(path).model.name
    name = "vit_s_kprpe" if given.endswith("kprpe") else SMALLEST[given[0]]
    overrides = [f"model.name={name}", "model.input_size=36"]
    if name == "r18":
        overrides.append("model.width=0.125")
    if load_config(path).recipe.name == "distill":
        small = {"name": "mbf", "width": 0.125, "embedding_size": 16, "input_size": 32}
        save_pretrained(create_model(**small), small, tmp_path / "teacher", card="")
        overrides += [f"recipe.teacher={tmp_path / 'teacher'}", "recipe.cache=null"]
    run_on_two_ranks(ranks, path, tmp_path, faces, overrides, 2)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_networks_are_compiled_for_gpus(path):
    config = load_config(path)
    assert config.model.compile or config.device != "cuda"


def test_fewer_gpus_keep_the_global_batch():
    """What was published for 64 GPUs says by how many batches a step 8 and 16 of them come to the same one."""
    found = 0
    for path in CONFIGS:
        text = path.read_text()
        (batch_size, gpus), *_ = re.findall(r"(\d+) x (\d+) images", text) or [(0, 0)]
        if int(gpus) <= 8:
            continue
        assert load_config(path).data.batch_size == int(batch_size)
        (one, first, other, second), *_ = re.findall(
            r"On (\d+) GPUs optim.accumulate=(\d+), on (\d+) optim.accumulate=(\d+)", text
        )
        assert (one, other) == ("8", "16")
        assert int(one) * int(first) == int(other) * int(second) == int(gpus)
        found += 1
    assert found == 4


# Copies of the weights' size on either rank: weights, gradients, momentum, and the update itself for a moment; and how
# to do with half of them (measured 4.0 and 2.1).
COPIES = 4
LEAN_COPIES, LEAN = 2.1, ["optim.momentum=0", "optim.weight_decay=0", "precision=fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_backbone_takes_a_step(ranks, name, tmp_path, faces):
    overrides = [f"model.name={name}", "model.input_size=36", "model.checkpoint_activations=true"]
    copy_on_both = 2 * 4 * cost(name=name, input_size=36).parameters
    free = available_memory() - 2**30
    if COPIES * copy_on_both > free:
        overrides += LEAN
    if (needed := LEAN_COPIES * copy_on_both) > free:
        pytest.skip(f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
    run_on_two_ranks(ranks, CONFIGS[0].with_name("glint360k_r50.yaml"), tmp_path, faces, overrides, 1)


def available_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024

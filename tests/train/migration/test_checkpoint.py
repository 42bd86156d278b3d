"""Checkpoints of arcface_torch go on here: as a loop in plain PyTorch that saves as theirs does goes on itself."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from evaluate.features.ranks import World
from models.registry import BACKBONES
from models.sharded import read_sharded
from pipelines.loading.batch import Batch
from tests.train.migration.theirs import checkout, save_ranks
from tests.train.plain_run import Plain
from train.config import load_config
from train.migration.checkpoint import find_saved
from train.step_folders import complete
from train.trainer import Trainer

CLASSES, SIZE, RANKS = 10, 4, 3  # 10 classes fall to their ranks as 4, 3, 3; to two of ours as 5, 5
BATCH = SIZE * RANKS
TOTAL = 400_000  # batches of the run: so many that a rate which is half a batch behind is the same
SAVED, GOES_ON = 6, 6


def batch(step):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return torch.randn(BATCH, 3, 32, 32, generator=generator) + labels[:, None, None, None] / 5, labels


def their_loss(backbone, centres, step):
    """ArcFace as they compute it: the margin is added without gradient."""
    images, labels = batch(step)
    cos = F.normalize(backbone(images)) @ F.normalize(torch.cat(centres)).T
    own = cos.detach().gather(1, labels[:, None])
    moved = torch.cos(torch.arccos(own) + 0.5)
    return F.cross_entropy(64 * cos.scatter_add(1, labels[:, None], moved - own), labels)


def train_theirs(folder, optimizer, batches):
    """Their loop on three ranks, in one process; files after SAVED steps. Returns the losses of the steps after it."""
    torch.manual_seed(0)
    backbone = Plain(16, 32)
    backbone.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)  # as an iresnet's last scale
    rows = [CLASSES // RANKS + (rank < CLASSES % RANKS) for rank in range(RANKS)]
    centres = [torch.nn.Parameter(torch.randn(count, 16) * 0.01) for count in rows]
    rules = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.002, weight_decay=0.1),
    }
    rule = rules[optimizer]([{"params": backbone.parameters()}, {"params": centres}])
    first = rule.param_groups[0]["lr"]
    losses = []
    for global_step in range((SAVED + GOES_ON) * batches):
        if global_step == SAVED * batches:
            state = rule.state_dict()
            save_ranks(folder, backbone, centres, state, epoch=1, global_step=global_step, total_iters=TOTAL)
            losses.clear()
        for group in rule.param_groups:
            group["lr"] = first * (1 - global_step / TOTAL)
        loss = their_loss(backbone, centres, global_step)
        loss.backward()
        losses.append(loss.item())
        if (global_step + 1) % batches == 0:
            torch.nn.utils.clip_grad_norm_(backbone.parameters(), 5)
            rule.step()
            rule.zero_grad()
    return [sum(losses[i : i + batches]) for i in range(0, len(losses), batches)]


class WithFrozen(Plain):
    def __init__(self, embedding_size: int, input_size: int) -> None:
        super().__init__(embedding_size, input_size)
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)


def go_on(path, overrides):
    """The losses of our steps from the checkpoint on, and the first of them, on this rank."""
    BACKBONES["frozen"] = WithFrozen
    trainer = Trainer(load_config(path, overrides), World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()))
    first, losses = trainer.step, []
    share = trainer.config.data.batch_size
    while trainer.step < first + GOES_ON:
        trainer.meter.window.zero_()
        trainer.train_step(shares(trainer, share))
        losses.append(float(trainer.meter.window[0]))
    trainer.loader.close()
    trainer.folder.release()
    return first, losses


def shares(trainer, size):
    """This rank's batches of a step: batch j is share jR + r of the global ones that theirs took."""
    world, step = trainer.world, trainer.step * trainer.accumulate
    for part in range(trainer.accumulate):
        images, labels = batch(step + part) if trainer.global_batch > BATCH else batch(trainer.step)
        first = (0 if trainer.global_batch > BATCH else part * world.size * size) + world.rank * size
        mine = slice(first, first + size)
        yield Batch(images[mine], labels[mine], torch.arange(size), torch.zeros(size, 1))


def config_of(folder, faces, **own):
    given = {"network": "frozen", "embedding_size": 16, "batch_size": SIZE, "num_classes": CLASSES, "val_targets": []}
    given |= {"rec": str(faces), "num_epoch": TOTAL * BATCH // 96}
    return checkout(folder, **given | own)


def overrides(folder):
    return f"output={folder / 'run'}", "model.input_size=32", "data.threads=1"


@pytest.mark.parametrize("optimizer, batches", [("sgd", 1), ("adamw", 1), ("sgd", 2), ("adamw", 2)])
def test_a_run_goes_on(migrate, ranks, monkeypatch, tmp_path, faces, optimizer, batches):
    monkeypatch.setitem(BACKBONES, "frozen", WithFrozen)
    theirs = train_theirs(tmp_path / "work", optimizer, batches)
    own = {"lr": 0.02} if optimizer == "sgd" else {"lr": 0.002, "weight_decay": 0.1, "optimizer": "adamw"}
    path = config_of(tmp_path, faces, gradient_acc=batches, **own)
    out = tmp_path / "mine.yaml"
    of_gpus = ["head.kernels=triton", "data.decode=gpu", "optim.compress=bf16"]  # where it goes on, not where it moves
    migrate(path, *overrides(tmp_path), *of_gpus, "--checkpoint", tmp_path / "work", "--out", out)
    here = ["data.threads=1", "head.kernels=torch", "data.decode=cpu", "optim.compress=none"]
    for count, size in ((1, BATCH), (2, BATCH // 2)):
        for first, losses in ranks(count, go_on, str(out), [f"data.batch_size={size}", *here]):
            assert first == SAVED
            assert losses == pytest.approx(theirs, rel=2e-5)  # the rounding that six steps carry on
    assert abs(theirs[-1] - theirs[0]) > 0.01 * theirs[0]  # those steps have moved something


def test_momentum_of_the_first_partial_fc(migrate, monkeypatch, tmp_path, faces):
    """It has that of the classes drawn last alone, and its own resuming begins without."""
    monkeypatch.setitem(BACKBONES, "frozen", WithFrozen)
    work = tmp_path / "work"
    train_theirs(work, "sgd", 1)
    for file in sorted(work.iterdir()):
        content = torch.load(file, weights_only=True)
        content["state_optimizer"]["state"][7]["momentum_buffer"] = torch.ones(2, 16)
        torch.save(content, file)
    path = config_of(tmp_path, faces, sample_rate=0.5)
    migrate(path, *overrides(tmp_path), "optim.ema=0.99", "--checkpoint", work, "--out", tmp_path / "mine.yaml")
    (written,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert not read_sharded(written, "centre_optimizer")["momentum"].any()
    average, backbone = read_sharded(written, "ema"), read_sharded(written)
    assert all(torch.equal(average[name], weights) for name, weights in backbone.items())  # begins where theirs ended
    assert all(value.any() for name, value in read_sharded(written, "optimizer").items() if "frozen" not in name)


def test_a_file_that_cannot_be_written_leaves_no_checkpoint(migrate, monkeypatch, tmp_path, faces):
    """The command with another --out goes on; in fp16 the loss scale is a new run's, for theirs is not saved."""
    monkeypatch.setitem(BACKBONES, "frozen", WithFrozen)
    work, path = tmp_path / "work", config_of(tmp_path, faces)
    train_theirs(work, "sgd", 1)
    given = (path, *overrides(tmp_path), "precision=fp16", "--checkpoint", work, "--out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        migrate(*given, tmp_path / "nowhere" / "mine.yaml")
    assert not (tmp_path / "run").exists()
    migrate(*given, tmp_path / "mine.yaml")
    (written,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_sharded(written, "scaler") == {"scale": 2**16, "good_steps": 0}


def test_what_does_not_fit_is_told(migrate, monkeypatch, tmp_path, faces):
    monkeypatch.setitem(BACKBONES, "frozen", WithFrozen)
    work, out = tmp_path / "work", tmp_path / "mine.yaml"
    train_theirs(work, "sgd", 1)
    faults = {
        "does not fit mbf": {"network": "mbf", "embedding_size": 512},
        "of 12 classes": {"num_classes": 12},
        "there is no": {"rec": str(tmp_path / "nowhere")},
    }
    for told, own in faults.items():
        with pytest.raises((ValueError, OSError), match=told):
            migrate(config_of(tmp_path, faces, **own), *overrides(tmp_path), "--checkpoint", work, "--out", out)
        assert not out.exists() and not complete(tmp_path / "run" / "checkpoints")
        if dist.is_initialized():  # a command that fails ends with its process
            dist.destroy_process_group()
    (tmp_path / "run" / "checkpoints" / "step_000000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_000000001" / "meta.json").touch()
    with pytest.raises(ValueError, match="holds a run already"):
        migrate(config_of(tmp_path, faces), *overrides(tmp_path), "--checkpoint", work, "--out", out)
    dist.destroy_process_group()


def test_files_that_are_no_states(tmp_path):
    train_theirs(tmp_path, "sgd", 1)
    assert len(find_saved(tmp_path).files) == RANKS and find_saved(tmp_path).global_step == SAVED
    (tmp_path / "checkpoint_gpu_1.pt").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="lacks the file of arcface_torch.s rank 1"):
        find_saved(tmp_path)
    for content, told in (({"weight": 1}, "has no epoch"), (None, "is no checkpoint")):
        (tmp_path / "checkpoint_gpu_1.pt").write_bytes(b"")
        if content:
            torch.save(content, tmp_path / "checkpoint_gpu_1.pt")
        with pytest.raises(ValueError, match=told):
            find_saved(tmp_path)

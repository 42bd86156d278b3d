"""What those who come from arcface_torch have: a checkout with a config and its base, and what their ranks save."""

import torch

BASE = {
    "margin_list": (1.0, 0.5, 0.0),
    "network": "r50",
    "resume": False,
    "save_all_states": False,
    "output": "ms1mv3_arcface_r50",
    "embedding_size": 512,
    "sample_rate": 1,
    "interclass_filtering_threshold": 0,
    "fp16": False,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "verbose": 2000,
    "frequent": 10,
    "dali": False,
    "dali_aug": False,
    "gradient_acc": 1,
    "seed": 2048,
    "num_workers": 2,
    "wandb_key": "secret",
    "using_wandb": False,
}
OWN = {"rec": "/data/ms1mv3", "num_classes": 93431, "num_image": 5179510, "num_epoch": 20, "warmup_epoch": 0}
OWN |= {"output": None, "val_targets": ["lfw"]}


def module(values):
    """A config as they write them."""
    lines = [f"config.{key} = {value!r}" for key, value in values.items()]
    return "\n".join(["from easydict import EasyDict as edict", "config = edict()", *lines, ""])


def checkout(folder, *, base=BASE, scheduler="", marks=(), lines="", **own):
    """A checkout in ``folder``; the path of its config, which is OWN and ``own``."""
    configs = folder / "checkout" / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    if base:
        (configs / "base.py").write_text(module(base))
    if scheduler:
        (configs.parent / "lr_scheduler.py").write_text(scheduler)
    for name in marks:
        (configs.parent / name).touch()
    path = configs / "mine.py"
    path.write_text(module(OWN | own) + lines)
    return path


def save_ranks(folder, backbone, centres, state, *, epoch, global_step, total_iters):
    """``checkpoint_gpu_N.pt`` of each rank: its rows of the centres, and its own of the optimiser's ``state``."""
    folder.mkdir(exist_ok=True)
    count = len(list(backbone.parameters()))
    for rank, rows in enumerate(centres):
        own = {number: state["state"][number] for number in range(count) if number in state["state"]}
        own[count] = state["state"][count + rank]
        groups = [{**state["param_groups"][0]}, {**state["param_groups"][1], "params": [count]}]
        content = {
            "epoch": epoch,
            "global_step": global_step,
            "state_dict_backbone": backbone.state_dict(),
            "state_dict_softmax_fc": {"weight": rows.detach()},
            "state_optimizer": {"state": own, "param_groups": groups},
            "state_lr_scheduler": {"power": 1.0, "total_iters": total_iters, "warmup_iters": 0},
        }
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")

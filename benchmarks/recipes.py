"""Step time of each recipe over the plain step on the same network: ``python -m benchmarks.recipes``.

Both steps run in turns in one process on batches that lie ready; the figures are medians over the rounds, of the
recipe's step over the plain step of the same round. The parts that a recipe adds are timed by themselves as well.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import results
from benchmarks.measure import in_turns
from losses import PartialFC, create_margin
from losses.auxiliary.contrastive import AdaptiveContrast
from losses.auxiliary.hardness import hardness_weights
from losses.auxiliary.topology import Cloud, topological_loss
from models import create_model
from pipelines.common.command import run
from pipelines.loading.loader import Batch
from train.recipes import Recipe, create_recipe
from train.recipes.backbones import unfreeze_scale
from train.recipes.topofr import TopoFR
from train.recipes.transface import TransFace

NETWORKS = {"transface": "transface_t", "topofr": "r18", "contraface": "r18"}
EMBEDDING_SIZE = 512


def random_batch(count: int, num_uniforms: int, device: torch.device) -> Batch:
    """Noise in the shape of a batch."""
    images = (torch.rand(count, 3, 112, 112, device=device) * 2 - 1).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (count,), device=device)
    return Batch(images, labels, torch.arange(count), torch.rand(count, 1 + num_uniforms), images.clone())


def parts(recipe: Recipe, batch: Batch) -> dict[str, Callable[[], object]]:
    """What the recipe computes beside network and head."""
    count, device = len(batch.images), batch.images.device
    embeddings = torch.randn(count, EMBEDDING_SIZE, device=device, requires_grad=True)
    if isinstance(recipe, TransFace):
        return {"patch perturbation": lambda: recipe._perturbed(batch)}
    if isinstance(recipe, TopoFR):
        clean = batch.clean
        assert clean is not None, "random_batch has both views"
        entropy, probability = torch.rand(2, count, device=device)
        valid = torch.ones(count, dtype=torch.bool, device=device)
        return {
            "topology": lambda: topological_loss(Cloud(clean), Cloud(embeddings)).backward(),
            "hardness": lambda: hardness_weights(entropy, probability, valid),
        }
    contrast = AdaptiveContrast().to(device)
    return {"contrast": lambda: contrast(embeddings, embeddings * 0.9, batch.labels).backward()}


def measure(name: str, count: int, rounds: int, device: torch.device) -> list[results.Row]:
    """Rows {recipe, part, milliseconds, of_plain_step}."""
    half = device.type == "cuda"
    recipes = {"plain": create_recipe("plain"), name: create_recipe(name).to(device)}
    steps, batch = {}, random_batch(count, recipes[name].num_uniforms, device)
    for key, recipe in recipes.items():
        backbone, margin = create_model(NETWORKS[name], EMBEDDING_SIZE), create_margin("arcface")
        backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # untyped
        head = PartialFC(
            margin, EMBEDDING_SIZE, 10_000, entropy=recipe.entropy, device=device,
            matmul_dtype=torch.bfloat16 if half else torch.float32,
        )  # fmt: skip
        unfreeze_scale(backbone, recipe, margin)
        network = recipe.network(backbone).train()

        def step(recipe: Recipe = recipe, network: torch.nn.Module = network, head: PartialFC = head) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = recipe.step(batch, network, head, 0.0).loss
            loss.backward()

        steps[key] = step
    times, _ = in_turns({**steps, **parts(recipes[name], batch)}, rounds, device)
    return [
        {
            "recipe": name,
            "part": {"plain": "plain step", name: "whole step"}.get(key, key),
            "milliseconds": 1000 * statistics.median(values),
            "of_plain_step": statistics.median(a / b for a, b in zip(values, times["plain"])),
        }
        for key, values in times.items()
    ]


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for name in NETWORKS for row in measure(name, options.batch, options.rounds, device)]
    results.show(rows, f"recipes, batch {options.batch}")
    print(results.save("recipes", rows, options.output))


if __name__ == "__main__":
    run(main)

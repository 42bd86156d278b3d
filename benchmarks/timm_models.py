"""What models of timm cost as backbones, and whether they become ONNX files: ``python -m benchmarks.timm_models``.

A row a model. It has two ways to an embedding: the iresnets' head on its last map, and its own pooling. The row says
for either the least of some usual sides that the model takes; what the model costs with the head, or with the pooling
where it has no map; and whether its ONNX file gives the same embeddings. Rows that the JSON file has are kept. The
table in docs/methods.md is made of it (`table`).
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks import results
from benchmarks.results import Row
from models import create_model
from models.inspect import cost
from models.onnx_file import export_onnx
from pipelines.common.command import run
from pipelines.common.errors import UserError, one_line

NAME = "timm_models"
# One small model of each family that is much in use.
MODELS = (
    "hiera_tiny_224",
    "maxvit_tiny_rw_224",
    "swinv2_tiny_window8_256",
    "eva02_tiny_patch14_224",
    "vit_small_patch14_dinov2",
    "caformer_s18",
    "fastvit_t8",
    "mobilenetv4_conv_small",
    "convnextv2_nano",
    "ghostnetv2_100",
    "repvit_m1",
    "tf_efficientnetv2_b0",
    "swin_tiny_patch4_window7_224",
    "edgenext_small",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "vit_small_patch16_224",
    "deit3_small_patch16_224",
    "convnext_tiny",
)
SIDES = (112, 128, 224, 256)
POOLS = ("flatten", "own")


def costs(model: str) -> Row:
    """{model, flatten, own, parameters, gmac}: the least side with either head, None where none of ``SIDES`` does."""
    row: Row = {"model": model}
    for pool in POOLS:
        row[pool] = None
        for side in SIDES:
            try:
                found = cost(name=f"timm/{model}", input_size=side, pool=pool)
            except UserError:
                continue
            row[pool] = side
            row.setdefault("parameters", found.parameters)
            row.setdefault("gmac", found.gmac)
            break
    return row


def exports(model: str, pool: str, side: int) -> str:
    """``yes``, or why it does not export."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            network = create_model(f"timm/{model}", input_size=side, pool=pool).eval()
            export_onnx(network, Path(folder) / "model.onnx", side)
        except Exception as error:  # whatever the exporter or onnxruntime raises is the finding
            return one_line(error)
    return "yes"


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| `timm/…` | last map, at | own pooling, at | parameters, M | GMAC | ONNX |", "|---|---|---|---|---|---|"]
    for row in rows:
        sides = (str(row[pool] or "–") for pool in POOLS)
        figures = (f"{row['parameters'] / 1e6:.1f}", f"{row['gmac']:.2f}", row["onnx"])
        lines.append(f"| `{row['model']}` | {' | '.join((*sides, *figures))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the file has no row of yet, write it behind each model, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    path = options.output / f"{NAME}_{results.slug()}.json"
    known = {row["model"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for model in MODELS:
        if model not in known:
            row = costs(model)
            pool = next(pool for pool in POOLS if row[pool])
            known[model] = {**row, "onnx": exports(model, pool, row[pool])}
            results.save(NAME, [known[each] for each in MODELS if each in known], options.output)
    print(table([known[model] for model in MODELS]))


if __name__ == "__main__":
    run(main)

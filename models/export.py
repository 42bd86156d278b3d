"""Export a backbone: ``python -m models.export --checkpoint FILE --output model.onnx``, or ``--output FOLDER``.

A name that ends in ``.onnx`` gives an ONNX file, in ``.pt2`` a program of ``torch.export``, any other a folder
in Hugging Face's layout.
"""

import sys

if not __package__:  # then this folder comes first in the search for modules, and its inspect.py before Python's own
    sys.exit("error: run it as: python -m models.export")

import argparse
import json
from pathlib import Path
from typing import Any

from models.onnx_file import export_onnx
from models.pretrained import model_card, save_pretrained
from models.program import export_program
from models.weights import load_backbone, require_finite, run_config
from pipelines.common.command import at_least, run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description="Export a backbone: ONNX, torch.export, Hugging Face's layout."
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, checkpoint or state dict")
    parser.add_argument("--network", help="the backbone's name; default: told from the files")
    parser.add_argument("--input-size", type=at_least(1), help="side of the images; default: told from the files")
    parser.add_argument("--output", type=Path, required=True, help="model.onnx, model.pt2, or a folder")
    parser.add_argument("--fp16", action="store_true", help="ONNX: half precision inside")
    parser.add_argument("--dynamic-batch", action="store_true", help="ONNX: any number of images at a time")
    parser.add_argument(
        "--results", type=Path, help="results.json of evaluate.verification, for the folder's model card"
    )
    parser.add_argument("--overlap", type=Path, help="overlap.json of evaluate.overlap, for the card")
    parser.add_argument("--licence", help="of the weights, for the card, as the hub names it: apache-2.0, other, ...")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_output(args)
    given: dict[str, Any] = {"name": args.network, "input_size": args.input_size}
    model, options = load_backbone(args.checkpoint, **{name: value for name, value in given.items() if value})
    require_finite(model)
    suffix = args.output.suffix.lower()
    if suffix == ".onnx":
        size = options["input_size"]
        error = export_onnx(model, args.output, size, fp16=args.fp16, dynamic_batch=args.dynamic_batch)
        say(f"written: {args.output} ({options['name']}; onnxruntime and PyTorch agree to {error:.1e} of the norm)")
        return
    if suffix == ".pt2":
        error = export_program(model, args.output, options["input_size"])
        say(f"written: {args.output} ({options['name']}; the program and the network agree to {error:.1e} of the norm)")
        return
    results = _read(args.results, "sets", "evaluate.verification wrote as results.json")
    overlap = _read(args.overlap, "shared", "evaluate.overlap wrote as overlap.json")
    card = model_card(options, run_config(args.checkpoint), results, overlap, args.licence)
    save_pretrained(model, options, args.output, card)
    say(f"written: {args.output}/model.safetensors, config.json and README.md ({options['name']})")


def check_output(args: argparse.Namespace) -> None:
    """Raise ``UserError`` where the options do not go with what ``--output`` names, or where it cannot be written."""
    output, suffix = args.output, args.output.suffix.lower()
    if suffix == ".safetensors":
        raise UserError("give --output the name of a folder: model.safetensors, its config and its card go there")
    if suffix != ".onnx" and (args.fp16 or args.dynamic_batch):
        raise UserError("--fp16 and --dynamic-batch are for ONNX: give --output a name that ends in .onnx")
    if suffix not in (".onnx", ".pt2"):
        if output.exists() and not output.is_dir():
            raise UserError(f"{output} is a file: give --output the name of a folder, or one in .onnx or .pt2")
        check_folder(output)
        return
    for name in ("results", "overlap", "licence"):
        if getattr(args, name):
            raise UserError(f"--{name} is for the model card: give --output the name of a folder")
    if output.is_dir():
        raise UserError(f"{output} is a folder: give --output the name of a file")
    check_folder(output.parent)


def _read(path: Path | None, key: str, what: str) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or key not in found:
        raise UserError(f"{path} is not what {what}")
    return found


if __name__ == "__main__":
    run(main)

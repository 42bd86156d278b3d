"""Export a backbone: ``python -m models.export --checkpoint FILE --output model.onnx``, or ``--output FOLDER``.

A name that ends in ``.onnx`` gives an ONNX file, any other a folder in Hugging Face's layout.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from models.onnx_file import export_onnx
from models.pretrained import model_card, save_pretrained
from models.weights import load_backbone
from pipelines.entry import run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export a backbone to ONNX or to Hugging Face's layout.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, checkpoint or state dict")
    parser.add_argument("--network", help="the backbone's name; default: told from the files")
    parser.add_argument("--input-size", type=int, help="side of the images; default: told from the files")
    parser.add_argument("--output", type=Path, required=True, help="model.onnx, or a folder")
    parser.add_argument("--fp16", action="store_true", help="ONNX: half precision inside")
    parser.add_argument("--dynamic-batch", action="store_true", help="ONNX: any number of images at a time")
    parser.add_argument(
        "--results", type=Path, help="folder: results.json of evaluate.verification, for the model card"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    given: dict[str, Any] = {"name": args.network, "input_size": args.input_size}
    model, options = load_backbone(args.checkpoint, **{name: value for name, value in given.items() if value})
    if args.output.suffix == ".onnx":
        args.output.parent.mkdir(parents=True, exist_ok=True)
        size = options["input_size"]
        error = export_onnx(model, args.output, size, fp16=args.fp16, dynamic_batch=args.dynamic_batch)
        print(f"written: {args.output} ({options['name']}; onnxruntime and PyTorch agree to {error:.1e} of the norm)")
        return
    if args.fp16 or args.dynamic_batch:
        raise ValueError("--fp16 and --dynamic-batch are for ONNX: give --output a name that ends in .onnx")
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    config = folder / "config.yaml"
    training = yaml.safe_load(config.read_text()) if config.exists() else None
    results = json.loads(args.results.read_text()) if args.results else None
    save_pretrained(model, options, args.output, model_card(options, training, results))
    print(f"written: {args.output}/model.safetensors, config.json and README.md ({options['name']})")


if __name__ == "__main__":
    run(main)

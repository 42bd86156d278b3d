"""``facemill COMMAND …``: every command by one name, as ``python -m`` has it.

``facemill completion bash`` prints what makes bash complete the names of commands, configs and files; ``zsh`` likewise.
"""

import runpy
import sys

from pipelines.common.command import run
from pipelines.common.errors import unknown

# The module that a command is, and what it does. Modules are only imported when they are called.
COMMANDS = {
    "train": ("train.run", "train by a config; on several GPUs: torchrun --nproc_per_node=8 -m train.run"),
    "configs": (
        "train.shipped",
        "the configs that come with Facemill: names for --config, or one of them to be changed",
    ),
    "plan": ("train.plan", "what a run needs, and how long it takes"),
    "doctor": ("train.doctor", "whether this machine's parts fit together"),
    "migrate": ("train.migrate", "a config or a run of arcface_torch and others becomes ours"),
    "prepare": ("pipelines.prepare", "convert, check, repair, align, split, pairs, inspect"),
    "synthetic": ("pipelines.synthetic", "render faces to train on"),
    "preview": ("pipelines.preview", "pictures of an augmentation"),
    "verify": ("evaluate.verification", "LFW-style .bin sets"),
    "ijb": ("evaluate.ijb", "IJB-B and IJB-C, verification and identification"),
    "megaface": ("evaluate.megaface", "MegaFace"),
    "tinyface": ("evaluate.tinyface", "TinyFace: faces of a few pixels among distractors"),
    "ijbs": ("evaluate.ijbs", "IJB-S: surveillance video against stills, booking pictures and video"),
    "folders": ("evaluate.folders", "your own people: thresholds for wanted false-accept rates, 1:1 and 1:N"),
    "labels": ("evaluate.labels", "wrong labels of a data set"),
    "overlap": ("evaluate.overlap", "people whom data sets share"),
    "report": ("evaluate.report", "one page of results"),
    "inspect": ("models.inspect", "backbones and what they cost"),
    "push": ("models.push", "an exported model to Hugging Face's hub"),
    "export": ("models.export", "ONNX, a program of torch.export, or a folder in Hugging Face's layout"),
    "quantise": ("evaluate.quantise", "an ONNX file in 8 bits, if it is as good"),
}

_COMPLETION = {
    "bash": "complete -o default -W '{names}' facemill",
    "zsh": "autoload -U +X bashcompinit && bashcompinit && complete -o default -W '{names}' facemill",
}


def main() -> None:
    """The entry point of the console script."""
    run(_main)


def _main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: facemill COMMAND ...\n")
        print("\n".join(f"  {command:11}{what}" for command, (_, what) in COMMANDS.items()))
        print(f"  {'completion':11}what makes a shell complete commands: {', '.join(_COMPLETION)}")
        print("\nfacemill COMMAND --help says more.")
    elif name == "completion":
        shell = rest[0] if rest else "bash"
        if shell not in _COMPLETION:
            raise unknown("shell", shell, _COMPLETION)
        print(_COMPLETION[shell].format(names=" ".join([*COMMANDS, "completion"])))
    elif name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    else:
        sys.argv = [f"facemill {name}", *rest]
        runpy.run_module(COMMANDS[name][0], run_name="__main__")

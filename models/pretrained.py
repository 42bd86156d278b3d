"""Models as folders in Hugging Face's layout: ``config.json``, ``model.safetensors`` and ``README.md``, the card.

Their hub has such folders by the name ``user/name``; `models.push` puts them there.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import nn

from models.weights import load_backbone, require_finite
from pipelines.common.errors import UserError, one_line
from pipelines.common.files import replacing

FILES = ("config.json", "model.safetensors", "README.md")


def from_pretrained(path: str | Path, revision: str | None = None) -> nn.Module:
    """The backbone in a folder that `save_pretrained` wrote, in evaluation mode.

    Args:
        path: a local folder, or ``user/name`` of the hub, which is downloaded once and then taken from its cache;
            ``hf-hub:user/name`` and ``user/name@revision``, as timm has them, are taken, too.
        revision: a branch, tag or commit of the hub's; its main branch by default.
    """
    named = re.fullmatch(r"(?:hf[-_]hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(path))
    if named and not Path(path).exists():
        path = _downloaded(named[1], revision or named[2])
    return load_backbone(path)[0]


def hub() -> ModuleType:
    """The package huggingface_hub. Raises ``UserError`` where it is not installed."""
    try:
        import huggingface_hub.errors
    except ImportError:
        raise UserError("the hub needs the package huggingface_hub: pip install 'facemill[hub]'") from None
    return huggingface_hub


def _downloaded(name: str, revision: str | None) -> Path:
    library = hub()
    try:
        return Path(library.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, library.errors.HfHubHTTPError) as error:
        raise UserError(f"{name} is no folder here, and not to be had from the hub: {one_line(error)}") from None


def save_pretrained(model: nn.Module, options: Mapping[str, Any], folder: Path, card: str) -> None:
    """Write ``model``, the arguments of `create_model` that make it, and the text of its card.

    Raises:
        ValueError: when a weight is not finite.
    """
    require_finite(model)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {"model_type": "facemill", "architectures": [type(model).__name__], **options}
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    for name, text in (("config.json", json.dumps(config, indent=2) + "\n"), ("README.md", card)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def model_card(
    options: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    overlap: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> str:
    """A card in Markdown with the front matter that Hugging Face reads.

    Args:
        options: the arguments of `create_model`.
        training: the config of the run that trained the model.
        results: what ``evaluate.verification`` wrote as ``results.json``.
        overlap: what ``evaluate.overlap`` wrote as ``overlap.json``.
        licence: of the weights, as the hub names it.
    """
    size = options["input_size"]
    front = {"library_name": "facemill", "pipeline_tag": "image-feature-extraction", "tags": ["face-recognition"]}
    front |= {"license": licence} if licence else {}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {options['name']}\n",
        f"A backbone for face recognition. It turns aligned RGB faces, float (n, 3, {size}, {size}) in [-1, 1], into"
        f" embeddings (n, {options['embedding_size']}), which are compared by their cosine.\n",
        "```python\nfrom models.pretrained import from_pretrained\n\nmodel = from_pretrained('this/folder')\n```\n",
    ]
    if training:
        parts += [
            f"## Data\n\nTrained on `{training['data']['train']}`.\n",
            f"## Config\n\n```yaml\n{yaml.safe_dump(dict(training), sort_keys=False)}```\n",
        ]
    if results:
        parts += [_verification(results)]
    text = "Whether people of the training set are in the test sets was not looked for."
    if overlap:
        text = (
            f"Identities of the training set whose embeddings have a cosine of {overlap['threshold']:g} or more to one"
            f" of the test set's: {len(overlap['shared'])}."
        )
    parts.append(f"## Overlap\n\n{text}\n")
    terms = f"{licence}." if licence else "Not stated. Ask who trained it."
    parts += [f"## Licence\n\n{terms} The data's own terms hold beside it.\n", _USE]
    return "\n".join(parts)


_USE = """## Intended use and limits

For research, and to compare faces of people who agreed to it. Whether two images show one person is decided by a
threshold, which has to be chosen on images like those of the use. Error rates differ with age, sex, skin, pose and the
quality of images; the figures here hold for the sets named and for no others. It tells nothing of a living face from a
picture of one, and is no ground on its own for a decision about a person.
"""


def _verification(results: Mapping[str, Any]) -> str:
    """The table of the verification sets and the protocol behind it."""
    rows = []
    for name, found in results["sets"].items():
        bounds = (found.get("interval") or {}).get("accuracy")
        between = " to ".join(f"{100 * bound:.2f}" for bound in bounds) if bounds else ""
        rows.append(
            f"| {name} | {found['pairs']} | {100 * found['accuracy']:.2f} ± {100 * found['std']:.2f} | {between} |"
        )
    alone = results.get("flip") is False
    compared = "an image's embedding" if alone else "the sum of an image's and its mirror image's embeddings"
    protocol = (
        "Ten folds in order: the threshold is the best on nine, judged on the tenth; mean ± standard deviation over"
        f" the folds. Compared is {compared}, of length 1. The interval resamples the pairs.\n"
    )
    table = ["| set | pairs | accuracy % | 95 % interval |", "|---|---|---|---|", *rows, ""]
    return "\n".join(["## Verification\n", protocol, *table])

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
        path: a local folder, or ``user/name`` of the hub, which is downloaded once and then taken from its cache.
        revision: a branch, tag or commit of the hub's; its main branch by default.
    """
    if not Path(path).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        path = _downloaded(str(path), revision)
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
) -> str:
    """A card in Markdown with the front matter that Hugging Face reads.

    Args:
        options: the arguments of `create_model`.
        training: the config of the run that trained the model.
        results: what ``evaluate.verification`` wrote as ``results.json``.
    """
    size = options["input_size"]
    front = {"library_name": "facemill", "pipeline_tag": "image-feature-extraction", "tags": ["face-recognition"]}
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
        rows = [
            f"| {name} | {found['pairs']} | {100 * found['accuracy']:.2f} ± {100 * found['std']:.2f} |"
            for name, found in results["sets"].items()
        ]
        parts.append("\n".join(["## Verification\n", "| set | pairs | accuracy % |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)

"""Every image model of timm as a backbone, by the name ``timm/NAME``.

timm's part lies under ``model``: its tensors are named as in timm's own files, behind ``model.``. Nothing is ever
downloaded; pretrained weights come from a local file (`models.weights.load_weights`).
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.layers import DropRate, count_batches_once
from pipelines.common.errors import UserError, one_line

PREFIX = "timm/"

# What is raised for arguments that a model of timm does not take together.
_REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

# What `create_model` of timm takes and a backbone decides by itself, or a config has no words for.
_NOT_OPTIONS = {"in_chans", "num_classes", "img_size", "device", "dtype", "cfg"}


class TimmBackbone(nn.Module):
    """Images (b, 3, h, w) in [-1, 1] to embeddings (b, embedding_size), not normalised.

    Args:
        model_name: timm's name, without ``timm/``.
        input_size: side of the images; models that are built for one size are built for this.
        pool: ``flatten`` puts the iresnets' head behind the last map or tokens: batch norm, dropout, all values
            flattened, a linear layer, batch norm. With ``own`` timm's own pooling and classifier give the embedding.
        dropout: probability of dropping a value before the linear layer of ``flatten``, which the recipe ``contraface``
            changes.
        checkpoint_activations: recompute each of timm's blocks for the gradient instead of storing its activations.
        options: other arguments of timm's model, for example ``drop_path_rate=0.1``.

    Raises:
        UserError: timm is not there, or its model refuses the arguments or the size.
    """

    def __init__(
        self,
        model_name: str,
        embedding_size: int = 512,
        input_size: int = 112,
        *,
        pool: Literal["flatten", "own"] = "flatten",
        dropout: DropRate = 0.0,
        checkpoint_activations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.pool = pool
        self._arguments = {"name": model_name, "input_size": input_size, **options}
        classes = embedding_size if pool == "own" else 0
        try:
            self.model: Any = _build(**self._arguments, num_classes=classes)
            with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
                probe, output = _tried(pool, **self._arguments, num_classes=classes)
                unused = _unused(probe, output)
        except _REFUSALS as error:
            reason = one_line(error).removeprefix(f"{PREFIX}{model_name}: ") + _remedy(pool, **self._arguments)
            raise UserError(f"{PREFIX}{model_name} takes no images of {input_size} pixels: {reason}") from error
        _drop(self.model, unused)
        if checkpoint_activations:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]  # a model of timm has it
            count_batches_once(self.model)
        if pool == "own":
            return
        _, channels, places = output.shape
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * places, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)  # as the iresnets'

    def trunk(self, images_bchw: Tensor) -> Tensor:
        """The features before ``flatten``'s dropout, (b, c, n) of n places; `head` may be applied to them again."""
        return self.norm(feature_map(self.model, images_bchw))

    def head(self, x_bcn: Tensor) -> Tensor:
        """The embedding (b, embedding_size) of the trunk's features, with a dropout mask of its own."""
        return self.features(self.fc(self.dropout(x_bcn.flatten(1))))

    def forward(self, images_bchw: Tensor) -> Tensor:
        return self.model(images_bchw) if self.pool == "own" else self.head(self.trunk(images_bchw))

    def with_sync_batchnorm(self) -> nn.Module:
        """Itself with statistics over all ranks: timm's norms hold activations, which torch's conversion would lose."""
        self.model = library().layers.convert_sync_batchnorm(self.model)
        return nn.SyncBatchNorm.convert_sync_batchnorm(self)

    def load_pretrained(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Take weights that timm's model was published with, its position embeddings resized where the images are.

        Args:
            tensors: a state dict as timm names it, or as one of the origins that timm converts.

        Returns:
            The names of its tensors that have no place here: the classifier's.

        Raises:
            UserError: the tensors are of another model.
        """
        name = self._arguments["name"]
        classifier = getattr(library().get_pretrained_cfg(name), "classifier", None) or ""
        classifiers = (classifier,) if isinstance(classifier, str) else classifier
        weight = tensors.get(f"{classifiers[0]}.weight")
        classes = 0 if weight is None else len(weight)
        overlay = {"state_dict": dict(tensors), "num_classes": classes, "label_offset": 0}
        try:
            published = _build(
                **self._arguments, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay
            ).state_dict()
        except UserError as error:
            raise UserError(f"the weights are not those of {PREFIX}{name}: {error}") from error
        own = self.model.state_dict()
        heads = tuple(f"{each}." for each in classifiers if each)
        taken = {key: tensor for key, tensor in published.items() if key in own and not key.startswith(heads)}
        self.model.load_state_dict(own | taken)
        return sorted(published.keys() - taken.keys())


def feature_map(model: Any, images_bchw: Tensor) -> Tensor:
    """The last map or tokens of a model of timm, without its class and register tokens: (b, c, n) of n places."""
    features = model.forward_features(images_bchw)
    if not isinstance(features, Tensor) or features.ndim not in (2, 3, 4):
        raise NotImplementedError("it has no single map of features")
    if features.ndim == 2:
        return features.unsqueeze(2)
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :].transpose(1, 2)
    if features.shape[1] != model.num_features:  # channels are the last
        features = features.permute(0, 3, 1, 2)
    return features.flatten(2)


def library() -> ModuleType:
    """The package timm. Raises ``UserError`` where it cannot be imported."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"models of timm need the package ({error}): pip install 'facemill[timm]'") from None
    except RuntimeError as error:  # out of torchvision, which timm imports
        raise UserError(
            f"timm cannot be imported ({one_line(error)}): install the torchvision that was built for torch "
            f"{torch.__version__}"
        ) from None
    return timm


def timm_names(pattern: str) -> list[str]:
    """The names of timm's models, ``timm/`` before each, that match a pattern of the shell."""
    return [name for name in (PREFIX + each for each in library().list_models()) if fnmatch(name, pattern)]


def is_timm(name: object) -> bool:
    """Whether ``name`` is one of timm's models behind ``timm/``. Raises ``UserError`` for one that timm has not."""
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return False
    timm, own = library(), name.removeprefix(PREFIX)
    if not timm.is_model(own):
        near = get_close_matches(own, timm.list_models(), 1)
        guess = f"did you mean '{PREFIX}{near[0]}'? " if near else ""
        raise UserError(f"timm has no model '{own}'; {guess}python -m models.inspect '{PREFIX}*' lists all")
    return True


@lru_cache
def timm_constructor(name: str) -> partial[TimmBackbone]:
    """What makes the backbone ``timm/NAME``; its signature names the arguments that this model of timm takes."""
    own = name.removeprefix(PREFIX)
    made = partial(TimmBackbone, own)
    with torch.device("meta"):
        model = _build(own, num_classes=0)
    ours = [
        p for p in inspect.signature(TimmBackbone).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    ours = [p for p in ours[1:] if p.name != "checkpoint_activations" or _can_compute_again(model)]
    taken = {p.name for p in ours} | _NOT_OPTIONS
    theirs = [p for p in _parameters(type(model)) if p.name not in taken]
    made.__signature__ = inspect.Signature([*ours, *theirs])  # type: ignore[attr-defined]  # inspect reads it
    return made


def _parameters(kind: type) -> list[inspect.Parameter]:
    """The parameters with a default of a class, and of those that it hands keywords to."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        parameters = inspect.signature(each.__init__).parameters.values()  # type: ignore[misc]
        for p in parameters:
            if p.default is not p.empty and not p.name.startswith("_"):
                found.setdefault(p.name, p.replace(kind=p.KEYWORD_ONLY, annotation=Any))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return list(found.values())


def _can_compute_again(model: Any) -> bool:
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError):
        return False
    return True


def _build(name: str, input_size: int | None = None, **arguments: Any) -> nn.Module:
    timm = library()
    published = timm.get_pretrained_cfg(name)
    if input_size and published and published.fixed_input_size:
        arguments["img_size"] = input_size
    try:
        return timm.create_model(name, **arguments)
    except _REFUSALS as error:
        raise UserError(f"{PREFIX}{name}: {one_line(error)}") from error


def _tried(pool: str, name: str, input_size: int, **arguments: Any) -> tuple[nn.Module, Tensor]:
    """A model of timm in training mode, and what it gives for two images: its own output, or the last map."""
    model = _build(name, input_size, **arguments).train()
    images = torch.empty(2, 3, input_size, input_size)
    return model, model(images) if pool == "own" else feature_map(model, images)


def _remedy(pool: str, name: str, **arguments: Any) -> str:
    """What to say of a size of images, or of a pooling, with which the model could be made.

    Tried are 128 pixels and the size that it was published for. Empty where neither helps, as with options that the
    model never takes.
    """
    published = library().get_pretrained_cfg(name)
    sides = dict.fromkeys((128, *(published.input_size[-1:] if published else ())))
    for each in dict.fromkeys((pool, "own")):
        for side in sides:
            try:
                with torch.device("meta"), torch.no_grad():
                    _tried(each, name, **{**arguments, "input_size": side})
            except _REFUSALS:
                continue
            return f"; what works is model.input_size={side}" + ("" if each == pool else f" model.pool={each}")
    return ""


def _unused(model: nn.Module, output: Tensor) -> set[str]:
    """The names of trained parameters that ``output`` does not depend on."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(output.sum(), list(trained.values()), allow_unused=True)
    return {name for name, gradient in zip(trained, gradients) if gradient is None}


def _drop(model: nn.Module, unused: set[str]) -> None:
    """Leave out the modules of which no parameter is used, timm's own head for one.

    A parameter that is never used would keep data-parallel training waiting for its gradient.
    """
    dropped: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        names = {f"{name}.{each}" for each, _ in module.named_parameters()}
        if name and names and names <= unused and not name.startswith(dropped or ("?",)):
            model.set_submodule(name, nn.Identity())
            dropped += (f"{name}.",)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)

"""From the sections of a config to the parts of a run: data, backbone, head, and the centres' optimiser."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from evaluate.features.ranks import World
from losses import CentreOptimizer, Margin, PartialFC
from models import create_model
from models.registry import wants_landmarks
from models.weights import load_weights
from pipelines.common.errors import UserError
from pipelines.loading.landmarks import LandmarkFile, Landmarks, template_landmarks
from pipelines.loading.loader import Loader
from pipelines.loading.rates import Share
from pipelines.sources.collection import DataSet, open_collection
from pipelines.sources.source import Source
from train.class_means import set_class_means
from train.config import Config
from train.fine_tune import load_centres, stored_classes
from train.freezing import restrict
from train.recipes import Recipe, Run
from train.recipes.backbones import unfreeze_scale
from train.sections.auto import settled
from train.sections.data import Data
from train.sections.head import Head
from train.sections.model import Model

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


class TrainingData(NamedTuple):
    """What a run trains on.

    Attributes:
        source: the images of all sets.
        shares: how many each set has, and its weight; empty where all weights are 1.
    """

    source: Source
    shares: list[Share]

    def fingerprint(self) -> int:
        """32 bits that tell which images come in an epoch."""
        own = self.source.fingerprint()
        return zlib.crc32(repr(self.shares).encode(), own) if self.shares else own


def open_data(data: Data) -> TrainingData:
    """The training data of a config."""
    sets = [DataSet(**entry.model_dump()) for entry in data.train]
    source, sizes = open_collection(sets, [Path(path) for path in data.changes])
    weights = [entry.weight for entry in data.train]
    return TrainingData(source, [] if set(weights) == {1.0} else list(zip(sizes, weights)))


def count_classes(config: Config, source: Source) -> int:
    """The classes of a run, which are those of its data or more. ``UserError`` for fewer."""
    num_classes = config.head.num_classes or source.num_classes
    if num_classes < source.num_classes:
        raise UserError(f"head.num_classes is {num_classes}, but {config.data.paths_text} has {source.num_classes}")
    return num_classes


def landmarks_of(config: Config, source: Source) -> Landmarks | None:
    """Those of the training images, for a backbone that wants some; the template's where ``data.landmarks`` is none."""
    path = config.data.landmarks
    if not wants_landmarks(config.model.name):
        if path:
            raise UserError(
                f"data.landmarks is for backbones with landmarks, such as vit_b_kprpe, not {config.model.name}"
            )
        return None
    return LandmarkFile(Path(path), len(source)) if path else template_landmarks


def build_recipe(config: Config, source: Source, world: World) -> Recipe:
    """The recipe, which is told of the run that begins; all ranks call."""
    recipe = config.recipe.create()
    recipe.begin(
        Run(
            source,
            world,
            Path(config.output),
            embedding_size=config.model.embedding_size,
            autocast=HALF[settled(config.precision)],
            threads=settled(config.data.threads),
            max_bad_fraction=config.data.max_bad_fraction,
            landmarks=landmarks_of(config, source),
        )
    )
    return recipe


def build_loader(
    data: Data,
    source: Source,
    recipe: Recipe,
    world: World,
    *,
    seed: int,
    image_size: int,
    accumulate: int,
    quarantine: Path,
    landmarks: Landmarks | None = None,
    shares: Sequence[Share] = (),
) -> Loader:
    """The stream of this rank's batches; images that cannot be read are told in the file ``quarantine``."""
    return Loader(
        source,
        batch_size=data.batch_size,
        seed=seed,
        augment=data.augment,
        shuffle=data.shuffle,
        shares=shares,
        image_size=image_size,
        device=world.device,
        rank=world.rank,
        world_size=world.size,
        accumulate=accumulate,
        threads=settled(data.threads),
        prefetch=settled(data.prefetch),
        num_uniforms=1 + recipe.num_uniforms,
        clean_view=recipe.clean_view,
        max_bad_fraction=data.max_bad_fraction,
        quarantine=quarantine,
        decode_on=data.decode,
        hw_decoder_load=data.hw_decoder_load,
        landmarks=landmarks,
    )


def build_backbone(
    model: Model, recipe: Recipe, margin: Margin, world: World, *, seed: int, batch_size: int, fresh: bool
) -> nn.Module:
    """The backbone on its device; the same initial weights on every rank, those of ``init_from`` in a ``fresh`` run."""
    torch.manual_seed(seed)
    backbone = create_model(**model.arguments)
    if fresh and model.init_from:
        load_weights(backbone, model.init_from)
    elif fresh and model.lora:
        raise UserError("model.lora keeps the network as it begins: set model.init_from to weights that are trained")
    unfreeze_scale(backbone, recipe, margin)
    restrict(backbone, model)
    if model.sync_batchnorm:
        if world.device.type != "cuda":
            raise UserError("model.sync_batchnorm works on GPUs only")
        backbone = with_sync_batchnorm(backbone)
    if batch_size == 1 and any(isinstance(module, nn.BatchNorm1d) for module in backbone.modules()):
        raise UserError(f"data.batch_size is 1, but {model.name} normalises by its batch's statistics; take 2 at least")
    return backbone.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it


def with_sync_batchnorm(backbone: nn.Module) -> nn.Module:
    """The backbone with batch norms whose statistics are over all ranks; its own method converts it if it has one."""
    convert = getattr(backbone, "with_sync_batchnorm", None)
    return convert() if convert else nn.SyncBatchNorm.convert_sync_batchnorm(backbone)


def check_compiler(device: torch.device) -> None:
    """Compile something small before anything else is begun, so that a compiler that is missing is told in one line."""
    try:
        torch.compile(lambda x: (x * x).relu().sum(), dynamic=False)(torch.ones(64, device=device))
    except Exception as error:
        told = (line for line in str(error).splitlines() if not line.endswith("raised:"))  # by whom does not help
        reason = next(told, type(error).__name__)
        needs = "a C compiler (gcc) and the package triton" if device.type == "cuda" else "a C++ compiler (g++)"
        raise UserError(f"model.compile needs {needs}: {reason}; install them, or set model.compile=false") from error


def replicate(network: nn.Module, world: World, *, compile: bool, compress: str) -> nn.Module:
    """The network as all ranks train it together; itself where there is one rank.

    A compiled one is a module of its own: the network itself, which is verified, remains as it was. It is compiled for
    the shape that it sees, which is that of every batch. Changed numbers in it (a dropout's ``p``) mean a second time.
    """
    if compress == "bf16" and world.device.type != "cuda":
        raise UserError("optim.compress: bf16 works on GPUs only; take fp16 or none")
    if compile:
        check_compiler(world.device)
        network = cast(nn.Module, torch.compile(network, dynamic=False))
    if world.size == 1:
        return network
    devices = [world.device.index] if world.device.type == "cuda" else None
    replicated = DistributedDataParallel(network, devices, gradient_as_bucket_view=True)
    # Buffers stay a rank's own: batch statistics are averaged when they are needed, not at every step.
    replicated.broadcast_buffers = False  # the argument is deprecated, its successor not in every version
    if compress != "none":
        replicated.register_comm_hook(None, getattr(default_hooks, f"{compress}_compress_hook"))
    return replicated


def build_head(
    head: Head,
    world: World,
    *,
    embedding_size: int,
    num_classes: int,
    entropy: bool,
    half: bool,
    seed: int,
    fresh: bool,
) -> PartialFC:
    """The sharded classifier; in a ``fresh`` run, centres of ``init_from`` come before those of new classes.

    ``half``: whether products may be in half precision, which a GPU then computes in bf16.
    """
    older = head.init_from if fresh else None
    if head.kernels == "triton" and world.device.type != "cuda":
        raise UserError("head.kernels: triton needs a GPU; on a CPU it is torch")
    classifier = PartialFC(
        head.create_margin(),
        embedding_size,
        stored_classes(older) if older else num_classes,
        sample_rate=head.sample_rate,
        mode=head.mode,
        kernels=head.kernels,
        tile=None if head.tile == "auto" else head.tile,
        entropy=entropy,
        matmul_dtype=torch.bfloat16 if half and world.device.type == "cuda" else torch.float32,
        seed=seed,
        device=world.device,
    )
    if older:
        load_centres(classifier, older)
        if classifier.num_classes > num_classes:
            raise UserError(f"{older} has {classifier.num_classes} classes, more than the {num_classes} of this run")
        if classifier.num_classes < num_classes:
            classifier.extend_classes(num_classes - classifier.num_classes)
            classifier.begin_margin()
    return classifier


def place_centres(config: Config, head: PartialFC, backbone: nn.Module, source: Source, world: World) -> None:
    """Let new classes begin where ``head.init`` says; all ranks call, before the first step of a run."""
    if config.head.init == "class_means":
        set_class_means(
            head,
            backbone,
            source,
            world,
            first=stored_classes(config.head.init_from) if config.head.init_from else 0,
            image_size=config.model.input_size,
            threads=settled(config.data.threads),
            autocast=HALF[settled(config.precision)],
            max_bad_fraction=config.data.max_bad_fraction,
            landmarks=landmarks_of(config, source),
        )


def build_centre_optimizer(config: Config, head: PartialFC) -> CentreOptimizer:
    """The centres' optimiser."""
    return CentreOptimizer(
        head,
        **config.centre_rule,
        fused=config.head.fused and head.mode == "streamed",
    )

"""Training speeds that others have published, as settings of the planner."""

from dataclasses import dataclass, replace
from pathlib import Path

from train.config import Config, load_config
from train.planning.devices import DEVICES, Device, Links, links_of

_CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class PublishedSpeed:
    """One figure.

    Attributes:
        source: whose, in a word or two; ``docs/scaling.md`` says where.
        config: the config whose backbone and optimiser it is, without ``.yaml``.
        device: key in ``DEVICES``, with ``_pcie`` behind it for the card.
        batch: images a GPU.
        images_per_second: of all GPUs together.
        memory: bytes a GPU in use, where it was told.
    """

    source: str
    config: str
    backbone: str
    device: str
    gpus: int
    batch: int
    identities: int
    sample_rate: float
    images_per_second: float
    memory: float | None = None
    precision: str = "fp16"

    def load(self) -> Config:
        """The config of such a run."""
        return load_config(
            _CONFIGS / f"{self.config}.yaml",
            [
                f"model.name={self.backbone}",
                f"data.batch_size={self.batch}",
                f"head.sample_rate={self.sample_rate}",
                f"head.num_classes={self.identities}",
                f"precision={self.precision}",
            ],
        )

    def place(self) -> tuple[Device, Links]:
        """What it ran on. Its fp16 is set where the planner looks for bf16, in which Facemill's head computes."""
        name, _, card = self.device.partition("_")
        device = DEVICES[name]
        if self.precision == "fp16":
            device = replace(device, flops={**device.flops, "bf16": device.flops["fp16"]})
        if card:  # A100 data sheet (2021): the card's memory is slower; the host of this report has PCIe 3
            device = replace(device, bandwidth=1935e9, link="pcie3")
        return device, links_of(device, "hdr")


MB = 2**20  # as nvidia-smi prints them


def _arcface_torch_v100() -> list[PublishedSpeed]:
    """README, "Speed Benchmark": 8 V100 of 32 GB, r50 with 128 images a GPU (docs/speed_benchmark.md)."""
    full = ((125_000, 4824, 5306), (1_400_000, 3043, 11178), (5_500_000, 1389, 32188))
    sampled = (
        (125_000, 5004, 4868),
        (1_400_000, 4738, 6056),
        (5_500_000, 3975, 9854),
        (8_000_000, 3565, 12310),
        (16_000_000, 2679, 19950),
        (29_000_000, 1855, 32324),
    )
    return [
        PublishedSpeed("arcface_torch", "glint360k_r50", "r50", "v100", 8, 128, identities, rate, speed, memory * MB)
        for rate, rows in ((1.0, full), (0.1, sampled))
        for identities, speed, memory in rows
    ]


def _insightface_reports() -> list[PublishedSpeed]:
    """InsightFace's benchmarks/train: 8 GPUs; the V100's on images from memory, the A100's on RecordIO files."""
    v100 = [
        PublishedSpeed("InsightFace", "glint360k_r50", "r50", "v100", 8, batch, identities, rate, speed)
        for batch, identities, rate, speed in (
            (64, 618_000, 1.0, 3889),
            (128, 618_000, 1.0, 4322),
            (256, 618_000, 1.0, 4921),
            (128, 2_000_000, 1.0, 2810),
            (128, 2_000_000, 0.1, 5430),
            (256, 2_000_000, 0.1, 6095),
        )
    ]
    a100 = [
        PublishedSpeed(
            "InsightFace", "glint360k_r50", backbone, "a100_pcie", 8, batch, identities, rate, speed, memory * 1e9
        )
        for backbone, batch, identities, rate, speed, memory in (
            ("r50", 128, 618_000, 1.0, 5400, 10.1),
            ("r50", 256, 618_000, 1.0, 7780, 16.4),
            ("r50", 1280, 618_000, 1.0, 9400, 66.7),
            ("r100", 128, 618_000, 1.0, 3700, 13.1),
            ("r100", 128, 2_000_000, 1.0, 3480, 20.5),
            ("r50", 128, 50_000_000, 0.1, 2700, 54.1),
        )
    ]
    return v100 + a100


def _plsc() -> list[PublishedSpeed]:
    """PaddlePaddle PLSC, static graph, 8 A100, MS1MV3, Partial FC 0.1; and arcface_torch on the same machine."""
    return [
        PublishedSpeed(source, "glint360k_r50", backbone, "a100", 8, 128, 93_431, 0.1, speed)
        for source, speeds in (("PLSC", (10_800, 6650)), ("arcface_torch (PLSC's)", (7100, 4200)))
        for backbone, speed in zip(("r50", "r100"), speeds)
    ]


def _arcface_torch_nodes() -> list[PublishedSpeed]:
    """README, WebFace42M on several nodes. The cards are not named; those of its other tables are V100 of 32 GB."""
    rows = [
        ("wf42m_r100_pfc02", backbone, gpus, batch, 0.2, speed)
        for backbone, gpus, batch, speed in (
            ("r50", 8, 512, 5900),
            ("r50", 16, 512, 11_000),
            ("r50", 32, 128, 17_000),
            ("r100", 16, 128, 5200),
            ("r100", 32, 128, 9800),
        )
    ]
    rows += [
        (f"wf42m_{backbone.replace('_', '')}_pfc03", backbone, 64, 384, 0.3, speed)
        for backbone, speed in (("vit_t", 35_000), ("vit_s", 25_000), ("vit_b", 13_800), ("vit_l", 9406))
    ]
    return [
        PublishedSpeed("arcface_torch", config, backbone, "v100", gpus, batch, 2_059_906, rate, speed)
        for config, backbone, gpus, batch, rate, speed in rows
    ]


PUBLISHED = (*_arcface_torch_v100(), *_insightface_reports(), *_plsc(), *_arcface_torch_nodes())

"""What GPUs can do and what joins them: the makers' figures, and how much of them is reached.

The figures are those of NVIDIA's data sheets for the SXM boards (the L40S and the RTX 4090 are PCIe cards), dense:
sheets from the A100 on print twice as much, for matrices with half of their numbers zero. The reached shares, the
launch and the decoding rate are assumptions until ``train.planning.calibration`` has measured a machine. That of
convolutions is what is left of published rates of another network: NVIDIA trains ResNet-50 v1.5 in mixed precision at
2470 images/s on an A100 and 1200 on a V100 (DeepLearningExamples, PyTorch, one GPU), of which 24.3 GFLOP an image are
convolutions and 356 MB the traffic of all other operators; newer cards are taken for A100s in that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pipelines.common.cpu import multiplies_bf16
from pipelines.common.errors import unknown
from train.planning.work import Precision

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One GPU, or a processor without one, and its share of the host.

    Attributes:
        memory: bytes, as the driver tells them.
        flops: dense FLOP/s by precision: ``fp32``, ``tf32`` where the device has it, ``fp16``, ``bf16``. Where there is
            no unit for a precision it is computed as the next wider one.
        bandwidth: of its memory, bytes/s, read and written together.
        link: the key in ``WITHIN`` of what joins the devices of a node.
        matmul_share, conv_share, memory_share: of ``flops`` and ``bandwidth`` that products, convolutions, and
            operations that only move numbers reach.
        launch: seconds of the host a kernel, forward or backward, in eager mode.
        decode: JPEGs of 112 x 112 pixels that one core decodes in a second, flipped and batched.
        cores: of the host a device, as servers are usually built.
    """

    name: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    link: str
    matmul_share: float = 0.7
    conv_share: float = 0.39
    memory_share: float = 0.85
    launch: float = 6e-6
    decode: float = 6000.0
    cores: int = 14

    @property
    def precision(self) -> Precision:
        """The fastest that it computes in by itself."""
        if self.name == "cpu":
            return "bf16" if multiplies_bf16() else "fp32"
        half = self.flops.get("fp16", 0.0)
        return "bf16" if self.flops["bf16"] > half / 2 else "fp16" if half > 1.5 * self.flops["fp32"] else "fp32"


@dataclass(frozen=True)
class Link:
    """What joins the devices of a node, or nodes.

    Attributes:
        rate: bytes/s in one direction: out of a device to others of its node, or out of a node's port.
        latency: seconds of a hop, a message passed on by one rank to the next.
        share: of ``rate`` that large messages reach.
        shared: whether a node has one port for all its devices, and not one for each.
    """

    name: str
    rate: float
    latency: float
    share: float = 0.8
    shared: bool = False


@dataclass(frozen=True)
class Links:
    """The way between the ranks of a run. Ranks beyond ``ranks_per_node`` are on other nodes."""

    within: Link
    between: Link
    ranks_per_node: int = 8

    def nodes(self, ranks: int) -> int:
        """How many nodes that many ranks fill."""
        return -(-ranks // self.ranks_per_node)

    def rate(self, ranks: int) -> float:
        """Bytes/s that every rank of a ring passes on to the next.

        A ring leaves each node once and enters it once, so all that a node can send is there for one rank; with several
        ports there are several rings, each with its part of the bytes.
        """
        within = self.within.rate * self.within.share
        if self.nodes(ranks) == 1:
            return within
        ports = 1 if self.between.shared else self.ranks_per_node
        return min(within, ports * self.between.rate * self.between.share)

    def latency(self, ranks: int) -> float:
        """Seconds of a message without a length on its way once round the ring, but for the last hop."""
        nodes = self.nodes(ranks)
        between = nodes if nodes > 1 else 0
        return max(0, ranks - 1 - between) * self.within.latency + between * self.between.latency

    def tree_latency(self, ranks: int) -> float:
        """Seconds of a message without a length from a leaf to the root: a chain in each node, a tree of the nodes."""
        chain = (min(ranks, self.ranks_per_node) - 1) * self.within.latency
        return chain + (self.nodes(ranks) - 1).bit_length() * self.between.latency


def _sheet(fp32: float, tf32: float | None, fp16: float, bf16: float) -> Mapping[str, float]:
    """FLOP/s by precision from TFLOP/s."""
    of = {"fp32": fp32, "tf32": tf32, "fp16": fp16, "bf16": bf16}
    return MappingProxyType({name: 1e12 * value for name, value in of.items() if value is not None})


_GPUS = (
    # Tesla V100 data sheet (2020), SXM2: no bf16 unit. It stands in a DGX-1 with 40 cores for 8.
    v100 := Device(
        "v100", int(31.7 * GIB), _sheet(15.7, None, 125.0, 15.7), 900e9, "nvlink2", conv_share=0.53, cores=5
    ),
    replace(v100, name="v100-16", memory=int(15.8 * GIB)),
    # A100 data sheet (2021), SXM; DGX A100: 128 cores for 8.
    a100 := Device("a100", int(79.1 * GIB), _sheet(19.5, 156.0, 312.0, 312.0), 2039e9, "nvlink3", cores=16),
    replace(a100, name="a100-40", memory=int(39.4 * GIB), bandwidth=1555e9),
    # H100 data sheet (2023) and H200 data sheet (2024), SXM; DGX H100: 112 cores for 8.
    h100 := Device("h100", int(79.1 * GIB), _sheet(67.0, 494.7, 989.4, 989.4), 3.35e12, "nvlink4"),
    replace(h100, name="h200", memory=int(139.8 * GIB), bandwidth=4.8e12),
    # L40S data sheet (2023): no NVLink.
    Device("l40s", int(44.4 * GIB), _sheet(91.6, 183.0, 362.0, 362.0), 864e9, "pcie4", cores=8),
    # NVIDIA Ada GPU architecture (2022), with float32 sums: no NVLink.
    Device("rtx4090", int(23.6 * GIB), _sheet(82.6, 82.6, 165.2, 165.2), 1008e9, "pcie4", cores=8),
    # HGX B200 data sheet (2025).
    Device("b200", int(178.4 * GIB), _sheet(75.0, 1100.0, 2250.0, 2250.0), 7.7e12, "nvlink5"),
)
DEVICES: Mapping[str, Device] = MappingProxyType({device.name: device for device in _GPUS})

# One direction; sheets print both together. The latencies are those that NCCL's own model of a ring counts a hop
# (protocol LL128: 1.9 µs over NVLink, 4 µs over a network card); over PCIe and TCP they are assumptions.
_WITHIN = (
    Link("nvlink2", 150e9, 1.9e-6),
    Link("nvlink3", 300e9, 1.9e-6),
    Link("nvlink4", 450e9, 1.9e-6),
    Link("nvlink5", 900e9, 1.9e-6),
    Link("pcie3", 16e9, 4e-6),
    Link("pcie4", 32e9, 4e-6),
    Link("pcie5", 64e9, 4e-6),
    Link("loopback", 2e9, 50e-6),  # gloo between the processes of a machine
)
WITHIN: Mapping[str, Link] = MappingProxyType({link.name: link for link in _WITHIN})
# InfiniBand and Ethernet.
_BETWEEN = (
    Link("ndr", 50e9, 4e-6),
    Link("hdr", 25e9, 4e-6),
    Link("ethernet100", 12.5e9, 20e-6, shared=True),
    Link("ethernet25", 3.125e9, 20e-6, shared=True),
    Link("ethernet10", 1.25e9, 20e-6, shared=True),
)
BETWEEN: Mapping[str, Link] = MappingProxyType({link.name: link for link in _BETWEEN})


def named_device(name: str) -> Device:
    """The entry ``name``; raises ``UserError`` that lists them."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


def known_device(driver_name: str) -> Device | None:
    """The entry of a GPU by what its driver calls it, ``NVIDIA H100 80GB HBM3`` say; None where it has none."""
    letters = driver_name.lower().replace(" ", "")
    return next((device for name, device in DEVICES.items() if name in letters), None)


def links_of(device: Device, between: str = "ndr", ranks_per_node: int = 8, within: str | None = None) -> Links:
    """The links of nodes with ``ranks_per_node`` such devices; raises ``UserError`` for a link without an entry."""
    within = within or device.link
    for name, table in ((within, WITHIN), (between, BETWEEN)):
        if name not in table:
            raise unknown("link", name, table)
    return Links(WITHIN[within], BETWEEN[between], ranks_per_node)

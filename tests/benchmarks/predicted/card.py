"""From what is asked of a GPU to seconds: data sheets, and what is assumed beside them."""

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        name: what it is called.
        half: bfloat16 operations per second of the tensor cores, dense; a product with its sum is
            two.
        integer: the same of 8-bit integers.
        full: float32 operations per second, not by tensor cores: their TF32 is not used.
        bandwidth: bytes per second of its memory.
    """

    name: str
    half: float
    integer: float
    full: float
    bandwidth: float


H100 = Card("H100", half=989.5e12, integer=1979e12, full=67e12, bandwidth=3.35e12)
"""H100 SXM. NVIDIA H100 Tensor Core GPU data sheet, whose 1,979 TFLOPS and 3,958 TOPS are with
sparsity: half of them are dense."""
H200 = Card("H200", half=989.5e12, integer=1979e12, full=67e12, bandwidth=4.8e12)
"""H200 SXM. NVIDIA H200 Tensor Core GPU data sheet, likewise."""


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says; every number is assumed, none was measured.

    Attributes:
        half: share of the card's bfloat16 operations that large products of cuBLAS reach.
        full: the same of float32.
        bandwidth: share of the memory's bandwidth that kernels of PyTorch and Triton reach.
        integer: share of the card's 8-bit operations that our Triton product reaches, which takes
            4-bit weights apart.
        packed: share of the bandwidth that our Triton product of few tokens reaches.
        launch: seconds in which the host asks for a kernel, PyTorch's Python included.
        gap: seconds that a kernel takes on the GPU before it works.
        wait: seconds of the host's wait for a number, beyond the work that it waits for.
        step: seconds of Lightning's own Python in a training step.
        pageable: bytes per second from the host's ordinary memory or into it, by PCIe 5 with 16
            lanes (64 GB/s).
        pinned: the same of page-locked memory.
        disk: bytes per second of an NVMe disk, flushed.
    """

    half: float
    full: float
    bandwidth: float
    integer: float
    packed: float
    launch: float
    gap: float
    wait: float
    step: float
    pageable: float
    pinned: float
    disk: float


OPTIMISTIC = Assumptions(
    half=0.7, full=0.8, bandwidth=0.9, integer=0.55, packed=0.8,
    launch=5e-6, gap=1e-6, wait=15e-6, step=0.5e-3,
    pageable=12e9, pinned=50e9, disk=5e9,
)  # fmt: skip
PESSIMISTIC = Assumptions(
    half=0.45, full=0.5, bandwidth=0.7, integer=0.25, packed=0.4,
    launch=12e-6, gap=3e-6, wait=60e-6, step=3e-3,
    pageable=5e9, pinned=20e9, disk=1e9,
)  # fmt: skip
OURS = ("integer", "packed")
"""Assumptions about kernels that a model which is not quantized does not run."""


@dataclass(frozen=True)
class Work:
    """What is asked of a card.

    Attributes:
        launches: kernels that the host asks for.
        replayed: kernels of a CUDA graph, which it does not ask for one by one.
        waits: for a number of the device.
        steps: of training.
        half: operations in bfloat16; a product with its sum is two.
        full: in float32.
        integer: in 8-bit integers.
        traffic: bytes of the card's memory, read or written.
        packed: bytes that our product of few tokens reads.
        pageable: bytes copied from or into the host's ordinary memory.
        pinned: the same of page-locked memory.
        read: bytes read from the disk.
        written: bytes written behind, while all else goes on.
    """

    launches: float = 0.0
    replayed: float = 0.0
    waits: float = 0.0
    steps: float = 0.0
    half: float = 0.0
    full: float = 0.0
    integer: float = 0.0
    traffic: float = 0.0
    packed: float = 0.0
    pageable: float = 0.0
    pinned: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        mine, theirs = asdict(self), asdict(other)
        return Work(**{name: mine[name] + theirs[name] for name in mine})

    def __mul__(self, count: float) -> "Work":
        return Work(**{name: count * each for name, each in asdict(self).items()})


@dataclass(frozen=True)
class Seconds:
    """How long some work takes, by what takes the time.

    Attributes:
        launches: the host asks for kernels, and Lightning for steps.
        waits: the host waits.
        products: matrix products.
        traffic: the card reads and writes its memory, and begins kernels.
        copies: bytes come from the host and from the disk.
        files: bytes go to the disk.
    """

    launches: float
    waits: float
    products: float
    traffic: float
    copies: float
    files: float

    @property
    def total(self) -> float:
        """The host asks while the card computes, and files are written meanwhile.

        Kernels run one after the other, so products and traffic add up.
        """
        computing = max(self.launches, self.products + self.traffic)
        return max(computing + self.waits + self.copies, self.files)

    @property
    def bound(self) -> str:
        """What takes the longest."""
        return max((field.name for field in fields(self)), key=lambda name: getattr(self, name))


def seconds(work: Work, card: Card, given: Assumptions) -> Seconds:
    """How long a card takes for some work."""
    bandwidth = card.bandwidth
    return Seconds(
        launches=work.launches * given.launch + work.steps * given.step,
        waits=work.waits * given.wait,
        products=work.half / (card.half * given.half)
        + work.full / (card.full * given.full)
        + work.integer / (card.integer * given.integer),
        traffic=work.traffic / (bandwidth * given.bandwidth)
        + work.packed / (bandwidth * given.packed)
        + (work.launches + work.replayed) * given.gap,
        copies=work.pageable / given.pageable + work.pinned / given.pinned + work.read / given.disk,
        files=work.written / given.disk,
    )

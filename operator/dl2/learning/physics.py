"""How fast training with parameter servers is: the simulator's ground truth, which no policy ever sees.

One step of a worker takes (Optimus, EuroSys 2018, section 3.2; the same terms in Paleo, ICLR 2017, and in Bao et
al., "Online Job Scheduling in Distributed Machine Learning Clusters", INFOCOM 2018)

    compute * (1 + straggle * ln w)            forward and backward, the slowest of w workers where they wait
  + 2 S * max(w / (p B_s), 1 / (4 B))          push and pull S bytes; w workers share the links of p servers
  + (S / p) * update * w                       servers apply w gradients
  + per_worker * w + per_server * p            barriers, serialisation
  + per_connection * w * p                     every worker talks to every server: small messages, incast

The worker's own link counts for a quarter, because layers are sent while others are still computed (Poseidon,
ATC 2017). Asynchronous workers overlap: only the busier of worker and server counts.
Without servers gradients go round a ring, 2 S (w - 1) / w / B. On top, measured speeds of real systems are rough
and not monotone (placement, NUMA, uneven splits of layers over servers): a lognormal factor per shape, the same
for all jobs of one model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dl2.scaling.interface import Scale
from dl2.scaling.lattice import Floats

GIGABIT = 1e9 / 8  # bytes a second
_OVERLAPPED = 0.25  # part of the own transfer that computing does not hide


@dataclass(frozen=True, slots=True)
class Model:
    """A kind of training job."""

    name: str
    compute: float  # seconds of one worker's step
    size: float  # bytes of parameters, and of gradients
    steps: float  # steps of one worker in an epoch
    synchronous: bool = True
    bandwidth: float = 10 * GIGABIT  # of a worker
    server_bandwidth: float = 10 * GIGABIT
    update: float = 0.5e-9  # seconds a byte and gradient, at a server
    straggle: float = 0.03
    per_worker: float = 0.008
    per_server: float = 0.004
    per_connection: float = 0.003
    roughness: float = 0.05  # deviation of the log of the speed, shape by shape
    fixed_batch: bool = False  # the global batch is split over the workers (else each has its own)
    batch: int = 64  # samples of one worker's step, to which `compute` and `steps` belong

    def with_batch(self, batch: float | None) -> Model:
        """The same training with another batch: longer steps, fewer of them. None: as it is."""
        if batch is None:
            return self
        times = batch / self.batch
        return replace(self, compute=self.compute * times, steps=self.steps / times, batch=int(batch))


def _image(name: str, images: float, batch: int, millions: float, *, synchronous: bool = True) -> Model:
    """ImageNet, 1.28 million images, shown to the job as tenths of an epoch ("virtual epochs")."""
    return Model(name, batch / images, 4e6 * millions, 128_000 / batch, synchronous=synchronous, batch=batch)


# Images a second of one P100 and batch sizes: TensorFlow's published benchmarks (2017, synthetic data). Parameters:
# the papers of the models (ResNet arXiv:1512.03385, VGG arXiv:1409.1556, Inception arXiv:1512.00567, AlexNet NIPS
# 2012). Text and recommendation: parameters from the papers (DSSM CIKM 2013, seq2seq NIPS 2014, WLM
# arXiv:1409.2329, Deep Speech 2 arXiv:1512.02595), step times estimated. Names as in Optimus' and DL2's job lists.
MODELS = {
    model.name: model
    for model in (
        _image("resnet-50", 219.0, 64, 25.6),
        _image("resnet-152", 91.8, 64, 60.2),
        _image("vgg-16", 154.0, 64, 138.4),
        _image("inception-v3", 142.0, 64, 23.8),
        _image("alexnet", 2987.0, 512, 61.0, synchronous=False),
        Model("dssm", 0.05, 4e6 * 1.5, 1500, synchronous=False),
        Model("seq2seq", 0.40, 4e6 * 184.0, 400),
        Model("word-lm", 0.12, 4e6 * 66.0, 900),
        Model("deep-speech-2", 0.55, 4e6 * 38.0, 300),
    )
}


def step_seconds(model: Model, workers: int, servers: int) -> float:
    """Of one worker's step at this scale."""
    w, p = workers, servers
    waits = 1.0 + model.straggle * math.log(w) if model.synchronous else 1.0
    compute = model.compute * waits / (w if model.fixed_batch else 1)
    overhead = model.per_worker * w + model.per_server * p + model.per_connection * w * p
    if p == 0:
        return compute + 2 * model.size * (w - 1) / w / model.bandwidth + overhead
    serving = w * (2 * model.size / (p * model.server_bandwidth) + model.size / p * model.update)
    own = _OVERLAPPED * 2 * model.size / model.bandwidth
    if model.synchronous:
        return (
            compute
            + max(own, w * 2 * model.size / (p * model.server_bandwidth))
            + (model.size / p * model.update * w)
            + overhead
        )
    return max(compute + own, serving) + overhead


def epochs_per_second(model: Model, workers: int, servers: int) -> float:
    """Smooth speed at this scale, without roughness and interference; 0 without workers."""
    if workers <= 0:
        return 0.0
    done = 1 if model.fixed_batch else workers
    return done / (model.steps * step_seconds(model, workers, servers))


class TrueSpeed:
    """The speed of one model at every scale up to a maximum, roughness included. Stays in the simulator."""

    __slots__ = ("_table",)

    def __init__(self, table: Floats) -> None:
        self._table = table  # (workers + 1, servers + 1), epochs a second

    def __call__(self, scale: Scale) -> float:
        if scale.workers <= 0:
            return 0.0
        rows, columns = self._table.shape
        return float(self._table[min(scale.workers, rows - 1), min(scale.servers, columns - 1)])

    def best(self, least: Scale, most: Scale) -> float:
        """The largest speed from `least` to `most`."""
        return float(
            self._table[least.workers : most.workers + 1, least.servers : most.servers + 1].max(initial=1e-15)
        )


def true_speed(model: Model, most: Scale, rng: np.random.Generator) -> TrueSpeed:
    """`model` with its roughness drawn from `rng`."""
    smooth = [
        [epochs_per_second(model, w, p) for p in range(most.servers + 1)] for w in range(most.workers + 1)
    ]
    table = (
        np.array(smooth)
        * np.exp(model.roughness * rng.standard_normal((257, 257)))[: most.workers + 1, : most.servers + 1]
    )
    return TrueSpeed(table)

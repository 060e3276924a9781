"""Optimisers, the learning rate, and the update that is skipped where a gradient is not finite."""

import torch
from torch import Tensor, nn

from ..runtime.dtypes import Dtype, fastest_dtype
from .config import OptimizerConfig, RunConfig
from .distribution import full_tensor, write_back
from .parts import PartWatch

UNDECAYED = "bias_table"
"""Tables of position biases are not decayed, as biases and norms are not."""

ENDS = (
    *("conv_in", "conv_out", "moments"),
    *("patch_embedding", "class_embedding", "patch_out"),
    *("pos_embed.proj", "embedding_table", "proj_out_2"),  # of diffusers' DiT
)
"""First and last layers of a network and tables of embeddings, by the end of their name: Muon leaves them to AdamW."""

MOMENTUM = 0.95
"""Of Muon, Nesterov's."""


def learning_rate(config: RunConfig, seen: int) -> float:
    """Return the rate at ``seen`` images: linear warm-up, plateau, linear decay to zero over ``decay_images``."""
    return _rate(config, seen, config.optimizer.learning_rate, schedule(config)[0])


def discriminator_rate(config: RunConfig, seen: int) -> float:
    """Return the discriminator's rate: its own warm-up, from where it comes in, and the run's decay."""
    own, start = config.discriminator, config.loss.adversarial_from_images  # type: ignore[attr-defined]
    return _rate(config, seen, own.learning_rate, own.warmup_images, start)


def _rate(config: RunConfig, seen: int, peak: float, warmup_images: float, start: int = 0) -> float:
    """Return a rate whose warm-up begins at ``start`` images."""
    warmup = (seen - start + config.batch_size) / max(1, warmup_images)
    decay = (config.total_images - seen) / max(1, schedule(config)[1])
    return peak * min(1.0, warmup, decay)


def schedule(config: RunConfig) -> tuple[float, float]:
    """Return the images of warm-up and decay; where they are longer than the run together, they shrink with it."""
    warmup, decay = config.optimizer.warmup_images, config.optimizer.decay_images
    room = min(1.0, config.total_images / max(1, warmup + decay))
    return warmup * room, decay * room


def schedule_notes(config: RunConfig) -> list[str]:
    """Return a line for each thing that a run is too short for."""
    notes, total = [], config.total_images
    warmup, decay = schedule(config)
    if warmup + decay < config.optimizer.warmup_images + config.optimizer.decay_images:
        notes.append(
            f"warm-up and decay are longer than this run: shortened to {int(warmup)} and {int(decay)} of its {total} "
            "images"
        )
    loss = getattr(config, "loss", None)
    if getattr(loss, "adversarial", 0):
        start, own = loss.adversarial_from_images, config.discriminator  # type: ignore[union-attr,attr-defined]
        if start >= total:
            notes.append(f"the discriminator comes in at {start} images, after the end of this run at {total}")
        elif total - start < own.warmup_images:
            notes.append(
                f"the discriminator's warm-up is longer than the {total - start} images that this run leaves it: its "
                f"rate does not reach {own.learning_rate:.2g}"
            )
    return notes


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters.

    Biases, norms and tables of position biases are not decayed.

    Raises:
        ImportError: a package that it needs is missing.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    undecayed = [p for name, p in named if p.dim() <= 1 or name.endswith(UNDECAYED)]
    weights = [(name, p) for name, p in named if p.dim() > 1 and not name.endswith(UNDECAYED)]
    if config.name == "muon":
        hidden = [p for name, p in weights if _is_hidden(name, p)]
        others = [p for name, p in weights if not _is_hidden(name, p)]
        return Muon(hidden, others, undecayed, config)
    groups = [
        {"params": [p for _, p in weights], "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    try:
        from schedulefree import RAdamScheduleFree
    except ImportError as error:
        raise ImportError("schedule-free RAdam needs the package schedulefree: pip install 'ssdd[train]'") from error
    optimizer: torch.optim.Optimizer = RAdamScheduleFree(groups, lr=config.learning_rate, betas=config.betas)
    optimizer.train()  # type: ignore[attr-defined]  # and always: ``evaluation_point`` gives what is saved
    return optimizer


def _is_hidden(name: str, weight: Tensor) -> bool:
    """Return whether Muon takes a weight: a matrix or a convolution of images, at neither end of the network."""
    return weight.dim() in (2, 4) and not name.removesuffix(".weight").endswith(ENDS)


class Muon(torch.optim.Optimizer):
    """Muon on the hidden weights and AdamW on all others, as one optimiser.

    Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal one; a convolution is the
    matrix (C', C * 3 * 3). The rate is scaled so that an update is as large as AdamW's (Liu et al. 2025).
    """

    def __init__(self, hidden: list[nn.Parameter], ends: list[nn.Parameter], undecayed: list[nn.Parameter],
                 config: OptimizerConfig) -> None:  # fmt: skip
        decay = config.weight_decay
        groups = [
            {"params": hidden, "weight_decay": decay},
            {"params": ends, "weight_decay": decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": config.learning_rate})
        self._adamw = torch.optim.AdamW(groups[1:], betas=config.betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        first, *others = self.param_groups
        for p in first["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            # A sharded matrix is put together: its orthogonal one needs all of it.
            kept = (p.detach(), state["momentum_buffer"])
            weight, momentum, grad = (full_tensor(tensor) for tensor in (*kept, p.grad))
            rows, average, slope = (_rows(tensor, weight) for tensor in (weight, momentum, grad))
            average.lerp_(slope, 1 - MOMENTUM)
            update = orthogonal(slope.lerp(average, MOMENTUM))
            rows.mul_(1 - first["lr"] * first["weight_decay"])
            rows.add_(update, alpha=-first["lr"] * (0.2 * max(rows.shape) ** 0.5))
            write_back(kept, (weight, momentum))
        for inner, outer in zip(self._adamw.param_groups, others, strict=True):
            inner["params"], inner["lr"] = outer["params"], outer["lr"]
        self._adamw.state = self.state
        self._adamw.step()


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix, by five Newton-Schulz steps (Jordan et al. 2024).

    In bfloat16, as ``torch.optim.Muon`` has it everywhere, only where the device has instructions for it: other
    processors take 10 to 28 times as long as in float32.
    """
    x = matrix.to(torch.bfloat16 if fastest_dtype(matrix.device) == torch.bfloat16 else torch.float32)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


def _rows(tensor: Tensor, parameter: Tensor) -> Tensor:
    """View a weight, or a tensor that lies in memory like it, as a matrix with a row an output channel."""
    if parameter.dim() == 2:
        return tensor
    order = (0, 1, 2, 3) if parameter.is_contiguous() else (0, 2, 3, 1)
    return tensor.permute(order).flatten(1)


class Update:
    """Clip the gradient of one network and take the optimiser's step, or none where the gradient is not finite.

    ``GradScaler`` does the skipping; in bf16 and fp32 its scale is 1. With AdamW nobody waits for the device; the other
    optimisers wait for it once an update.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, precision: Dtype, device: torch.device) -> None:
        self.optimizer = build_optimizer(model, config)
        self.clip = config.clip
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaled = precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if self.scaled else 1.0)

    def backward(self, loss: Tensor, weight: float) -> None:
        """Add the gradients of ``weight * loss``; they are not finite wherever the loss is not.

        So the norm of the gradient, which all processes share, tells about the losses of all of them.
        """
        loss = self.scaler.scale(loss)
        seed = torch.where(loss.detach().isfinite(), weight, float("nan"))
        loss.backward(seed.to(loss.dtype))

    def step(self, rate: float, watch: PartWatch | None = None) -> tuple[Tensor, Tensor]:
        """Take one update at a learning rate.

        Returns:
            The gradient's norm before clipping, and whether it is finite, as scalars on the device.
        """
        self.scaler.unscale_(self.optimizer)
        if watch is not None:
            watch.before_step()
        norm = full_tensor(nn.utils.clip_grad_norm_(self.parameters, self.clip))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.scaled else 1.0)
        if watch is not None:
            watch.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, norm.isfinite()


def evaluation_point(update: Update) -> dict[Tensor, Tensor]:
    """Return what schedule-free averaging stands for at each parameter: x, where the parameter is y.

    With y = (1 - beta) z + beta x (Defazio et al. 2024): x = y + (y - z) (1 - beta) / beta. Empty for an optimiser
    that trains the weights themselves.
    """
    points = {}
    for group in update.optimizer.param_groups:
        if "train_mode" in group:  # schedule-free
            ratio = (1 - group["betas"][0]) / group["betas"][0]
            for p in group["params"]:
                if "z" in (state := update.optimizer.state.get(p, {})):
                    points[p] = p.detach() + ratio * (p.detach() - state["z"])
    return points

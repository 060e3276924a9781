"""Optimisers, the learning rate, and the update that is skipped where a gradient is not finite."""

import torch
from torch import Tensor, nn

from ..runtime.dtypes import Dtype
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
        ends = [p for name, p in weights if name.removesuffix(".weight").endswith(ENDS)]
        hidden = [p for name, p in weights if not name.removesuffix(".weight").endswith(ENDS)]
        return Muon(hidden, ends, undecayed, config)
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


class Muon(torch.optim.Optimizer):
    """PyTorch's Muon on the hidden weights and AdamW on all others, as one optimiser.

    Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal one; a convolution is the
    matrix (C', C * 3 * 3). The rate is scaled so that an update is as large as AdamW's (Liu et al. 2025).
    """

    def __init__(self, hidden: list[nn.Parameter], ends: list[nn.Parameter], undecayed: list[nn.Parameter],
                 config: OptimizerConfig) -> None:  # fmt: skip
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(f"Muon needs PyTorch 2.9 or newer, found {torch.__version__}: --optimizer.name adamw")
        decay = config.weight_decay
        groups = [
            {"params": hidden, "weight_decay": decay},
            {"params": ends, "weight_decay": decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": config.learning_rate})
        matrix = nn.Parameter(torch.zeros(1, 1))  # the real ones are handed over in each step
        self._muon = torch.optim.Muon([matrix], weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(groups[1:], betas=config.betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        first, *others = self.param_groups
        muon, adamw = self._muon.param_groups[0], self._adamw.param_groups
        muon["lr"] = first["lr"]
        for p in first["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            # A sharded matrix is put together: its orthogonal one needs all of it.
            kept = (p.detach(), state["momentum_buffer"])
            weight, momentum, grad = (full_tensor(tensor) for tensor in (*kept, p.grad))
            rows = _rows(weight, weight)
            rows.grad = _rows(grad, weight)
            muon["params"] = [rows]
            self._muon.state[rows] = {"momentum_buffer": _rows(momentum, weight)}
            self._muon.step()
            self._muon.state.clear()
            write_back(kept, (weight, momentum))
        for inner, outer in zip(adamw, others, strict=True):
            inner["params"], inner["lr"] = outer["params"], outer["lr"]
        self._adamw.state = self.state
        self._adamw.step()


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

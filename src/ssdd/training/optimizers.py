"""Optimisers, the learning rate, and the update that is skipped, on the device, when a gradient is not finite."""

from itertools import chain

import torch
from torch import Tensor, nn

from .config import OptimizerConfig, RunConfig
from .distribution import whole


def learning_rate(config: RunConfig, seen: int) -> float:
    """Rate at ``seen`` images: linear warm-up, plateau, linear decay to zero over the last ``decay_images``."""
    o, at = config.optimizer, seen + config.batch_size
    warmup = min(1.0, at / o.warmup_images) if o.warmup_images else 1.0
    decay = min(1.0, (config.total_images + config.batch_size - at) / o.decay_images) if o.decay_images else 1.0
    return o.learning_rate * min(warmup, max(0.0, decay))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, or schedule-free RAdam (Defazio et al. 2024), over the trainable parameters.

    Biases, norms and tables of position biases are not decayed. Raises ImportError without the package.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.dim() > 1 and not name.endswith("bias_table")]
    others = [p for name, p in trained if p.dim() <= 1 or name.endswith("bias_table")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    try:
        from schedulefree import RAdamScheduleFree
    except ImportError as error:
        raise ImportError("schedule-free RAdam needs the package schedulefree: pip install 'ssdd[train]'") from error
    optimizer: torch.optim.Optimizer = RAdamScheduleFree(groups, lr=config.learning_rate, betas=config.betas)
    optimizer.train()  # type: ignore[attr-defined]  # and always: what is evaluated and saved is the average
    for p in chain(decayed, others):  # its state is there from the start, so that a first step can be taken back
        optimizer.state[p] = {"z": p.detach().clone(), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


class Update:
    """Clips the gradient of one network and takes the optimiser's step, or none.

    Whether the gradient is finite is known to the device only, and nobody waits for it: where it is not, weights and
    the optimiser's tensors stay exactly as they were. (Schedule-free RAdam counts its steps on the host, skipped ones
    included; that moves its averaging weights by a hair.)
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.optimizer = build_optimizer(model, config)
        self.clip = config.clip
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, rate: float) -> tuple[Tensor, Tensor]:
        """One update at a learning rate. Returns the gradient's norm before clipping, and whether it is finite."""
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.clip))
        finite = norm.isfinite()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if isinstance(self.optimizer, torch.optim.AdamW):
            # What GradScaler uses: a fused step that finds this set leaves everything alone.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        else:
            self._step_and_take_back(finite)
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    @torch.no_grad()
    def _step_and_take_back(self, finite: Tensor) -> None:
        for p in self.parameters:
            if p.grad is not None:
                _local(p.grad).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        states = chain.from_iterable(self.optimizer.state[p].values() for p in self.parameters)
        tensors = [_local(t) for t in (*self.parameters, *states) if isinstance(t, Tensor)]
        before = torch._foreach_mul(tensors, 1.0)
        self.optimizer.step()
        keep = finite.float()  # 0 or 1: one of the two terms is exact, the other nothing
        torch._foreach_mul_(tensors, keep)
        torch._foreach_mul_(before, 1 - keep)
        torch._foreach_add_(tensors, before)


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def poisoned_backward(loss: Tensor, scale: float) -> None:
    """``(scale * loss).backward()``, with gradients that are not finite wherever the loss is not.

    So the norm of the gradient, which all processes share, tells about the losses of all of them.
    """
    seed = torch.where(loss.detach().isfinite(), scale, float("nan"))
    loss.backward(seed.to(loss.dtype))

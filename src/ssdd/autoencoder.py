"""``AutoencoderSSDD``: image to latent and back, with the interface of a diffusers autoencoder.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.

Two kinds of latent, and one pair of functions between them: *raw* latents are what ``encode`` gives and ``decode``
takes; *normalised* latents (about zero mean and unit variance) are what a generative model is trained on (see
``normalization``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype
from diffusers.utils import is_accelerate_available
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError
from torch import Tensor, nn

from . import flow
from .checkpoints.own_code import ForeignEncoder
from .checkpoints.own_model import HUB_OPTIONS, check_config, check_finite, check_folder, find_folder
from .files import share
from .nn.decoder import Decoder
from .nn.encoder import Encoder
from .nn.noise import fixed_noise
from .nn.presets import ENCODER_WIDTH, GROUPS, DecoderSize, EncoderSize, decoder_size, encoder_size
from .normalization import Convention, NormalizationMixin, check_convention
from .optimization import optimize
from .tiling import LEAST_TILE_PIXELS, OVERLAP_PIXELS, TILE_PIXELS, TileGrid, decode_tiles, encode_tiles

_WRAPPED = "_orig_mod."  # what torch.compile puts before the names of a module's weights


class AutoencoderSSDD(ModelMixin, ConfigMixin, AutoencoderMixin, NormalizationMixin):
    """Convolutional KL encoder and single-step diffusion decoder (arXiv 2510.04961).

    Args:
        block_out_channels: channels of each encoder level; n levels make a spatial factor of 2^(n-1).
        latent_channels: c.
        decoder_channels: channels of each decoder level.
        decoder_layers: transformer blocks in the middle of the decoder.
        decoder_heads: attention heads.
        encoder_groups, decoder_groups: groups of the norms.
        num_inference_steps: default number of decoding steps; 1 for a distilled model.
        noise_seed: seed of the default decoding noise.
        sample_size: side of the training images in pixels; also the default tile.
        scaling_factor, shift_factor: normalised = (raw - shift_factor) * scaling_factor; pipelines read them.
        latents_mean, latents_std: the same per channel; they go first where they are given.
        latents_convention: ``measured``, or ``pipeline`` for the constants of a pipeline (see ``normalization``).
        decoder_latents_mean, decoder_latents_std: per channel, of latents that the decoder gets normalised: it was
            trained on a foreign encoder, whose scale it need not know. ``decode`` takes raw latents all the same.
        force_upcast: for SDXL in float16; false, for the model is finite in half precision (a KL-VAE may not be).
        has_encoder: false for a decoder of somebody else's latents.
        encoder_sha256: of a model without an encoder, the digest of the one whose latents it decodes (see
            ``checkpoints.identity``).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResNetBlock", "TransformerBlock", "EncoderBlock")
    _repeated_blocks = ("ResNetBlock", "TransformerBlock", "EncoderBlock")
    _skip_layerwise_casting_patterns = ("norm", "modulation", "time")

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        latent_channels: int = 4,
        decoder_channels: tuple[int, ...] = (64, 96, 160, 160),
        decoder_layers: int = 8,
        decoder_heads: int = 4,
        encoder_groups: int = GROUPS,
        decoder_groups: int = GROUPS,
        num_inference_steps: int = 1,
        noise_seed: int = 0,
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = False,
        has_encoder: bool = True,
        latents_convention: Convention = "measured",
        decoder_latents_mean: tuple[float, ...] | None = None,
        decoder_latents_std: tuple[float, ...] | None = None,
        encoder_sha256: str | None = None,
    ) -> None:
        super().__init__()
        check_convention(latents_convention)
        check_config(self.config)
        size = EncoderSize(tuple(block_out_channels), latent_channels, encoder_groups)
        self.spatial_factor = size.factor
        self.encoder: Encoder | None = Encoder(size) if has_encoder else None
        shape = DecoderSize(tuple(decoder_channels), decoder_layers, decoder_heads, decoder_groups)
        self.decoder = Decoder(shape, latent_channels, decoder_latents_mean, decoder_latents_std)
        self._attached: list[nn.Module] = []  # a list keeps the module out of the registered ones
        self.use_slicing = False
        self.use_tiling = False
        self._tile_pixels: int | None = None
        self.tile_overlap_factor = OVERLAP_PIXELS / TILE_PIXELS
        self.to(memory_format=torch.channels_last)

    # A part that torch.compile wrapped keeps its names: files are the same with and without.

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights under their own names, also of parts that ``torch.compile`` has wrapped.

        As a part of another module it returns what PyTorch does, which is what loading that module asks for.
        """
        state = super().state_dict(*args, **kwargs)
        if args or kwargs.get("prefix"):
            return state
        for name in [name for name in state if _WRAPPED in name]:
            state[name.replace(_WRAPPED, "")] = state.pop(name)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what ``state_dict`` returned."""
        wrapped = {name.replace(_WRAPPED, ""): name for name in super().state_dict() if _WRAPPED in name}
        state = {wrapped.get(name, name): value for name, value in state_dict.items()}
        return super().load_state_dict(state, strict, assign)

    # ---- making one -------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(
        cls,
        encoder: str = "f8c4",
        decoder: str = "S",
        encoder_width: int = ENCODER_WIDTH,
        encoder_groups: int = GROUPS,
        **config: Any,
    ) -> "AutoencoderSSDD":
        """Random weights in a named size: encoder ``f8c4``, ``f16c16``, ...; decoder ``XS`` to ``H``.

        ``config`` sets further arguments of the constructor. Raises ValueError for an unknown name.
        """
        e = encoder_size(encoder, encoder_width, encoder_groups)
        config = _decoder_config(decoder) | config
        return cls(block_out_channels=e.channels, latent_channels=e.latent_channels, encoder_groups=e.groups, **config)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "AutoencoderSSDD":
        """An embedded name (``ssdd-f8c4-demo``), a folder of ``save_pretrained``, or a hub id.

        Takes the arguments of diffusers' ``ModelMixin.from_pretrained``. Weights are read from safetensors only, and
        compared with the config before any is read.

        Raises ValueError if ``use_safetensors=False`` is asked for, CheckpointError for weights that do not fit or are
        not finite, OSError if there is no such model.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("expected safetensors weights: pickled weights can run code and are never loaded")
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        variant = kwargs.get("variant")
        folder = find_folder(str(name_or_path), cls, kwargs.pop("subfolder", None), variant, hub)
        check_folder(folder, cls, variant, any_size=kwargs.get("ignore_mismatched_sizes", False))
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())
        loaded = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.register_to_config(_name_or_path=str(name_or_path))  # not where the hub's cache lies
        if model.config.decoder_latents_mean is not None:  # no weights: they stay behind on the meta device
            model.decoder.normalize_latents(model.config.decoder_latents_mean, model.config.decoder_latents_std)
        check_finite(str(name_or_path), model.state_dict())
        model.to(memory_format=torch.channels_last)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """``config.json`` and safetensors weights in a folder. Raises ValueError if pickle is asked for.

        The arguments are those of diffusers' ``ModelMixin``; pipelines pass the ones that they find by name. Raises
        OSError if the disk is full.
        """
        if not safe_serialization:
            raise ValueError("expected safetensors weights: this model is never saved as a pickle")
        try:
            super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)
        except SafetensorError as error:  # no OSError, although it is one
            raise OSError(f"could not write the model {save_directory} ({error})") from error
        for weights in Path(save_directory).glob("*.safetensors"):
            share(weights)

    @classmethod
    def from_original(
        cls, source: str | Path | Mapping[str, Tensor], num_inference_steps: int | None = None
    ) -> "AutoencoderSSDD":
        """The authors' released layout: a safetensors file, or its tensors. Encoder and size come from the shapes.

        ``num_inference_steps``: default number of decoding steps of the result (8 if not given: the release does
        not state whether a file is distilled). Raises ``CheckpointError`` with the first differences.
        """
        from .checkpoints.original import read_original

        checkpoint = read_original(source)
        check_finite("state dict" if isinstance(source, Mapping) else str(source), checkpoint.state)
        steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
        model = cls(**{**checkpoint.config, **steps})
        model.load_state_dict(checkpoint.state)
        return model.eval()

    @classmethod
    def from_kl_vae(cls, vae: Any, decoder: str = "S", **config: Any) -> "AutoencoderSSDD":
        """Encoder and constants of a KL-VAE, and a decoder with random weights, to be trained on its latents.

        ``vae``: a diffusers ``AutoencoderKL``; the folder of one, of a pipeline or a kl-vae run; a hub id. ``config``:
        further arguments of the constructor, instead of the KL-VAE's. In float32 on the CPU, whatever the KL-VAE's.
        Raises CheckpointError or OSError with one line for anything else or another architecture.
        """
        from .checkpoints.kl_source import kl_encoder

        read = kl_encoder(vae)
        model = cls(**{**read.config(), **_decoder_config(decoder), **config})
        encoder = model._require_encoder()
        encoder.load_state_dict(read.state)
        encoder.to(memory_format=torch.contiguous_format)  # that of a KL-VAE: its posterior, to the last bit
        return model.eval()

    def attach_encoder(self, encoder: nn.Module) -> None:
        """Give a model without an encoder one, for ``encode``.

        It is on the decoder's device from now on, keeps its own dtype, and is no part of the model's state dict or of
        ``save_pretrained``.

        Args:
            encoder: (B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f), with the attributes ``spatial_factor`` and
                ``latent_channels``, such as ``checkpoints.own_code.ForeignEncoder``.

        Raises:
            ValueError: if the model has an encoder of its own, or the encoder has another factor or other channels.
        """
        if self.encoder is not None:
            raise ValueError("expected a model without an encoder to attach one to, found one that has its own")
        expected = f"f{self.spatial_factor}c{self.config.latent_channels}"
        found = f"f{encoder.spatial_factor}c{encoder.latent_channels}"
        if found != expected:
            raise ValueError(f"expected an encoder of {expected}, found {found}")
        self._attached = [encoder.to(self.decoder.conv_in.weight.device).eval()]

    @property
    def attached_encoder(self) -> nn.Module | None:
        """The encoder that ``attach_encoder`` gave, if any."""
        return self._attached[0] if self._attached else None

    @property
    def latent_channels(self) -> int:
        """Return c, the channels of a latent."""
        return int(self.config.latent_channels)

    # ---- image -> latent ---------------------------------------------------------------------------------------

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Posterior of the raw latent: ``ae.encode(x).latent_dist.mode()`` is (B, c, H/f, W/f).

        Args:
            x: (B, 3, H, W) in [-1, 1]; H and W multiples of the spatial factor.

        Runs in the dtype of the encoder, whatever the decoder's. Raises ValueError for a wrong shape.
        """
        factor = self.spatial_factor
        encoder = self._require_encoder()
        if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % factor or x.shape[3] % factor or 0 in x.shape:
            raise ValueError(
                f"expected images (B, 3, H, W) with H and W multiples of {factor}, found {tuple(x.shape)}; "
                "pad or crop them first"
            )
        if not x.is_floating_point():
            raise ValueError(f"expected images of floating-point numbers in [-1, 1], found {x.dtype}: x / 127.5 - 1")
        x = x.to(_compute_dtype(encoder) or x.dtype)
        if self.use_slicing and x.shape[0] > 1:
            moments = torch.cat([self._encode(image) for image in x.split(1)])
        else:
            moments = self._encode(x)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _encode(self, x: Tensor) -> Tensor:
        encoder, factor = self._require_encoder(), self.spatial_factor
        tiles = self._tiles((x.shape[2] // factor, x.shape[3] // factor))
        return encoder(x) if tiles is None else encode_tiles(encoder, x, tiles, factor)

    def _require_encoder(self) -> nn.Module:
        if self.encoder is not None:
            return self.encoder
        if self.attached_encoder is None:
            raise ValueError(
                "expected a model with an encoder; this one only decodes (has_encoder is false): pass --encoder, or "
                "call attach_encoder"
            )
        return self.attached_encoder.to(self.decoder.conv_in.weight.device)  # ``to`` may have moved the decoder alone

    # ---- latent -> image ---------------------------------------------------------------------------------------

    @apply_forward_hook
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
    ) -> DecoderOutput:
        """Image of a raw latent, ``ae.decode(z).sample``: (B, 3, h*f, w*f), about [-1, 1], not clamped.

        Deterministic by default: the noise of an image depends on ``config.noise_seed`` and the image's own size
        alone, not on its batch, the device or the dtype.

        Args:
            z: (B, c, h, w) raw latent; pipelines unscale it before they call this.
            generator: draws other noise, one generator for all or a list of one per image.
            num_inference_steps: Euler steps on t_i = (1 - i/N)^2; ``config.num_inference_steps`` by default.
            noise: (B, 3, h*f, w*f) standard normal, instead of a generator.

        Runs in the dtype of the decoder, whatever the encoder's; the sum over steps is kept in float32.
        Raises ValueError for a wrong shape or number of steps.
        """
        c, factor = self.config.latent_channels, self.spatial_factor
        if z.dim() != 4 or z.shape[1] != c or 0 in z.shape:
            raise ValueError(f"expected a latent (B, {c}, h, w), found {tuple(z.shape)}")
        shape = (z.shape[0], 3, z.shape[2] * factor, z.shape[3] * factor)
        if noise is None:
            noise = self._noise(shape, generator, z.device)
        elif noise.shape != shape:
            raise ValueError(f"expected noise {shape}, found {tuple(noise.shape)}")
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps

        z = z.to(_compute_dtype(self.decoder) or z.dtype)
        noise = noise.to(z.device)
        if self.use_slicing and z.shape[0] > 1:
            pairs = zip(z.split(1), noise.split(1), strict=True)
            image = torch.cat([self._decode(z_i, noise_i, steps) for z_i, noise_i in pairs])
        else:
            image = self._decode(z, noise, steps)
        image = image.to(z.dtype)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def _decode(self, z: Tensor, noise: Tensor, steps: int) -> Tensor:
        def sample(z: Tensor, noise: Tensor) -> Tensor:
            return flow.euler_sample(lambda x_t, t: self.decoder(x_t.to(z.dtype), t, z), noise, steps)

        tiles = self._tiles((z.shape[2], z.shape[3]))
        return sample(z, noise) if tiles is None else decode_tiles(sample, z, noise, tiles, self.spatial_factor)

    def _noise(
        self, shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None, device: torch.device
    ) -> Tensor:
        if generator is not None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return fixed_noise(self.config.noise_seed, list(shape[1:]), device).expand(shape)  # one for the whole batch

    def _tiles(self, grid: tuple[int, int]) -> TileGrid | None:
        """How to cut a latent grid, or None where tiling is off or one tile covers it."""
        if not self.use_tiling:
            return None
        if self._tile_pixels is None:
            return TileGrid.cover(grid, self.config.sample_size // self.spatial_factor, self.spatial_factor)
        overlap = max(1, round(self._tile_pixels * self.tile_overlap_factor / self.spatial_factor))
        return TileGrid.exact(grid, self._tile_pixels // self.spatial_factor, overlap, self.spatial_factor)

    @property
    def tile_sample_min_size(self) -> int:
        """Side of a tile in pixels, as diffusers' autoencoders have it: 512, or that of the training images if larger.

        Setting it, here or in latent cells as ``tile_latent_min_size``, fixes it: smaller tiles take less memory, and a
        pixel sees no farther than its tile. Raises ValueError below 128.
        """
        return self._tile_pixels or max(TILE_PIXELS, self.config.sample_size)

    @tile_sample_min_size.setter
    def tile_sample_min_size(self, pixels: int) -> None:
        if pixels < LEAST_TILE_PIXELS:
            raise ValueError(f"expected tiles of at least {LEAST_TILE_PIXELS} pixels, found {pixels}")
        self._tile_pixels = pixels

    @property
    def tile_latent_min_size(self) -> int:
        """Side of a tile in latent cells; see ``tile_sample_min_size``."""
        return self.tile_sample_min_size // self.spatial_factor

    @tile_latent_min_size.setter
    def tile_latent_min_size(self, cells: int) -> None:
        self.tile_sample_min_size = cells * self.spatial_factor

    # ---- speed -------------------------------------------------------------------------------------------------

    def optimize(self, dtype: torch.dtype | None = None, compile: bool = True) -> "AutoencoderSSDD":
        """Ready for inference at full speed, on the device where it is now; returns itself.

        Weights become ``dtype`` (bfloat16 by default where the device computes in it) and constant, the memory layout
        channels last. On a CPU norms are fused and freed memory is kept (``memory.keep_freed_memory``), on a GPU
        both networks are compiled; the first call takes its time then. The images are the same but for rounding.

        Args:
            dtype: torch.float32 for the last digits.
            compile: False where seconds of compiling do not pay.
        """
        optimize(self, dtype, compile)
        return self

    # ---- both ways ---------------------------------------------------------------------------------------------

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput:
        """Reconstruction of ``sample``, (B, 3, H, W) in [-1, 1]; ``generator`` draws from the posterior only."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    @property
    def post_quant_conv(self) -> nn.Module:
        """The layer that takes the latent: SDXL's pipelines ask it for the dtype where ``force_upcast`` is set."""
        return self.decoder.conv_in


def _compute_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the dtype that a network computes in, whatever its weights are stored in; None without parameters."""
    if isinstance(network, ForeignEncoder):
        return network.dtype
    return get_parameter_dtype(network) if next(network.parameters(), None) is not None else None


def _decoder_config(name: str) -> dict[str, Any]:
    """Arguments of the constructor for a decoder in a named size."""
    d = decoder_size(name)
    sizes = {"decoder_channels": d.channels, "decoder_layers": d.layers, "decoder_heads": d.heads}
    return {**sizes, "decoder_groups": d.groups}

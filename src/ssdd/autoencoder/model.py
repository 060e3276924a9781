"""``AutoencoderSSDD``: image to latent and back, with the interface of a diffusers autoencoder.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid.

Two kinds of latent, and one pair of functions between them: *raw* latents are what ``encode`` gives and ``decode``
takes; *normalised* latents (about zero mean and unit variance) are what a generative model is trained on (see
``normalization``).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

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

from .. import flow
from ..checkpoints.embedded import embedded_encoder
from ..checkpoints.own_code import ForeignEncoder
from ..checkpoints.own_model import HUB_OPTIONS, check_config, check_finite, check_folder, find_folder
from ..nn.decoder import Decoder
from ..nn.encoder import Encoder
from ..nn.noise import fixed_noise
from ..nn.presets import ENCODER_WIDTH, GROUPS, DecoderSize, EncoderSize, decoder_size, encoder_size
from ..runtime.files import share
from .normalization import Convention, NormalizationMixin, channel_statistics, check_convention
from .optimization import optimize
from .tiling import Direction, TilingMixin, decode_tiles, encode_tiles

_WRAPPED = "_orig_mod."  # what torch.compile puts before the names of a module's weights

_Method = TypeVar("_Method", bound=Callable[..., Any])


# The decorators of diffusers have no types: with them alone the class and its methods would be Any to type checkers.


def _registered(init: _Method) -> _Method:
    """Keep the arguments of a constructor in ``config``."""
    return cast(_Method, register_to_config(init))


def _hooked(method: _Method) -> _Method:
    """Have accelerate's hooks run before a method."""
    return cast(_Method, apply_forward_hook(method))


class AutoencoderSSDD(ModelMixin, ConfigMixin, AutoencoderMixin, NormalizationMixin, TilingMixin):
    """Convolutional KL encoder and single-step diffusion decoder (arXiv 2510.04961).

    Args:
        block_out_channels: Channels of each encoder level; n levels make a spatial factor of 2^(n-1).
        latent_channels: Channels c of a latent.
        decoder_channels: Channels of each decoder level.
        decoder_layers: Transformer blocks in the middle of the decoder.
        decoder_heads: Attention heads.
        encoder_groups: Groups of the encoder's norms.
        decoder_groups: Groups of the decoder's norms.
        num_inference_steps: Default number of decoding steps; 1 where a single step was trained.
        noise_seed: Seed of the default decoding noise.
        sample_size: Side of the training images in pixels; also the default tile.
        scaling_factor: Factor of normalised = (raw - shift_factor) * scaling_factor; pipelines read it.
        shift_factor: Shift of the same.
        latents_mean: Shift of each channel; goes before ``shift_factor`` where it is given.
        latents_std: Standard deviation of each channel; goes before ``scaling_factor`` where it is given.
        latents_convention: ``measured``, or ``pipeline`` for the constants of a pipeline (see ``normalization``).
        decoder_latents_mean: Mean of each channel of raw latents, where the decoder gets them normalised: it was
            trained on a foreign encoder, whose scale it need not know. ``decode`` takes raw latents all the same.
        decoder_latents_std: Standard deviation of the same.
        force_upcast: Tell SDXL's pipelines to decode in float32. False, because the model is finite in half precision
            (a KL-VAE may not be).
        has_encoder: False for a decoder of somebody else's latents.
        encoder_sha256: For a model without an encoder, the digest of the one whose latents it decodes (see
            ``checkpoints.identity``).
        batch_norm_mean: In the place of the statistics above, the means of FLUX.2's latents in patches of 2 x 2 cells,
            4c numbers; its pipelines read them as ``bn``.
        batch_norm_var: Variances of the same.
        batch_norm_eps: What is added to these variances.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResNetBlock", "TransformerBlock", "EncoderBlock")
    _repeated_blocks = ("ResNetBlock", "TransformerBlock", "EncoderBlock")
    _group_offload_block_modules = ("encoder", "decoder")
    _skip_layerwise_casting_patterns = ("norm", "modulation", "time")

    for_inference = False
    """Whether ``optimize`` made it ready: no gradients then, but those of inputs."""

    @_registered
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
        batch_norm_mean: tuple[float, ...] | None = None,
        batch_norm_var: tuple[float, ...] | None = None,
        batch_norm_eps: float = 1e-4,
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
        self.to(memory_format=torch.channels_last)

    if TYPE_CHECKING:  # diffusers wraps it so that type checkers refuse `ae.to("cuda")`

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

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
        """Load what ``state_dict`` returned.

        Args:
            state_dict: Weights by name.
            strict: Raise RuntimeError for names that are missing or unknown.
            assign: Keep the tensors of ``state_dict`` instead of copying their values.
        """
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
        """Return a model with random weights in a named size.

        Args:
            encoder: ``f8c4``, ``f16c16``, ...: spatial factor and latent channels.
            decoder: ``XXS`` to ``H``.
            encoder_width: Channels of the encoder's first level.
            encoder_groups: Groups of the encoder's norms.
            config: Further arguments of the constructor.

        Raises:
            ValueError: The name of a size is unknown.
        """
        e = encoder_size(encoder, encoder_width, encoder_groups)
        config = _decoder_config(decoder) | config
        return cls(block_out_channels=e.channels, latent_channels=e.latent_channels, encoder_groups=e.groups, **config)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "AutoencoderSSDD":
        """Load a model. Weights are read from safetensors only, and compared with the config before any is read.

        A model that only decodes has its encoder attached where this package has that one.

        Args:
            name_or_path: An embedded name (``ssdd-f8c4-demo``), a folder of ``save_pretrained``, or a hub id.
            kwargs: Arguments of diffusers' ``ModelMixin.from_pretrained``.

        Raises:
            ValueError: ``use_safetensors=False`` was asked for.
            CheckpointError: The weights do not fit the config, or are not finite.
            OSError: There is no such model.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("expected safetensors weights: pickled weights can run code and are never loaded")
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        variant = kwargs.get("variant")
        folder = find_folder(str(name_or_path), cls, kwargs.pop("subfolder", None), variant, hub)
        files = check_folder(folder, cls, variant, any_size=kwargs.get("ignore_mismatched_sizes", False))
        if variant is None and ".fp16" in files[0].name:  # there is nothing else
            kwargs["variant"] = "fp16"
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())
        loaded = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.register_to_config(_name_or_path=str(name_or_path))  # not where the hub's cache lies
        if model.config.decoder_latents_mean is not None:  # no weights: they stay behind on the meta device
            model.decoder.normalize_latents(model.config.decoder_latents_mean, model.config.decoder_latents_std)
        check_finite(str(name_or_path), model.state_dict())
        model.to(memory_format=torch.channels_last)
        if model.encoder is None and (embedded := embedded_encoder(model.config.encoder_sha256)):
            from ..checkpoints.encoders import load_encoder

            model.attach_encoder(load_encoder(embedded, str(name_or_path), model.config, folder))
        return loaded

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Write ``config.json`` and safetensors weights to a folder.

        Args:
            save_directory: The folder; it is made if it is not there.
            safe_serialization: True; pipelines pass it.
            variant: Part of the file's name, such as ``fp16``.
            max_shard_size: Size above which the weights are cut into several files.
            kwargs: Further arguments of diffusers' ``ModelMixin.save_pretrained``.

        Raises:
            ValueError: A pickle was asked for.
            OSError: The disk is full.
        """
        if not safe_serialization:
            raise ValueError("expected safetensors weights: this model is never saved as a pickle")
        try:
            super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)
        except SafetensorError as error:  # no OSError, although it is one
            raise OSError(f"could not write the model {save_directory} ({error})") from error
        for weights in Path(save_directory).glob("diffusion_pytorch_model*.safetensors"):
            share(weights)
        suffix = "" if variant is None else f".{variant}"
        if (Path(save_directory) / f"diffusion_pytorch_model{suffix}.safetensors").is_file():
            # of what was there before, in several files, which are gone
            (Path(save_directory) / f"diffusion_pytorch_model.safetensors.index{suffix}.json").unlink(missing_ok=True)

    def enable_layerwise_casting(
        self, storage_dtype: torch.dtype = torch.float8_e4m3fn, compute_dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        """Store weights in one type and compute in another, as diffusers' models do.

        Args:
            storage_dtype: Of the weights.
            compute_dtype: Of the work, and of what is not stored otherwise (norms); that of the model by default.
            kwargs: Further arguments of diffusers' ``ModelMixin.enable_layerwise_casting``.
        """
        if compute_dtype is not None:
            self.to(compute_dtype)
        super().enable_layerwise_casting(storage_dtype, compute_dtype, **kwargs)

    @classmethod
    def from_original(
        cls, source: str | Path | Mapping[str, Tensor], num_inference_steps: int | None = None
    ) -> "AutoencoderSSDD":
        """Load weights in the layout of the authors' release. Encoder and size come from the shapes.

        Args:
            source: A safetensors file, or its tensors by name.
            num_inference_steps: Default number of decoding steps of the result. 8 if not given: the release does not
                state whether a file is distilled.

        Raises:
            CheckpointError: The tensors are others; the message has the first differences.
        """
        from ..checkpoints.original import read_original

        checkpoint = read_original(source)
        check_finite("state dict" if isinstance(source, Mapping) else str(source), checkpoint.state)
        steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
        model = cls(**{**checkpoint.config, **steps})
        model.load_state_dict(checkpoint.state)
        return model.eval()

    @classmethod
    def from_kl_vae(cls, vae: Any, decoder: str = "S", **config: Any) -> "AutoencoderSSDD":
        """Return a model with encoder and constants of a KL-VAE, and a random decoder to be trained on its latents.

        The decoder gets the latents normalised by those constants, as ``decoder_latents_mean`` and
        ``decoder_latents_std`` say. The result is in float32 on the CPU, whatever the KL-VAE is in.

        Args:
            vae: A diffusers ``AutoencoderKL`` or ``AutoencoderKLFlux2``; the folder of one, of a pipeline or a kl-vae
                run; a hub id; a single file in LDM's layout, which states no constants.
            decoder: Size of the decoder.
            config: Further arguments of the constructor, instead of the KL-VAE's.

        Raises:
            CheckpointError: The KL-VAE has another architecture.
            OSError: There is no such model.
        """
        from ..checkpoints.kl_source import kl_encoder

        read = kl_encoder(vae)
        none = {"scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": None, "latents_std": None}
        stated = {**none, **read.config(), **config}
        if known := channel_statistics(stated, read.size.latent_channels):
            stated = {"decoder_latents_mean": known[0], "decoder_latents_std": known[1], **stated}
        model = cls(**{**_decoder_config(decoder), **stated})
        encoder = model._require_encoder()
        encoder.load_state_dict(read.state)
        encoder.to(memory_format=torch.contiguous_format)  # that of a KL-VAE: its posterior, to the last bit
        return model.eval()

    def attach_encoder(self, encoder: Any) -> None:
        """Give a model without an encoder one, for ``encode``.

        It is on the decoder's device from now on, keeps its own dtype, and is no part of the model's state dict or of
        ``save_pretrained``.

        Args:
            encoder: (B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f), with the attributes ``spatial_factor`` and
                ``latent_channels``; or anything with these and ``encode``, as ``checkpoints.own_code.ForeignEncoder``
                takes it.

        Raises:
            ValueError: if the model has an encoder of its own, or the encoder has another factor or other channels, or
                is none.
        """
        if not isinstance(encoder, ForeignEncoder) and hasattr(encoder, "encode"):
            encoder = ForeignEncoder(encoder, type(encoder).__name__)
        if self.encoder is not None:
            raise ValueError("expected a model without an encoder to attach one to, found one that has its own")
        expected = f"f{self.spatial_factor}c{self.config.latent_channels}"
        found = f"f{encoder.spatial_factor}c{encoder.latent_channels}"
        if found != expected:
            raise ValueError(f"expected an encoder of {expected}, found {found}")
        self._attached = [self._beside_decoder(encoder).eval()]

    @property
    def attached_encoder(self) -> nn.Module | None:
        """Return the encoder that ``attach_encoder`` gave, if any."""
        return self._attached[0] if self._attached else None

    @property
    def latent_channels(self) -> int:
        """Return c, the channels of a latent."""
        return int(self.config.latent_channels)

    # ---- image -> latent ---------------------------------------------------------------------------------------

    @_hooked
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Return the posterior of the raw latent: ``ae.encode(x).latent_dist.mode()`` is (B, c, H/f, W/f).

        It runs in the dtype of the encoder, whatever the decoder's, and the latent is of that dtype; an encoder which
        ``attach_encoder`` gave decides itself.

        Args:
            x: Images (B, 3, H, W) in [-1, 1]; H and W are multiples of the spatial factor f.
            return_dict: False for a tuple, as in diffusers.

        Raises:
            ValueError: The shape is wrong, the images are integers, or the model has no encoder.
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
        with self._graph_if_wanted(x):
            if len(x) > 1 and (self.use_slicing or not self._fits("encoding", x.numel() // 3, x.device, x.dtype)):
                moments = torch.cat([self._encode(image) for image in x.split(1)])
            else:
                moments = self._encode(x)
        if self.encoder is not None:  # an attached one has the dtype that it wants
            moments = moments.to(x.dtype)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _encode(self, x: Tensor) -> Tensor:
        encoder, factor = self._require_encoder(), self.spatial_factor
        grid = (x.shape[2] // factor, x.shape[3] // factor)
        compiled = _is_compiled(encoder)
        return self._whole_or_tiles(
            "encoding",
            x,
            x.dtype,
            grid,
            lambda: encoder(x),
            lambda tiles: encode_tiles(encoder, x, tiles, factor, compiled),
        )

    def _require_encoder(self) -> nn.Module:
        if self.encoder is not None:
            return self.encoder
        if self.attached_encoder is None:
            raise ValueError(
                "expected a model with an encoder; this one only decodes (has_encoder is false): pass --encoder, or "
                "call attach_encoder"
            )
        return self._beside_decoder(self.attached_encoder)  # ``to`` may have moved the decoder alone

    def _beside_decoder(self, encoder: nn.Module) -> nn.Module:
        """Move an encoder to the decoder's device; not after it to the meta device, where offloaded weights wait."""
        device = self.decoder.conv_in.weight.device
        return encoder if device.type == "meta" else encoder.to(device)

    # ---- latent -> image ---------------------------------------------------------------------------------------

    @_hooked
    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
    ) -> DecoderOutput:
        """Return the image of a raw latent, ``ae.decode(z).sample``: (B, 3, h*f, w*f), about [-1, 1], not clamped.

        It is deterministic by default: the noise of an image depends on ``config.noise_seed`` and the image's own size
        alone, not on its batch, the device or the dtype. It runs in the dtype of the decoder, whatever the encoder's;
        the sum over steps is kept in float32.

        Args:
            z: Raw latents (B, c, h, w); pipelines unscale them before they call this.
            return_dict: False for a tuple, as in diffusers.
            generator: Draws other noise: one generator for all, or a list of one per image.
            num_inference_steps: Euler steps on t_i = (1 - i/N)^2; ``config.num_inference_steps`` by default.
            noise: Standard normal noise (B, 3, h*f, w*f), instead of a generator.

        Raises:
            ValueError: The shape, the number of steps or that of generators is wrong.
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

        dtype, noise = _compute_dtype(self.decoder) or z.dtype, noise.to(z.device)
        with self._graph_if_wanted(z, noise):
            if len(z) > 1 and (self.use_slicing or not self._fits("decoding", noise.numel() // 3, z.device, dtype)):
                pairs = zip(z.split(1), noise.split(1), strict=True)
                image = torch.cat([self._decode(z_i, noise_i, steps, dtype) for z_i, noise_i in pairs])
            else:
                image = self._decode(z, noise, steps, dtype)
            image = image.to(dtype)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def _decode(self, z: Tensor, noise: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
        def sample(z: Tensor, noise: Tensor) -> Tensor:
            # A copy: the noise is kept for the next image, and a hook may write into the decoder's input.
            return flow.euler_sample(lambda x_t, t: self.decoder(x_t.to(dtype, copy=True), t, z), noise, steps)

        return self._whole_or_tiles(
            "decoding",
            z,
            dtype,
            (z.shape[2], z.shape[3]),
            lambda: sample(z, noise),
            lambda tiles: decode_tiles(sample, z, noise, tiles, self.spatial_factor, _is_compiled(self.decoder)),
        )

    def _graph_if_wanted(self, *inputs: Tensor) -> AbstractContextManager[None]:
        """Return a context without gradients where an optimised model has no use for them: they take memory."""
        if not self.for_inference or torch.compiler.is_compiling() or any(x.requires_grad for x in inputs):
            return nullcontext()
        return torch.no_grad()

    def _noise(
        self, shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None, device: torch.device
    ) -> Tensor:
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"expected a generator for each of {shape[0]} latents, found {len(generator)}")
        if generator is not None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return fixed_noise(self.config.noise_seed, shape[1:], device).expand(shape)  # one for the whole batch

    def estimate_memory(self, height: int, width: int, batch: int = 1) -> int:
        """Return about how many bytes above the weights it takes to encode or decode images without tiles.

        Args:
            height: Pixels of an image from top to bottom.
            width: Pixels of an image from left to right.
            batch: Number of images.
        """
        pixels = batch * height * width
        networks: list[tuple[Direction, nn.Module | None]] = [("encoding", self.encoder), ("decoding", self.decoder)]
        dtypes = [(direction, _compute_dtype(network)) for direction, network in networks if network is not None]
        return max(self._needed_bytes(direction, pixels, dtype or torch.float32) for direction, dtype in dtypes)

    # ---- speed -------------------------------------------------------------------------------------------------

    def optimize(
        self,
        dtype: torch.dtype | None = None,
        compile: bool | Literal["graphs"] = True,
        encoder_dtype: torch.dtype | None = None,
    ) -> "AutoencoderSSDD":
        """Make the model ready for inference at full speed on the device where it is, and return it.

        Weights become ``dtype`` (bfloat16 by default where the device computes in it) and constant, the memory layout
        channels last. On a CPU norms are fused and freed memory is kept (``runtime.memory.keep_freed_memory``), on a
        GPU both networks are compiled; the first call takes its time then. The images are the same but for rounding.

        Args:
            dtype: Of the weights; torch.float32 keeps the last digits.
            compile: False where seconds of compiling do not pay. ``graphs``: on a GPU the decoder as CUDA graphs too,
                for few sizes decoded often; each size is compiled, and keeps its memory.
            encoder_dtype: Of the encoder alone, which bears rounding less than the decoder; ``dtype`` by default.
        """
        optimize(self, dtype, compile, encoder_dtype)
        return self

    # ---- both ways ---------------------------------------------------------------------------------------------

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput:
        """Return the reconstruction of images: encode, then decode.

        Args:
            sample: Images (B, 3, H, W) in [-1, 1].
            sample_posterior: Decode a sample of the posterior instead of its mode.
            return_dict: False for a tuple, as in diffusers.
            generator: Draws from the posterior; the decoding noise is not its.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    @property
    def bn(self) -> nn.BatchNorm2d:
        """Return the batch norm of latents in patches, (B, 4c, h/2, w/2), that FLUX.2's pipelines read."""
        mean, var = self.config.batch_norm_mean, self.config.batch_norm_var
        if mean is None:
            raise AttributeError("expected a model with FLUX.2's encoder for bn, found one without a batch norm")
        norm = nn.BatchNorm2d(len(mean), self.config.batch_norm_eps, affine=False, device=self.device).eval()
        norm.running_mean, norm.running_var = (torch.tensor(values, device=self.device) for values in (mean, var))
        return norm

    @property
    def post_quant_conv(self) -> nn.Module:
        """Return the layer that takes the latent: SDXL's pipelines ask it for the dtype with ``force_upcast``."""
        return self.decoder.conv_in


def _is_compiled(network: nn.Module) -> bool:
    """Return whether a network was compiled in place, by ``compile`` or ``optimize``."""
    return network._compiled_call_impl is not None


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

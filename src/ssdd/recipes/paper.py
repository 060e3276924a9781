"""The method at the scale of the paper (arXiv 2510.04961): one function per stage.

For every latent (f8c4, f16c4, f16c16, f32c64) and decoder size (S to H):

    encoder         encoder + M decoder together, 128 px
    pretraining     a decoder on that encoder, frozen; 128 px, shared by all resolutions
    finetuning      the decoder at 128, 256 or 512 px
    distillation    the fine-tuned decoder to one step
    kl_vae          the baseline: the same encoder with a plain decoder and a GAN

The paper trains on ImageNet with 256 images a batch; progress here is in images.
"""

from ..training.config import (
    AverageConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

LATENTS = ("f8c4", "f16c4", "f16c16", "f32c64")
DECODERS = ("S", "B", "M", "L", "XL", "H")
RESOLUTIONS = (128, 256, 512)

_BATCH = 256
_ITERATION = _BATCH
_EPOCH = 5005 * _ITERATION
_AVERAGE = AverageConfig(halflife_images=177_358, from_images=50_000 * _ITERATION)  # 0.999 an update of 256 images
_LOSS = LossConfig(lpips=0.5, repa=0.25, kl=1e-6)
_LOG = LogConfig(
    stats_images=50 * _ITERATION,
    sample_images=5000 * _ITERATION,
    checkpoint_images=1000 * _ITERATION,
    milestone_images=50 * _EPOCH,
)


def _optimizer(learning_rate: float = 1e-4) -> OptimizerConfig:
    return OptimizerConfig("schedule-free-radam", learning_rate, betas=(0.9, 0.999), clip=0.1, warmup_images=0)


def _stage(model: ModelConfig, data: DataConfig, epochs: int, learning_rate: float = 1e-4) -> TrainConfig:
    return TrainConfig(
        model=model,
        data=data,
        loss=_LOSS,
        optimizer=_optimizer(learning_rate),
        average=_AVERAGE,
        log=_LOG,
        total_images=epochs * _EPOCH,
        batch_size=_BATCH,
        compile=True,
        parallel="fsdp" if model.decoder == "H" else "ddp",
    )


def encoder(latent: str) -> TrainConfig:
    """Stage 0: the encoder, together with an M decoder, at 128 px."""
    return _stage(ModelConfig(latent, decoder="M"), DataConfig(resolution=128, scale=2.0, workers=12), epochs=300)


def pretraining(latent: str, decoder: str) -> TrainConfig:
    """Stage 1: a decoder on the frozen encoder of stage 0, at 128 px; all resolutions start from it."""
    model = ModelConfig(f"runs/{latent}-encoder", decoder=decoder, train_encoder=False)
    data = DataConfig(resolution=128, scale=2.0, workers=12)
    return _stage(model, data, epochs=300, learning_rate=3e-4 if decoder == "H" else 8e-4)


def finetuning(latent: str, decoder: str, resolution: int) -> TrainConfig:
    """Stage 2: the decoder of stage 1 at one resolution, without scale augmentation."""
    start = f"runs/{latent}-{decoder}-pretraining"
    model = ModelConfig(latent, decoder=decoder, start_from=start, train_encoder=False)
    return _stage(model, DataConfig(resolution=resolution, scale=1.0, workers=12), epochs=100)


def distillation(latent: str, decoder: str, resolution: int) -> TrainConfig:
    """Stage 3: the decoder of stage 2 to one step, with 12 steps of itself as the teacher."""
    # 10 epochs are 12.8 M images and 50 updates more than the averaging waits for, as published: it averages those.
    start = f"runs/{latent}-{decoder}-{resolution}"
    model = ModelConfig(latent, decoder=decoder, start_from=start, train_encoder=False)
    config = _stage(model, DataConfig(resolution=resolution, scale=1.0, workers=12), epochs=10)
    return TrainConfig(**{**vars(config), "stage": "distillation", "teacher_steps": 12})


def kl_vae(latent: str) -> TrainConfig:
    """Baseline: KL-VAE with the same encoder, by L1 + LPIPS + KL + PatchGAN with the adaptive weight."""
    config = _stage(ModelConfig(latent), DataConfig(resolution=128, scale=2.0, workers=12), epochs=300)
    loss = LossConfig(lpips=1.0, kl=1e-6, adversarial=0.5, adversarial_from_images=50_000 * _ITERATION)
    return TrainConfig(**{**vars(config), "stage": "kl-vae", "loss": loss})

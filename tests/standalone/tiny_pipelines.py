"""Tiny random pipelines of diffusers, one per class: made from configs and never downloaded.

All draw images of 16 x 16 pixels, or of 32 x 32 that are resized, some of them because the flags in
``PIPELINES`` say so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra `text`")

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,-'\"!:<>_/#*()"


# ---- tokenizers ----------------------------------------------------------------------------------


def clip_tokenizer() -> Any:
    """Return a tokenizer of letters, for 77 tokens."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{x}</w>" for x in LETTERS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    """Return a unigram tokenizer of letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def bert_tokenizer() -> Any:
    """Return a word-piece tokenizer of letters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{x}" for x in LETTERS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=77)


def gemma_tokenizer() -> Any:
    """Return a byte-pair tokenizer of letters."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", "\n", *LETTERS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[])


def qwen_tokenizer() -> Any:
    """Return a tokenizer of bytes, with a chat template."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


# ---- text encoders -------------------------------------------------------------------------------


def clip(kind: Any = None, size: int = 32) -> Any:
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=size,
        projection_dim=size,
        intermediate_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=128,
    )
    return (kind or transformers.CLIPTextModel)(config)


def projected(size: int = 32) -> Any:
    return clip(transformers.CLIPTextModelWithProjection, size)


def t5(kind: Any = None) -> Any:
    torch.manual_seed(2)
    name = "UMT5" if kind is transformers.UMT5EncoderModel else "T5"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=128, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4
    )
    return (kind or transformers.T5EncoderModel)(config)


def gemma(kind: Any = None) -> Any:
    torch.manual_seed(3)
    config = transformers.Gemma2Config(
        head_dim=4,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return (kind or transformers.Gemma2Model)(config)


def qwen3() -> Any:
    torch.manual_seed(4)
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


# ---- image networks ------------------------------------------------------------------------------


def vae(latents: int = 4, factor: int = 2, **more: Any) -> Any:
    """Return a decoder of latents that are ``factor`` times smaller than images."""
    torch.manual_seed(5)
    levels = factor.bit_length()
    return diffusers.AutoencoderKL(
        block_out_channels=[8] * levels,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=latents,
        **more,
    )


def flow_vae(latents: int = 4, factor: int = 2) -> Any:
    return vae(
        latents,
        factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def movq(latents: int = 4) -> Any:
    torch.manual_seed(6)
    return diffusers.VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=latents,
        norm_num_groups=8,
        num_vq_embeddings=12,
        vq_embed_dim=latents,
        norm_type="spatial",
    )


def unet(channels: int = 3, size: int = 16, **more: Any) -> Any:
    torch.manual_seed(7)
    return diffusers.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **more,
    )


def conditional_unet(**more: Any) -> Any:
    torch.manual_seed(8)
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DConditionModel(**(settings | more))


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


# ---- pipelines -----------------------------------------------------------------------------------


def pndm() -> Any:
    return diffusers.PNDMPipeline(unet=unet(), scheduler=diffusers.PNDMScheduler())


def ddpm() -> Any:
    return diffusers.DDPMPipeline(unet=unet(), scheduler=diffusers.DDPMScheduler())


def ddim() -> Any:
    return diffusers.DDIMPipeline(unet=unet(), scheduler=diffusers.DDIMScheduler())


def score_sde() -> Any:
    return diffusers.ScoreSdeVePipeline(unet=unet(), scheduler=diffusers.ScoreSdeVeScheduler())


def karras() -> Any:
    return diffusers.KarrasVePipeline(unet=unet(), scheduler=diffusers.KarrasVeScheduler())


def consistency(classes: int | None = None) -> Any:
    return diffusers.ConsistencyModelPipeline(
        unet=unet(num_class_embeds=classes),
        scheduler=diffusers.CMStochasticIterativeScheduler(),
    )


def consistency_of_classes() -> Any:
    return consistency(classes=10)


def latent() -> Any:
    torch.manual_seed(9)
    vqvae = diffusers.VQModel(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        norm_num_groups=4,
    )
    return diffusers.LDMPipeline(
        vqvae=vqvae, unet=unet(size=8), scheduler=diffusers.DDIMScheduler()
    )


def dit() -> Any:
    torch.manual_seed(10)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return diffusers.DiTPipeline(
        transformer=transformer, vae=vae(), scheduler=diffusers.DDIMScheduler()
    )


def dit_with_noise() -> Any:
    """Return one whose scheduler draws noise, to which the call passes no generator."""
    pipeline = dit()
    pipeline.scheduler = diffusers.DDPMScheduler()
    return pipeline


def sd_parts(**more: Any) -> dict[str, Any]:
    """Return the parts of a Stable Diffusion pipeline."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    parts = {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": conditional_unet(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    return parts | more


def sd() -> Any:
    return diffusers.StableDiffusionPipeline(**sd_parts(), requires_safety_checker=False)


def sd2() -> Any:
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    network = conditional_unet(use_linear_projection=True, attention_head_dim=(2, 4))
    return diffusers.StableDiffusionPipeline(
        **sd_parts(scheduler=scheduler, unet=network), requires_safety_checker=False
    )


def sd_of(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        return getattr(diffusers, kind)(**sd_parts(), requires_safety_checker=False)

    return make


def panorama() -> Any:
    return diffusers.StableDiffusionPanoramaPipeline(**sd_parts(), requires_safety_checker=False)


def lcm() -> Any:
    parts = sd_parts(
        unet=conditional_unet(time_cond_proj_dim=32), scheduler=diffusers.LCMScheduler()
    )
    return diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def sdxl(kind: str = "StableDiffusionXLPipeline") -> Any:
    network = conditional_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        use_linear_projection=True,
    )
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=projected(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )


def sdxl_pag() -> Any:
    return sdxl("StableDiffusionXLPAGPipeline")


def sd3(kind: str = "StableDiffusion3Pipeline") -> Any:
    torch.manual_seed(11)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return getattr(diffusers, kind)(
        transformer=transformer,
        text_encoder=projected(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=projected(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        vae=flow_vae(),
        scheduler=flow(),
    )


def pixart(kind: str = "PixArtAlphaPipeline", **more: Any) -> Any:
    torch.manual_seed(12)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=False,
    )
    return getattr(diffusers, kind)(
        transformer=transformer,
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        vae=vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def pixart_sigma() -> Any:
    return pixart("PixArtSigmaPipeline")


def sana(kind: str = "SanaPipeline") -> Any:
    torch.manual_seed(13)
    sprint = kind == "SanaSprintPipeline"
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
        guidance_embeds=sprint,
        guidance_embeds_scale=0.1 if sprint else 1.0,
        qk_norm="rms_norm_across_heads" if sprint else None,
    )
    decoder = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    scheduler = diffusers.SCMScheduler() if sprint else flow()
    return getattr(diffusers, kind)(
        transformer=transformer,
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        vae=decoder,
        scheduler=scheduler,
    )


def sana_sprint() -> Any:
    return sana("SanaSprintPipeline")


def flux() -> Any:
    torch.manual_seed(14)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        vae=flow_vae(),
        scheduler=flow(),
    )


def chroma() -> Any:
    torch.manual_seed(15)
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return diffusers.ChromaPipeline(
        transformer=transformer,
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        vae=flow_vae(),
        scheduler=flow(),
    )


def aura() -> Any:
    torch.manual_seed(16)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        transformer=transformer,
        text_encoder=t5(transformers.UMT5EncoderModel),
        tokenizer=t5_tokenizer(),
        vae=vae(),
        scheduler=flow(),
    )


def lumina2() -> Any:
    torch.manual_seed(17)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        vae=flow_vae(factor=8),
        scheduler=flow(),
    )


def hunyuan() -> Any:
    torch.manual_seed(18)
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    )
    torch.manual_seed(19)
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    return diffusers.HunyuanDiTPipeline(
        transformer=transformer,
        text_encoder=bert,
        tokenizer=bert_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        vae=vae(),
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def kandinsky3() -> Any:
    torch.manual_seed(20)
    network = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=32,
    )
    return diffusers.Kandinsky3Pipeline(
        unet=network,
        movq=movq(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        scheduler=diffusers.DDPMScheduler(),
    )


def kandinsky22() -> Any:
    torch.manual_seed(21)
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1
    )
    prior.clip_std = torch.nn.Parameter(torch.ones_like(prior.clip_std))
    vision = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            projection_dim=32,
            intermediate_size=32,
            num_attention_heads=4,
            num_hidden_layers=1,
            image_size=28,
            patch_size=14,
        )
    )
    network = conditional_unet(
        out_channels=8,
        block_out_channels=(32, 64),
        norm_num_groups=32,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    return diffusers.KandinskyV22CombinedPipeline(
        unet=network,
        scheduler=diffusers.DDIMScheduler(),
        movq=movq(),
        prior_prior=prior,
        prior_image_encoder=vision,
        prior_text_encoder=projected(),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=diffusers.UnCLIPScheduler(prediction_type="sample"),
        prior_image_processor=transformers.CLIPImageProcessor(size=28, crop_size=28),
    )


def ldm_text() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    torch.manual_seed(22)
    bert = LDMBertModel(
        LDMBertConfig(
            vocab_size=128,
            d_model=32,
            encoder_layers=1,
            encoder_ffn_dim=32,
            encoder_attention_heads=4,
            head_dim=8,
        )
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=vae(factor=8),
        bert=bert,
        tokenizer=bert_tokenizer(),
        unet=conditional_unet(),
        scheduler=diffusers.DDIMScheduler(),
    )


def amused() -> Any:
    torch.manual_seed(23)
    transformer = diffusers.UVit2DModel(
        hidden_size=8,
        cond_embed_dim=8,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=8,
        vocab_size=32,
        codebook_size=8,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    vqvae = diffusers.VQModel(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=8,
        norm_num_groups=8,
        num_vq_embeddings=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    return diffusers.AmusedPipeline(
        transformer=transformer,
        vqvae=vqvae,
        text_encoder=projected(8),
        tokenizer=clip_tokenizer(),
        scheduler=diffusers.AmusedScheduler(mask_token_id=31),
    )


def floyd() -> Any:
    from diffusers.pipelines.deepfloyd_if import IFWatermarker

    network = conditional_unet(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64),
        norm_num_groups=32,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, sample_max_value=1.0, variance_type="learned_range"
    )
    return diffusers.IFPipeline(
        unet=network,
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        scheduler=scheduler,
        watermarker=IFWatermarker(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def z_image() -> Any:
    torch.manual_seed(24)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        transformer=transformer,
        text_encoder=qwen3(),
        tokenizer=qwen_tokenizer(),
        vae=flow_vae(),
        scheduler=flow(),
    )


def qwen_image() -> Any:
    torch.manual_seed(25)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    text = {
        "vocab_size": 320,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        text_encoder=encoder,
        tokenizer=qwen_tokenizer(),
        vae=decoder,
        scheduler=flow(),
    )


SIZE = ["--height", "16", "--width", "16"]
LARGE = ["--height", "32", "--width", "32", "--resize", "16"]

PIPELINES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "DDPMPipeline": (ddpm, []),
    "DDIMPipeline": (ddim, []),
    "PNDMPipeline": (pndm, []),
    "ScoreSdeVePipeline": (score_sde, []),
    "KarrasVePipeline": (karras, []),
    "ConsistencyModelPipeline": (consistency, []),
    "ConsistencyModelPipeline of classes": (consistency_of_classes, []),
    "LDMPipeline": (latent, []),
    "DiTPipeline": (dit, []),
    "StableDiffusionPipeline": (sd, []),
    "StableDiffusionPipeline 2": (sd2, []),
    "StableDiffusionPAGPipeline": (sd_of("StableDiffusionPAGPipeline"), []),
    "StableDiffusionSAGPipeline": (sd_of("StableDiffusionSAGPipeline"), []),
    "LatentConsistencyModelPipeline": (lcm, []),
    "StableDiffusionXLPipeline": (sdxl, []),
    "StableDiffusionXLPAGPipeline": (sdxl_pag, []),
    "StableDiffusion3Pipeline": (sd3, []),
    "PixArtAlphaPipeline": (pixart, SIZE),
    "PixArtSigmaPipeline": (pixart_sigma, SIZE),
    "SanaPipeline": (sana, LARGE),
    "SanaSprintPipeline": (sana_sprint, LARGE),
    "FluxPipeline": (flux, SIZE),
    "ChromaPipeline": (chroma, SIZE),
    "AuraFlowPipeline": (aura, SIZE),
    "Lumina2Pipeline": (lumina2, SIZE),
    "HunyuanDiTPipeline": (hunyuan, SIZE),
    "Kandinsky3Pipeline": (kandinsky3, SIZE),
    "KandinskyV22CombinedPipeline": (kandinsky22, SIZE),
    "LDMTextToImagePipeline": (ldm_text, SIZE),
    "AmusedPipeline": (amused, SIZE),
    "IFPipeline": (floyd, []),
    "ZImagePipeline": (z_image, SIZE),
    "QwenImagePipeline": (qwen_image, SIZE),
}
"""Class, and what it is made for -> a maker, and flags for its images of 16 x 16 pixels."""


def save(make: Callable[[], Any], folder: Path) -> Path:
    """Make a pipeline and store it."""
    make().save_pretrained(folder)
    return folder


# ---- LoRA -----------------------------------------------------------------------------------------


def lora(folder: Path, make: Callable[[], Any], targets: list[str], part: str = "unet") -> Path:
    """Store random LoRA weights for a part of a pipeline, in diffusers' own form."""
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = make()
    torch.manual_seed(1)
    network = getattr(pipeline, part)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    network.add_adapter(config)
    state = get_peft_model_state_dict(network)
    type(pipeline).save_lora_weights(folder, **{f"{part}_lora_layers": state})
    return folder / "pytorch_lora_weights.safetensors"

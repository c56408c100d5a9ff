"""Small members of timm's families, on which `coverage.py` tries the rules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from models import Case
from torch import Tensor, nn

from standins import torchvision

BATCH = 4
SQUARE = 64
"""Edge of a picture for models that take any."""

TIMM = {
    "any": (
        "resnet10t resnet26d resnetrs50 resnetblur18 resnetaa34d ecaresnet26t resnext50_32x4d seresnext26d_32x4d "
        "resnetv2_18 resnetv2_50x1_bit resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnet50_gn nf_resnet26 "
        "nf_regnet_b0 nf_ecaresnet26 nfnet_l0 dm_nfnet_f0 eca_nfnet_l0 botnet26t_256 eca_botnext26ts_256 "
        "halonet26t sehalonet33ts lambda_resnet26t lambda_resnet26rpt_256 bat_resnext26ts gcresnext26ts "
        "resnet33ts gernet_s repvgg_a0 mobileone_s0 regnetz_005 regnetz_c16_evos regnetx_002 regnety_002 "
        "regnetv_040 convmixer_768_32 convnext_atto convnextv2_atto convnext_zepto_rms cspresnet50 cs3darknet_s "
        "darknet17 cspnext_tiny densenet121 densenetblur121d dla46_c dla60_res2net dpn48b dpn68b "
        "edgenext_xx_small efficientnet_b0 efficientnet_b0_gn efficientnet_b0_g16_evos efficientnet_cc_b0_4e "
        "efficientnetv2_rw_t mixnet_s mnasnet_050 spnasnet_100 fbnetc_100 tinynet_e semnasnet_050 "
        "tf_efficientnet_b0 tf_mixnet_s mobilenetv2_035 mobilenetv1_100 efficientvit_b0 efficientvit_m0 "
        "fasternet_t0 fastvit_t8 focalnet_tiny_srf ghostnet_050 ghostnetv2_100 hardcorenas_a hgnetv2_b0 "
        "hgnet_tiny hrnet_w18_small inception_next_atto lcnet_050 lcnetv2_small mambaout_femto test_mambaout "
        "mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium_075 fbnetv3_b poolformer_s12 "
        "poolformerv2_s12 convformer_s18 caformer_s18 mobilevit_xxs mobilevitv2_050 pvt_v2_b0 pvt_v2_b2_li "
        "rdnet_tiny repghostnet_050 repvit_m0_9 res2net50_14w_8s res2next50 resnest14d rexnet_100 rexnetr_100 "
        "selecsls42 legacy_seresnet18 legacy_seresnext26_32x4d skresnet18 skresnext50_32x4d starnet_s050 shvit_s1 "
        "tresnet_m vgg11 vgg11_bn ese_vovnet19b_slim eca_vovnet39b vovnet39a xcit_nano_12_p16_224 csatv2 "
        "iformer_t lowformer_b0 mobilenetv5_base cpubone_nano swiftformer_xs nextvit_small efficientvim_m1 "
        "twins_pcpvt_small twins_svt_small visformer_tiny davit_tiny"
    ),
    "fixed": (
        "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 "
        "beitv2_base_patch16_224 beit3_base_patch16_224 cait_xxs24_224 coat_tiny coat_lite_tiny convit_tiny "
        "crossvit_tiny_240 crossvit_9_dagger_240 efficientformer_l1 efficientformerv2_s0 eva02_tiny_patch14_224 "
        "vit_small_patch16_rope_224 gcvit_xxtiny hiera_tiny_224 levit_128s levit_conv_128s coatnet_pico_rw_224 "
        "coatnet_rmlp_nano_rw_224 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 "
        "coatnext_nano_rw_224 mvitv2_tiny nest_tiny nest_tiny_jx pit_ti_224 pit_ti_distilled_224 sequencer2d_s "
        "swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 "
        "tnt_s_patch16_224 tnt_s_legacy_patch16_224 test_vit test_vit2 test_vit3 test_vit4 vit_tiny_r_s16_p8_224 "
        "test_vit_relpos vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224 vitamin_small_224 volo_d1_224 "
        "gmixer_12_224 gmlp_ti16_224 mixer_s32_224 resmlp_12_224 flexivit_small vit_little_patch16_reg4_gap_256 "
        "vit_wee_patch16_reg1_gap_256 samvit_base_patch16_224 hieradet_small"
    ),
    "large": "inception_v3 inception_v4 inception_resnet_v2 nasnetalarge pnasnet5large legacy_xception xception41",
}
"""Members of timm's families: of any picture size, of a fixed one, and those that need more than `SQUARE`."""


def timm_cases() -> Iterator[Case]:
    for kind, names in TIMM.items():
        for name in names.split():
            yield Case("timm", name, lambda name=name, kind=kind: timm_model(name, kind))


def timm_model(name: str, kind: str) -> tuple[nn.Module, Tensor]:
    """The model with ten classes and noise of the least size that it takes."""
    torchvision()
    import timm

    if kind == "any":
        edge = SQUARE
        for size in (SQUARE, 128, 224, 256):
            edge = size
            try:
                model = timm.create_model(name, num_classes=10).eval()
                with torch.no_grad():
                    model(torch.randn(2, 3, size, size))
                break
            except (RuntimeError, AssertionError, ValueError):
                continue
        return model.train(), torch.randn(BATCH, 3, edge, edge)
    model = timm.create_model(name, num_classes=10)
    edge = 96 if kind == "large" else model.default_cfg["input_size"][-1]
    return model, torch.randn(BATCH, 3, edge, edge)

"""The layers of every base by name, to reject a misspelt one without starting Keras.

A name stands here for all that differ from it in numbers only, as Keras counts blocks and unnamed layers: what passes
may still be none, which is told once the network is built. `tests/networks/test_catalog.py` compares them with
Keras' own.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from bottleneck.catalog import ONNX_BASE, base_named, find_network
from bottleneck.errors import UsageError

SHAPES = {
    ("vgg16", "vgg19"): ("block#_conv# block#_pool fc# flatten predictions"),
    ("inception_v3",): (
        "activation activation_# average_pooling#d average_pooling#d_# avg_pool batch_normalization "
        "batch_normalization_# concatenate concatenate_# conv#d conv#d_# max_pooling#d max_pooling#d_# mixed# "
        "mixed#_# predictions"
    ),
    ("inception_resnet_v2",): (
        "activation activation_# average_pooling#d avg_pool batch_normalization batch_normalization_# block#_#_ac "
        "block#_#_conv block#_#_mixed conv#d conv#d_# conv_#b conv_#b_ac conv_#b_bn custom_scale_layer "
        "custom_scale_layer_# max_pooling#d max_pooling#d_# mixed_#a mixed_#b predictions"
    ),
    ("xception",): (
        "add add_# avg_pool batch_normalization batch_normalization_# block#_conv# block#_conv#_act "
        "block#_conv#_bn block#_pool block#_sepconv# block#_sepconv#_act block#_sepconv#_bn conv#d conv#d_# "
        "predictions"
    ),
    ("resnet50", "resnet101", "resnet152"): (
        "avg_pool conv#_block#_#_bn conv#_block#_#_conv conv#_block#_#_relu conv#_block#_add conv#_block#_out "
        "conv#_bn conv#_conv conv#_pad conv#_relu pool#_pad pool#_pool predictions"
    ),
    ("resnet50_v2", "resnet101_v2", "resnet152_v2"): (
        "avg_pool conv#_block#_#_bn conv#_block#_#_conv conv#_block#_#_pad conv#_block#_#_relu conv#_block#_out "
        "conv#_block#_preact_bn conv#_block#_preact_relu conv#_conv conv#_pad max_pooling#d max_pooling#d_# "
        "pool#_pad pool#_pool post_bn post_relu predictions"
    ),
    ("densenet121", "densenet169", "densenet201"): (
        "avg_pool bn conv#_block#_#_bn conv#_block#_#_conv conv#_block#_#_relu conv#_block#_concat conv#_bn "
        "conv#_conv conv#_relu pool# pool#_bn pool#_conv pool#_pool pool#_relu predictions relu zero_padding#d "
        "zero_padding#d_#"
    ),
    ("mobilenet",): (
        "conv# conv#_bn conv#_relu conv_dw_# conv_dw_#_bn conv_dw_#_relu conv_pad_# conv_preds conv_pw_# "
        "conv_pw_#_bn conv_pw_#_relu dropout global_average_pooling#d predictions reshape_#"
    ),
    ("mobilenet_v2",): (
        "Conv# Conv#_relu Conv_# Conv_#_bn block_#_add block_#_depthwise block_#_depthwise_BN "
        "block_#_depthwise_relu block_#_expand block_#_expand_BN block_#_expand_relu block_#_pad block_#_project "
        "block_#_project_BN bn_Conv# expanded_conv_depthwise expanded_conv_depthwise_BN "
        "expanded_conv_depthwise_relu expanded_conv_project expanded_conv_project_BN global_average_pooling#d "
        "out_relu predictions"
    ),
    ("mobilenet_v3_small",): (
        "activation activation_# conv conv_# conv_#_bn conv_bn dropout expanded_conv_#_add "
        "expanded_conv_#_depthwise expanded_conv_#_depthwise_bn expanded_conv_#_depthwise_pad "
        "expanded_conv_#_expand expanded_conv_#_expand_bn expanded_conv_#_project expanded_conv_#_project_bn "
        "expanded_conv_#_squeeze_excite_avg_pool expanded_conv_#_squeeze_excite_conv "
        "expanded_conv_#_squeeze_excite_conv_# expanded_conv_#_squeeze_excite_mul "
        "expanded_conv_#_squeeze_excite_relu expanded_conv_depthwise expanded_conv_depthwise_bn "
        "expanded_conv_depthwise_pad expanded_conv_project expanded_conv_project_bn "
        "expanded_conv_squeeze_excite_avg_pool expanded_conv_squeeze_excite_conv "
        "expanded_conv_squeeze_excite_conv_# expanded_conv_squeeze_excite_mul expanded_conv_squeeze_excite_relu "
        "flatten global_average_pooling#d logits predictions re_lu re_lu_# rescaling"
    ),
    ("mobilenet_v3_large",): (
        "activation activation_# conv conv_# conv_#_bn conv_bn dropout expanded_conv_#_add "
        "expanded_conv_#_depthwise expanded_conv_#_depthwise_bn expanded_conv_#_depthwise_pad "
        "expanded_conv_#_expand expanded_conv_#_expand_bn expanded_conv_#_project expanded_conv_#_project_bn "
        "expanded_conv_#_squeeze_excite_avg_pool expanded_conv_#_squeeze_excite_conv "
        "expanded_conv_#_squeeze_excite_conv_# expanded_conv_#_squeeze_excite_mul "
        "expanded_conv_#_squeeze_excite_relu expanded_conv_add expanded_conv_depthwise expanded_conv_depthwise_bn "
        "expanded_conv_project expanded_conv_project_bn flatten global_average_pooling#d logits predictions re_lu "
        "re_lu_# rescaling"
    ),
    (
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_b4",
        "efficientnet_b5",
        "efficientnet_b6",
        "efficientnet_b7",
    ): (
        "avg_pool block#@_activation block#@_add block#@_bn block#@_drop block#@_dwconv block#@_dwconv_pad "
        "block#@_expand_activation block#@_expand_bn block#@_expand_conv block#@_project_bn block#@_project_conv "
        "block#@_se_excite block#@_se_expand block#@_se_reduce block#@_se_reshape block#@_se_squeeze "
        "normalization predictions rescaling rescaling_# stem_activation stem_bn stem_conv stem_conv_pad "
        "top_activation top_bn top_conv top_dropout"
    ),
    ("efficientnet_v2_b0", "efficientnet_v2_b1", "efficientnet_v2_b2", "efficientnet_v2_b3"): (
        "avg_pool block#@_activation block#@_add block#@_bn block#@_drop block#@_dwconv# "
        "block#@_expand_activation block#@_expand_bn block#@_expand_conv block#@_project_activation "
        "block#@_project_bn block#@_project_conv block#@_se_excite block#@_se_expand block#@_se_reduce "
        "block#@_se_reshape block#@_se_squeeze normalization predictions rescaling stem_activation stem_bn "
        "stem_conv top_activation top_bn top_conv top_dropout"
    ),
    ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"): (
        "avg_pool block#@_activation block#@_add block#@_bn block#@_drop block#@_dwconv# "
        "block#@_expand_activation block#@_expand_bn block#@_expand_conv block#@_project_activation "
        "block#@_project_bn block#@_project_conv block#@_se_excite block#@_se_expand block#@_se_reduce "
        "block#@_se_reshape block#@_se_squeeze predictions rescaling stem_activation stem_bn stem_conv "
        "top_activation top_bn top_conv top_dropout"
    ),
    ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "convnext_xlarge"): (
        "%_downsampling_block_# %_head_dense %_head_gap %_head_layernorm %_prestem_normalization "
        "%_stage_#_block_#_depthwise_conv %_stage_#_block_#_gelu %_stage_#_block_#_identity "
        "%_stage_#_block_#_layer_scale %_stage_#_block_#_layernorm %_stage_#_block_#_pointwise_conv_# %_stem"
    ),
    ("nasnet_mobile", "nasnet_large"): (
        "activation activation_# add add_# adjust_avg_pool_#_# adjust_avg_pool_#_stem_# adjust_bn_# "
        "adjust_bn_reduce_# adjust_bn_stem_# adjust_conv_#_# adjust_conv_#_stem_# adjust_conv_projection_# "
        "adjust_conv_projection_reduce_# adjust_relu_#_# adjust_relu_#_stem_# concatenate concatenate_# "
        "cropping#d cropping#d_# global_average_pooling#d normal_add_#_# normal_bn_#_# normal_concat_# "
        "normal_conv_#_# normal_left#_# normal_right#_# predictions reduction_add#_reduce_# reduction_add#_stem_# "
        "reduction_add_#_reduce_# reduction_add_#_stem_# reduction_bn_#_reduce_# reduction_bn_#_stem_# "
        "reduction_concat_reduce_# reduction_concat_stem_# reduction_conv_#_reduce_# reduction_conv_#_stem_# "
        "reduction_left#_reduce_# reduction_left#_stem_# reduction_pad_#_reduce_# reduction_pad_#_stem_# "
        "reduction_right#_reduce_# reduction_right#_stem_# separable_conv_#_bn_normal_left#_# "
        "separable_conv_#_bn_normal_right#_# separable_conv_#_bn_reduction_left#_reduce_# "
        "separable_conv_#_bn_reduction_left#_stem_# separable_conv_#_bn_reduction_right#_reduce_# "
        "separable_conv_#_bn_reduction_right#_stem_# separable_conv_#_normal_left#_# "
        "separable_conv_#_normal_right#_# separable_conv_#_pad_reduction_left#_reduce_# "
        "separable_conv_#_pad_reduction_left#_stem_# separable_conv_#_pad_reduction_right#_reduce_# "
        "separable_conv_#_pad_reduction_right#_stem_# separable_conv_#_reduction_left#_reduce_# "
        "separable_conv_#_reduction_left#_stem_# separable_conv_#_reduction_right#_reduce_# "
        "separable_conv_#_reduction_right#_stem_# stem_bn# stem_conv# zero_padding#d zero_padding#d_#"
    ),
    ("stub",): "mean",
}
"""`#` is a number, `@` the letter that EfficientNet counts repeated blocks with, `%` the family's own name."""


def check_layers(base: str, layers: Iterable[str]) -> None:
    """Raise UsageError for a layer that a base cannot have, with the nearest there are.

    Args:
        layers: each as LAYER:POOLING, or LAYER alone.
    """
    if base == ONNX_BASE:  # which only its file knows
        return
    family = _family(base)
    shapes = next((names.split() for families, names in SHAPES.items() if family in families), None)
    for layer in layers:
        name = layer.partition(":")[0]
        if shapes is None or shape(name, family) in shapes:
            continue
        near = ", ".join(_filled(one, name, family) for one in get_close_matches(shape(name, family), shapes, 3))
        raise UsageError(
            f"{base} has no layer of this name. Expected one {f'such as {near}, ' if near else ''}that "
            f"`bottleneck describe {base}` lists. Received: {name}."
        )


def shape(name: str, family: str) -> str:
    """What a layer's name has in common with those that differ in numbers: `block5_conv3` -> `block#_conv#`."""
    return re.sub(r"(?<=block#)[a-z](?=_)", "@", re.sub(r"\d+", "#", name.replace(family, "%")))


def _family(base: str) -> str:
    base = base_named(base)
    return base if find_network(base)[1] is None else base.rpartition("_")[0]


def _filled(one: str, name: str, family: str) -> str:
    """A shape with the numbers of a name that has as many, else with ones."""
    numbers = re.findall(r"\d+", name.replace(family, "%"))
    given = iter(numbers if len(numbers) == one.count("#") else ["1"] * one.count("#"))
    return re.sub("#", lambda _: next(given), one).replace("@", "a").replace("%", family)

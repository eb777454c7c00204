"""Vision transformers and convolutional networks."""

import keras_hub

from tests.hub.entry import Entry
from tests.hub.entry import images
from tests.hub.entry import numbers

TRANSFORMER = {
    "image_shape": (16, 16, 3),
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
}
MIT = {
    "layerwise_depths": [1, 1],
    "image_shape": (32, 32, 3),
    "hidden_dims": [4, 8],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
}
RESNET = {
    "input_conv_filters": [8],
    "input_conv_kernel_sizes": [3],
    # The first must be 64.
    "stackwise_num_filters": [64, 8],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "bottleneck_block",
}
HGNET_V2 = {
    "stem_channels": [3, 8, 8],
    "stackwise_stage_filters": [[8, 8, 16, 1, 1, 3], [16, 8, 32, 1, 1, 3]],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, True],
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "embedding_size": 8,
    "use_learnable_affine_block": True,
    "hidden_act": "relu",
    "image_shape": (None, None, 3),
    "out_features": ["stage1", "stage2"],
}


def dino(**kwargs):
    config = TRANSFORMER | {"patch_size": 8, "intermediate_dim": 16}
    return config | {"layer_scale_init_value": 1.0} | kwargs


CSP_NET = {
    "stem_filters": 8,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "stackwise_strides": 2,
    "stackwise_depth": [1, 1],
    "stackwise_num_filters": [8, 16],
    "down_growth": True,
    "bottle_ratio": (0.5, 1.0),
    "block_ratio": (1.0, 0.5),
    "expand_ratio": (2.0, 1.0),
    "block_type": "dark_block",
    "stage_type": "csp",
    "stem_padding": "same",
}
EFFICIENT_NET = {
    "stackwise_width_coefficients": [1.0, 1.0],
    "stackwise_depth_coefficients": [1.0, 1.0],
    "stackwise_kernel_sizes": [3, 3],
    "stackwise_num_repeats": [1, 1],
    "stackwise_input_filters": [8, 8],
    "stackwise_output_filters": [8, 16],
    "stackwise_expansion_ratios": [1, 4],
    "stackwise_squeeze_and_excite_ratios": [0.0, 0.25],
    "stackwise_strides": [1, 2],
    "stackwise_block_types": ["fused", "unfused"],
    "stackwise_force_input_filters": [0, 0],
    "stackwise_nores_option": [False, False],
    "num_features": 16,
}
MOBILE_NET = {
    "stackwise_expansion": [[16], [32]],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_filters": [[8], [16]],
    "stackwise_kernel_size": [[3], [5]],
    "stackwise_num_strides": [[2], [2]],
    "stackwise_se_ratio": [[None], [0.25]],
    "stackwise_activation": [["relu"], ["hard_swish"]],
    "stackwise_padding": [[1], [2]],
    "output_num_filters": 32,
    "input_num_filters": 8,
    "image_shape": (32, 32, 3),
    "depthwise_filters": 8,
    "depthwise_stride": 2,
    "depthwise_residual": False,
    "squeeze_and_excite": 0.5,
    "last_layer_filter": 16,
}


def mobile_net_v5(blocks=("er", "mqa")):
    """Edge residual blocks and attention, one block a stage."""
    block = {
        "num_filters": 16,
        "strides": 2,
        "act_layers": "relu",
        "exp_ratios": 2.0,
        "se_ratios": 0.0,
        "dw_kernel_sizes": 3,
        "dw_start_kernel_sizes": 0,
        "dw_end_kernel_sizes": 0,
        "exp_kernel_sizes": 3,
        "pw_kernel_sizes": 1,
        "num_heads": 2,
        "key_dims": 8,
        "value_dims": 8,
        "kv_strides": 1,
        "use_cpe": False,
    }
    every = {f"stackwise_{k}": [[v] for _ in blocks] for k, v in block.items()}
    return every | {
        "stackwise_block_types": [[name] for name in blocks],
        "stackwise_num_blocks": [1 for _ in blocks],
        "image_shape": (32, 32, 3),
        "stem_size": 8,
        "use_msfa": False,
    }


VIT_DET = {
    "image_shape": (16, 16, 3),
    "patch_size": 4,
    "hidden_size": 8,
    "num_layers": 2,
    # The other layer attends within windows.
    "global_attention_layer_indices": [1],
    "intermediate_dim": 16,
    "num_heads": 2,
    "num_output_channels": 4,
    "window_size": 2,
}
VIDEO_PRISM = {
    "vocabulary_size": 0,
    "num_text_layers": 0,
    "image_shape": (16, 16, 3),
    "num_frames": 2,
    "patch_size": 8,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "num_heads": 2,
    "num_spatial_layers": 1,
    "num_temporal_layers": 1,
    "num_auxiliary_layers": 1,
}


def of_images(size, config, **options):
    """An entry of a model of square images."""
    return Entry(config, inputs=lambda: images(size), **options)


ENTRIES = {
    "CSPNetBackbone": of_images(32, CSP_NET, targets="all"),
    "DINOV2Backbone": Entry(dino(), inputs=lambda: {"images": images(16)}),
    "DINOV3Backbone": Entry(
        dino(num_register_tokens=2), inputs=lambda: {"pixel_values": images(16)}
    ),
    "DeiTBackbone": of_images(
        16, TRANSFORMER | {"patch_size": 8, "intermediate_dim": 16}
    ),
    "DenseNetBackbone": of_images(
        32,
        {
            "stackwise_num_repeats": [1, 1],
            "compression_ratio": 0.5,
            "growth_rate": 4,
            "image_shape": (32, 32, 3),
        },
        targets="all",
    ),
    "EfficientNetBackbone": of_images(32, EFFICIENT_NET, targets="all"),
    "HGNetV2Backbone": of_images(32, HGNET_V2, targets="all"),
    "MiTBackbone": of_images(32, MIT, quick=True),
    "MobileNetBackbone": of_images(32, MOBILE_NET, targets="all"),
    "MobileNetV5Backbone": of_images(32, mobile_net_v5(), targets="all"),
    "ResNetBackbone": of_images(32, RESNET, targets="all", quick=True),
    "SwinTransformerBackbone": of_images(
        16,
        {
            "image_shape": (16, 16, 3),
            "embed_dim": 8,
            "depths": (2, 1),
            "num_heads": (2, 2),
            "window_size": 2,
        },
    ),
    "VGGBackbone": of_images(
        16,
        {
            "stackwise_num_repeats": [1, 1],
            "stackwise_num_filters": [8, 8],
            "image_shape": (16, 16, 3),
        },
        targets="all",
    ),
    "ViTBackbone": of_images(
        16, TRANSFORMER | {"patch_size": 8, "mlp_dim": 16}, quick=True
    ),
    "ViTDetBackbone": of_images(16, VIT_DET),
    "VideoPrismBackbone": Entry(
        VIDEO_PRISM, inputs=lambda: numbers(2, 16, 16, 3)
    ),
    "XceptionBackbone": of_images(
        32,
        {
            "stackwise_conv_filters": [[8, 8], [16, 16]],
            "stackwise_pooling": [False, False],
        },
        targets="all",
    ),
}


def mit():
    return keras_hub.models.MiTBackbone(**MIT)


def resnet(*filters):
    """A ResNet with a stage for each number of filters."""
    stages = {
        "stackwise_num_filters": [*filters],
        "stackwise_num_blocks": [1 for _ in filters],
        "stackwise_num_strides": [1, *(2 for _ in filters[1:])],
    }
    return keras_hub.models.ResNetBackbone(**RESNET | stages)

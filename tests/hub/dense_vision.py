"""Detection, segmentation and depth."""

import keras_hub
import numpy as np

from tests.hub import vision
from tests.hub.entry import Entry
from tests.hub.entry import images
from tests.hub.entry import mask
from tests.hub.entry import numbers
from tests.hub.entry import token_ids


def basnet():
    return {
        "image_encoder": vision.resnet(64, 8, 8, 8),
        "num_classes": 1,
        "projection_filters": 8,
    }


def d_fine():
    return {
        "backbone": keras_hub.models.HGNetV2Backbone(**vision.HGNET_V2),
        "decoder_in_channels": [16, 16],
        "encoder_hidden_dim": 16,
        "num_denoising": 0,
        "num_labels": 4,
        "hidden_dim": 16,
        "learn_initial_query": False,
        "num_queries": 4,
        "anchor_image_size": (32, 32),
        "feat_strides": [4, 8],
        "num_feature_levels": 2,
        "encoder_in_channels": [16, 32],
        "encode_proj_layers": [1],
        "num_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_encoder_layers": 1,
        "hidden_expansion": 0.5,
        "depth_multiplier": 0.5,
        "eval_idx": -1,
        "num_decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "decoder_n_points": [2, 2],
        "lqe_hidden_dim": 8,
        "num_lqe_layers": 2,
        "out_features": ["stage1", "stage2"],
        "seed": 0,
    }


def deeplab_v3():
    return {
        "image_encoder": vision.resnet(64, 8, 8),
        "low_level_feature_key": "P2",
        "spatial_pyramid_pooling_key": "P4",
        "dilation_rates": [2],
        "upsampling_size": 4,
        "projection_filters": 8,
        "image_shape": (32, 32, 3),
    }


def depth_anything():
    encoder = vision.dino(
        num_layers=2, image_shape=(32, 32, 3), apply_layernorm=True
    )
    return {
        "image_encoder": keras_hub.models.DINOV2Backbone(
            name="image_encoder", **encoder
        ),
        "reassemble_factors": [2, 1],
        "neck_hidden_dims": [8, 8],
        "fusion_hidden_dim": 8,
        "head_hidden_dim": 8,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2"],
    }


def retina_net():
    return {
        "image_encoder": vision.resnet(64, 8, 8, 8),
        "min_level": 3,
        "max_level": 5,
        "use_p5": True,
        "use_fpn_batch_norm": True,
    }


def sam():
    return {
        "image_encoder": keras_hub.models.ViTDetBackbone(**vision.VIT_DET),
        "prompt_encoder": keras_hub.layers.SAMPromptEncoder(
            hidden_size=4,
            image_embedding_size=(4, 4),
            input_image_size=(16, 16),
            mask_in_channels=8,
        ),
        "mask_decoder": keras_hub.layers.SAMMaskDecoder(
            num_layers=1,
            hidden_size=16,
            intermediate_dim=8,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=2,
            iou_head_hidden_dim=4,
        ),
    }


def sam_prompts():
    return {
        "images": images(16),
        "points": np.ones((2, 1, 2), "float32"),
        "labels": np.ones((2, 1), "float32"),
        "boxes": np.ones((2, 1, 2, 2), "float32"),
        "masks": np.zeros((2, 0, 16, 16, 1), "float32"),
    }


def sam3():
    part = {"hidden_dim": 16, "num_heads": 4}
    layers = part | {"num_layers": 1, "intermediate_dim": 16}
    image = {"image_shape": (28, 28, 3), "patch_size": 14}
    return {
        "vision_encoder": keras_hub.layers.SAM3VisionEncoder(
            fpn_hidden_dim=16,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(42, 42, 3),
            window_size=2,
            global_attn_indexes=[1],
            **(image | layers | {"num_layers": 2}),
        ),
        "text_encoder": keras_hub.layers.SAM3TextEncoder(
            vocabulary_size=32, embedding_dim=16, **layers
        ),
        "geometry_encoder": keras_hub.layers.SAM3GeometryEncoder(
            roi_size=7, **layers
        ),
        "detr_encoder": keras_hub.layers.SAM3DetrEncoder(**layers),
        "detr_decoder": keras_hub.layers.SAM3DetrDecoder(
            num_queries=4, **image, **layers
        ),
        "mask_decoder": keras_hub.layers.SAM3MaskDecoder(
            num_upsampling_stages=3, **part
        ),
    }


def sam3_prompts():
    return {
        "pixel_values": images(28),
        "token_ids": token_ids(32),
        "padding_mask": mask(32, "bool"),
        "boxes": numbers(1, 5),
        "box_labels": np.ones((2, 1), "int32"),
    }


ENTRIES = {
    "BASNetBackbone": vision.of_images(
        64,
        basnet,
        targets="all",
        # It has a stem of its own and leaves out that of its encoder.
        exclude=".*conv1_conv",
        # Random weights saturate its sigmoids.
        learns=False,
    ),
    "DFineBackbone": vision.of_images(
        32,
        d_fine,
        # One output, which two blocks do not divide.
        exclude=".*/reg_conf/mlp_dense_layer_1",
    ),
    "DeepLabV3Backbone": vision.of_images(32, deeplab_v3, targets="all"),
    "DepthAnythingBackbone": vision.of_images(32, depth_anything),
    "RetinaNetBackbone": vision.of_images(
        32, retina_net, targets="all", exact_on_jax=False
    ),
    "SAM3PromptableConceptBackbone": Entry(
        sam3,
        sam3_prompts,
        # One output is one block, and blocks of one input can't turn.
        exclude=".*/(presence_head/layer3|box_rpb_embed_[xy]/layer1)",
        torch_needs="torchvision",
    ),
    "SAMBackbone": Entry(sam, sam_prompts),
    "SegFormerBackbone": vision.of_images(
        32, lambda: {"image_encoder": vision.mit(), "projection_filters": 8}
    ),
}

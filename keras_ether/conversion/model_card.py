"""The model card of a folder, in the format of Hugging Face's hub."""

import json
import os

from keras_ether import version
from keras_ether.surgery import report

BASE = "BASE"


def loader_of(folder: str) -> str:
    """The class of `transformers` that loads an exported model.

    `AutoModelForCausalLM` would load a multimodal model without its other
    parts, under other names.
    """
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    if "text_config" in config:
        return "AutoModelForImageTextToText"
    return "AutoModelForCausalLM"


def of_peft_folder(config: dict, layers: dict, rank: int, loader: str) -> str:
    """The card of a LoRA folder.

    Args:
        config: The content of `adapter_config.json`.
        layers: The adapted layers, by path.
        rank: The largest rank before zeros were added.
        loader: See `loader_of`.
    """
    base = config["base_model_name_or_path"]
    adapters = [layer.ether for layer in layers.values()]
    methods = {
        f"{a.config.variant.name}, {a.config.rank_blocks} blocks"
        for a in adapters
    }
    parameters = report.count(v for a in adapters for v in a.vectors.values())
    padded = f", padded with zeros to {config['r']}" * (rank < config["r"])
    lines = [
        "---",
        *([f"base_model: {base}"] if base else []),
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        "- lora",
        "- ether",
        "- keras",
        "---",
        "",
        "# LoRA form of an ETHER adapter",
        "",
        f"This adapter was trained with `keras_ether` {version.__version__}, "
        "and `keras_ether.export_to_peft` wrote this folder.",
        "The update of each kernel has low rank by its formula, so the folder "
        "represents the adapter exactly.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base | {base or 'not given'} |",
        f"| methods | {'; '.join(sorted(methods))} |",
        f"| adapted kernels | {len(layers)} |",
        f"| trained parameters | {parameters:,} |",
        f"| rank | {rank}{padded} |",
        "",
        "With PEFT:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
        f'base = {loader}.from_pretrained("{base or BASE}")',
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        "```",
        "",
        "With vLLM:",
        "",
        "```shell",
        f"vllm serve {base or BASE} --enable-lora --max-lora-rank "
        f"{config['r']} --lora-modules adapter=THIS_FOLDER",
        "```",
        "",
        "The method is [ETHER](https://arxiv.org/abs/2405.20271) "
        "(Bini et al., ICML 2024).",
    ]
    return "\n".join(lines) + "\n"

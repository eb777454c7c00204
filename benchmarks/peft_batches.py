"""PEFT's batches of many LoRAs, on `transformers` and PyTorch."""

import peft
import torch
import transformers

LINEAR_MAPS = r".*encoder.*\.(query|key|value|dense)|.*pooler\.dense"


def steps(batch, length, rank):
    """A BERT of MiniLM's size: its base, and batches of 1, 8 and 32 LoRAs.

    Returns:
        Functions without arguments by name, the base first.
    """
    tokens = torch.randint(0, 30_522, (batch, length))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    base = model_of(length)
    many = peft.get_peft_model(model_of(length), lora(rank), "adapter 0")
    for i in range(1, batch):
        many.add_adapter(f"adapter {i}", lora(rank))
    many.eval()

    def run(model, **names):
        with torch.inference_mode():
            return model(**inputs, **names).logits.numpy()

    found = {"base, transformers": lambda: run(base)}
    for count in (1, 8, batch):
        names = [f"adapter {i % count}" for i in range(batch)]
        found[f"PEFT LoRA r={rank}, {count} in a batch"] = lambda names=names: (
            run(many, adapter_names=names)
        )
    return found


def model_of(length):
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            max_position_embeddings=length,
        )
    ).eval()


def lora(rank):
    return peft.LoraConfig(
        r=rank, target_modules=LINEAR_MAPS, init_lora_weights=False
    )

"""PEFT's adapters on models of `transformers`, and their steps on PyTorch."""

import functools

import peft
import torch
import transformers

ADAPTERS = {
    "PEFT LoRA r=8": peft.LoraConfig(r=8, lora_alpha=16),
    "PEFT OFT, blocks of 32": peft.OFTConfig(r=0, oft_block_size=32),
    "PEFT HRA r=8": peft.HRAConfig(r=8),
}


def adapted(model, name, targets, task=None):
    config = ADAPTERS[name]
    config.target_modules, config.task_type = targets, task
    return peft.get_peft_model(model, config)


def adam(model, rate=1e-4):
    """The optimizer of what trains in a model."""
    weights = [w for w in model.parameters() if w.requires_grad]
    return torch.optim.Adam(weights, rate)


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def mixed_batches(batch, length, rank):
    """A BERT of MiniLM's size: its base, and batches of 1, 8 and 32 LoRAs.

    Returns:
        Functions without arguments by name, the base first.
    """
    tokens = torch.randint(0, 30_522, (batch, length))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    lora = functools.partial(
        peft.LoraConfig,
        r=rank,
        target_modules=r".*encoder.*\.(query|key|value|dense)|.*pooler\.dense",
        init_lora_weights=False,
    )
    base = bert(length)
    many = peft.get_peft_model(bert(length), lora(), "adapter 0")
    for i in range(1, batch):
        many.add_adapter(f"adapter {i}", lora())
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


def bert(length):
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

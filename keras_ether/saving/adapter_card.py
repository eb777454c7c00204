"""The card of an adapter file on a hub, in the form that hubs read."""

from keras_ether.saving import adapter_header
from keras_ether.saving.adapter_file import AdapterFile

LINES = """\
---
library_name: keras
tags:
- ether
- keras-ether
---

# ETHER adapter

This adapter was trained with `keras_ether` {version}. It holds the trained
vectors{heads}. Load it into the base model of its training. A fingerprint
of the base's weights is checked:

```python
import keras_ether

model = ...  # the base
keras_ether.load_adapter(model, "{address}")
keras_ether.merge(model)  # an ordinary model, if wanted
```

| method | blocks | side | adapted kernels |
| --- | --- | --- | --- |
{rows}

The adapter has {parameters:,} trained parameters. The method is
[ETHER](https://arxiv.org/abs/2405.20271) (Bini et al., ICML 2024).
"""


def of_adapter_file(content: AdapterFile, address: str) -> str:
    """The card of an adapter file at an address on a hub."""
    header = content.header
    rows = [
        f"| {group.config.variant.name} | {group.config.rank_blocks} | "
        f"{group.config.side} | {len(group.layers)} |"
        for group in adapter_header.groups_of(header)
    ]
    vectors = [
        value
        for name, value in content.tensors.items()
        if name.startswith("adapter/")
    ]
    return LINES.format(
        version=header["versions"].get("keras_ether", ""),
        heads=" and the head" if header["weights"] else "",
        address=address,
        rows="\n".join(rows),
        parameters=sum(value.size for value in vectors),
    )

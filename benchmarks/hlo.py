"""Compiled programs of XLA as text: operations, their operands, their bytes."""

import collections
import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4}
BYTES |= {"s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]({{[^}}]*}})?")


def entry(text):
    """Operations of the entry computation, see `computations`."""
    return computations(text)[entry_name(text)]


def entry_name(text):
    return re.search(r"^ENTRY %([\w.-]+)", text, re.M)[1]


def computations(text):
    """`(name, type, opcode, operands, rest)` of each line, by computation."""
    found, lines = {}, []
    for line in text.splitlines():
        begins = re.match(r"(?:ENTRY )?%([\w.-]+) .*{$", line)
        if begins:
            found[begins[1]] = lines = []
        match = re.match(r"\s+(?:ROOT )?%(\S+) = (.*)$", line)
        if match:
            lines.append(_operation(*match.groups()))
    return found


def _operation(name, text):
    end = closing(text) if text[0] == "(" else text.index(" ")
    kind, text = text[:end], text[end:].strip()
    opcode, _, _ = text.partition("(")
    text = text[len(opcode) :]
    end = closing(text)
    operands = re.findall(r"%([\w.-]+)", text[:end])
    return name, kind, opcode, operands, text[end:]


def closing(text):
    """Where the bracket that `text` begins with has closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"A bracket is open: {text[:80]!r}")


def arrays(text):
    """Size in bytes of each array of a type, and whether it is in HBM."""
    found = []
    for dtype, sizes, layout in ARRAY.findall(text):
        size = BYTES[dtype]
        for length in filter(None, sizes.split(",")):
            size *= int(length)
        found.append((size, "S(" not in layout))
    return found


def shapes(text):
    """The arrays of a type, those in the chip's own memory in brackets."""
    counted = collections.Counter(
        f"({d}[{s}])" if "S(" in layout else f"{d}[{s}]"
        for d, s, layout in ARRAY.findall(text)
    )
    return [f"{n} x {s}" if n > 1 else s for s, n in counted.items()]

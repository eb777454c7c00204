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


def repeats(computations, name, times=1):
    """How often a computation runs in loops, for all that another one calls."""
    found = {name: times}
    for *_, opcode, _, rest in computations[name]:
        part = times * trips(computations, rest) if opcode == "while" else times
        for called in re.findall(r"(?:calls|to_apply|body)=%([\w.-]+)", rest):
            if called in computations:
                below = repeats(computations, called, part)
                found = below | found
    return found


def trips(computations, rest):
    """How often a loop runs, from what is known or from its counter; else 1.

    The counter is what its condition compares with a constant, and its body
    adds a constant to.
    """
    known = re.search(r'"known_trip_count":{"n":"(\d+)"', rest)
    if known:
        return int(known[1])
    names = re.search(r"condition=%([\w.-]+), body=%([\w.-]+)", rest)
    if not names or not all(name in computations for name in names.groups()):
        return 1
    condition, body = (computations[name] for name in names.groups())
    end = _constants(condition)
    places = {o: _place(r) for o, _, op, _, r in condition if op == WHOLE}
    _, _, opcode, compared, _ = condition[-1]
    if opcode != "compare" or not {*compared} <= {*end, *places}:
        return 1
    counter = next(places[o] for o in compared if o in places)
    sources = {o: operands for o, _, _, operands, _ in body}
    steps = _constants(body)
    added = sources.get(body[-1][3][counter], ())
    step = next((steps[o] for o in added if o in steps), 1)
    return -(-next(end[o] for o in compared if o in end) // step)


WHOLE = "get-tuple-element"


def _place(rest):
    return int(re.search(r"index=(\d+)", rest)[1])


def _constants(lines):
    """The whole numbers among the constants of a computation."""
    found = {}
    for name, _, opcode, _, rest in lines:
        value = re.match(r"\((\d+)\)", rest)
        if opcode == "constant" and value:
            found[name] = int(value[1])
    return found


def _operation(name, text):
    end = closing(text) if text[0] == "(" else text.index(" ")
    kind, text = text[:end], text[end:].strip()
    opcode, _, _ = text.partition("(")
    text = text[len(opcode) :]
    end = closing(text)
    operands = re.findall(r"%([\w.-]+)", text[:end])
    # A constant has its value there.
    rest = text if opcode == "constant" else text[end:]
    return name, kind, opcode, operands, rest


def closing(text):
    """Where the bracket that `text` begins with has closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"A bracket is open: {text[:80]!r}")


def layer(rest):
    """The layer that an operation was traced in, as JAX names it."""
    name = re.search(r'op_name="([^"]*)"', rest)
    return name[1].replace("\\'", "'") if name else ""


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

"""Run by ComfyUI's own Python in ComfyUI's folder: which of the names and calls that are given as JSON it does not have.

Each is `[dotted name, positional arguments, keywords]`; the number is None for a name that is only read.
"""

import importlib
import inspect
import json
import sys

sys.path.insert(0, ".")
sys.argv, asked = sys.argv[:1], json.loads(sys.argv[1])

from comfy.cli_args import args  # noqa: E402

args.cpu = True


def found(name):
    """What a dotted name stands for: attributes of the longest part that is a module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AttributeError(name)


missing = []
for name, count, keywords in asked:
    try:
        value = found(name)
        if count is not None and not inspect.isbuiltin(value):  # methods of ComfyUI's dictionaries and lists
            inspect.signature(value).bind(*[None] * count, **dict.fromkeys(keywords))
    except (AttributeError, TypeError) as error:
        missing.append(f"{name}: {error}")
sys.stdout.write("\n" + json.dumps({"missing": missing}) + "\n")

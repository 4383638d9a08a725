"""Makes spec/api.md, the page of the Python API, from the docstrings of the installed package.

    python python/api_page.py > spec/api.md

A test compares the page with the docstrings, so it says what they say, and has everything that is public.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

# The order in which methods are told of; those that are not here come behind.
ORDER: dict[str, dict[str, list[str]]] = {}
ORDER["NumPack"] = {
    "Opening and closing": ["open", "close", "is_opened", "is_closed", "flush", "path", "backend_type"],
    "Whole arrays": ["save", "load", "__getitem__", "drop", "clone", "create", "recompress", "update", "reset"],
    "Rows": ["append", "replace", "getitem", "stream_load", "write_rows"],
    "What is there": ["get_member_list", "has_array", "get_shape", "get_metadata", "get_modify_time", "get_io_stats"],
    "Blocks": ["batch_mode", "writable_batch_mode"],
    "Attributes and groups": ["attrs", "attrs_of", "group", "groups"],
}
ORDER["LazyArray"] = {
    "As of an ndarray": ["shape", "dtype", "ndim", "size", "itemsize", "nbytes", "T", "reshape", "copy", "to_numpy"],
    "Of the array in the store": ["attrs"],
}
CLASSES = ["NumPack", "LazyArray", "Group", "Attributes", "BatchModeContext", "WritableBatchMode"]

HEAD = """# The Python API

Made from the docstrings by `python python/api_page.py > spec/api.md`; `help(numpack.NumPack)` says the same. In the
signatures, parameters behind `*` are passed by name, and an array_like is an ndarray, a `LazyArray`, or nested lists of
numbers. Shapes are tuples of int, sizes are bytes, times are microseconds since 1970.
"""


def page(package: ModuleType, writable_array: ModuleType) -> str:
    """The whole page."""
    parts = [HEAD, markdown(inspect.getdoc(package) or "")]
    parts.append(
        "All names below are in `numpack`, except `WritableArray`, which is in `numpack.writable_array`, with\n"
        "`WritableBatchMode`.\n"
    )
    classes = {name: getattr(package, name) for name in CLASSES}
    names = [name for name in package.__all__ if not name.startswith("__") and name not in classes]
    errors = [name for name in names if isinstance(getattr(package, name), type)]
    functions = [name for name in names if name not in errors]
    contents = [f"- [{name}](#{name.lower()})" for name in (*CLASSES, "Functions", "WritableArray", "Exceptions")]
    parts.append("\n".join(contents) + "\n")
    for name, cls in classes.items():
        parts.extend(class_page(name, cls, ORDER.get(name, {})))
    parts.append("## Functions\n")
    parts.extend(entry(f"numpack.{name}", getattr(package, name)) for name in functions)
    parts.extend(class_page("WritableArray", writable_array.WritableArray, {}))
    parts.append(f"## Exceptions\n\n{markdown(inspect.getdoc(sys.modules[package.NpkError.__module__]) or '')}")
    rows = [error_row(getattr(package, name)) for name in sorted(errors)]
    parts.append("\n".join(["| Exception | Is also a | When |", "| --- | --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def class_page(name: str, cls: type, order: dict[str, list[str]]) -> Iterator[str]:
    """A class, and its methods and properties."""
    yield f"## {name}\n"
    if inspect.signature(cls).parameters:
        yield f"```python\n{name}{signature(cls)}\n```\n"
    yield markdown(inspect.getdoc(cls) or "")
    left = {attribute: value for attribute, value in members(cls)}
    for title, attributes in order.items():
        yield f"### {title}\n"
        yield from (entry(f"{name}.{each}", left.pop(each)) for each in attributes if each in left)
    if order and left:
        # Without an order of ours: that of an extension module is another in each build.
        yield "### Others\n"
        left = dict(sorted(left.items()))
    yield from (entry(f"{name}.{each}", value) for each, value in left.items())


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public attributes of a class, those of its bases too, in the order of their definition."""
    seen = set()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in ("numpack", "builtins") or base is object:
            continue
        for attribute, value in vars(base).items():
            is_told = attribute == "__getitem__" and value.__doc__ not in (None, "Return self[key].")
            if (is_told or not attribute.startswith("_")) and attribute not in seen:
                seen.add(attribute)
                yield attribute, value


def entry(name: str, value: Any) -> str:
    """A function, method or property with its documentation."""
    is_called = callable(value)
    shown = f"{name}{signature(value) if is_called else ''}"
    *owner, attribute = name.split(".")
    if attribute == "__getitem__":
        # The one method with underscores that has something of its own to say.
        shown = f"{owner[0]}[{signature(value).strip('(/ ,)')}]"
    return f"#### `{shown}`\n\n{markdown(inspect.getdoc(value) or '')}"


def signature(value: Any) -> str:
    """The parameters of something that is called, without types, which the documentation tells."""
    found = inspect.signature(value)
    empty = inspect.Parameter.empty
    parameters = [
        parameter.replace(annotation=empty)
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    return str(found.replace(parameters=parameters, return_annotation=empty))


def error_row(cls: type) -> str:
    bases = [f"`{base.__name__}`" for base in cls.__bases__ if base.__name__ != "NpkError"]
    return f"| `{cls.__name__}` | {', '.join(bases)} | {plain(' '.join((cls.__doc__ or '').split()))} |"


def markdown(doc: str) -> str:
    """A docstring in numpydoc's form as Markdown."""
    lines, out = doc.splitlines(), []
    in_list = in_code = False
    at = 0
    while at < len(lines):
        line = lines[at]
        ruled = at + 1 < len(lines) and re.fullmatch("-{3,}", lines[at + 1]) is not None
        if in_code and not line.strip():
            out.append("```")
            in_code = False
        if ruled:
            in_list = line in ("Parameters", "Returns", "Raises", "Attributes", "Yields")
            out.extend([f"**{line}**", ""])
            at += 2
            continue
        if line.startswith(">>> ") and not in_code:
            out.append("```python")
            in_code = True
        if in_code:
            out.append(line)
        elif in_list and line and not line.startswith(" "):
            term, colon, kind = line.partition(" : ")
            out.append(f"- `{term}` ({plain(kind)})" if colon else f"- {plain(line)}")
        elif line.startswith("    ") and in_list:
            # The description follows in the same paragraph.
            if out[-1].startswith("- ") and not line.startswith("    - "):
                out[-1] += ":"
            out.append("  " + plain(line[4:]))
        else:
            out.append(plain(line))
        at += 1
    if in_code:
        out.append("```")
    return "\n".join(out).rstrip() + "\n"


def plain(text: str) -> str:
    """Text with what numpydoc marks as code as Markdown does it."""
    return re.sub("``(.+?)``", r"`\1`", text).removesuffix("::")


if __name__ == "__main__":
    import numpack
    import numpack.writable_array

    print(page(numpack, numpack.writable_array), end="")

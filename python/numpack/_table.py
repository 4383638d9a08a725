"""What a store shows of itself in a notebook."""

import html
from typing import Any

# A page that lists 100,000 arrays shows nobody anything.
_MAX_SHOWN = 100


def listing(metadata: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for each array: name, shape, dtype, bytes, bytes in the file, codec."""
    lines: list[tuple[str, ...]] = []
    for name, array in metadata["arrays"].items():
        codec = array.get("codec")
        shown = "" if codec is None else ", ".join(f"{key} {value}" for key, value in codec.items())
        shape = " x ".join(map(str, array["shape"])) or "scalar"
        sizes = (size_text(array["size_bytes"]), size_text(array.get("stored_bytes", array["size_bytes"])))
        lines.append((name, shape, array["dtype"], *sizes, shown))
    return lines


def html_table(title: str, lines: list[tuple[str, ...]]) -> str:
    """A table with a title. Everything in it is text: no name can become a tag."""
    head = "".join(f"<th>{column}</th>" for column in ("name", "shape", "dtype", "size", "stored", "codec"))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[:_MAX_SHOWN]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if lines else ""
    left_out = len(lines) - _MAX_SHOWN
    more = f"<p>and {left_out} more</p>" if left_out > 0 else ""
    return f"<div><code>{html.escape(title)}</code>{table}{more}</div>"


def size_text(n_bytes: int) -> str:
    """A number of bytes in the largest binary unit that it has one of."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    size = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        size /= 1024
        if size < 1024 or unit == "EiB":
            break
    return f"{size:.3g} {unit}"

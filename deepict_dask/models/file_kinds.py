"""What kind of file is this? Answered from its first bytes, for messages that help."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Final

from .torch_file import LEGACY_START

__all__ = ["HDF5", "PICKLE", "SAFETENSORS", "file_kind"]

PICKLE: Final = "a PyTorch checkpoint"
SAFETENSORS: Final = "a safetensors file"
HDF5: Final = "an HDF5 file (a Keras model, or a volume)"

TEXT_KINDS = {
    "<!doctype html": "a web page: the download gave a page instead of the file",
    "<html": "a web page: the download gave a page instead of the file",
    "version https://git-lfs": "a Git LFS pointer: run `git lfs pull` to fetch the file itself",
}


def file_kind(data: bytes) -> str:
    """Return `PICKLE`, `SAFETENSORS`, `HDF5`, or a phrase that names another kind of file.

    Examples
    --------
    >>> file_kind(b"depth: 2")
    'a text file'
    >>> file_kind(b"")
    'an empty file'
    """
    if not data:
        return "an empty file"
    if data.startswith(b"PK"):
        return _zip_kind(data)
    if data.startswith(b"\x89HDF"):
        return HDF5
    if data.startswith(b"\x1f\x8b"):
        return "a gzip file: unpack it first"
    if data[208:212] == b"MAP ":
        return "an MRC volume"
    if _is_safetensors(data):
        return SAFETENSORS
    if data.startswith(LEGACY_START) or data[:2] in {b"\x80\x02", b"\x80\x03", b"\x80\x04"}:
        return PICKLE
    return _text_kind(data)


def _zip_kind(data: bytes) -> str:
    """Tell PyTorch's archives from others; a truncated archive cannot be told apart."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return "a truncated or damaged zip archive: copy or download the file again"
    leaves = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in leaves:
        return "a TorchScript archive, which holds code; save the network's state_dict instead"
    if "data.pkl" in leaves:
        return PICKLE
    if {"config.json", "model.weights.h5"} <= leaves:
        return "a Keras archive: load it in Keras and save it with model.save('model.h5')"
    return "a zip archive" + (f" (with {names[0]})" if names else "")


def _is_safetensors(data: bytes) -> bool:
    """Say whether the bytes open with a length and a JSON header."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > 100_000_000:
        return False
    try:
        json.loads(data[8 : 8 + length])
    except ValueError:
        return len(data) < 8 + length
    return True


def _text_kind(data: bytes) -> str:
    """Tell text from unknown bytes."""
    try:
        start = data[:2000].decode("utf-8").lstrip().lower()
    except UnicodeDecodeError:
        return "not a kind of file known here"
    for opening, kind in TEXT_KINDS.items():
        if start.startswith(opening):
            return kind
    return (
        "a text file" if start.isprintable() or "\n" in start else "not a kind of file known here"
    )

"""What a file on a server is called, how large it is, and what its bytes must add up to.

Names come from strangers: a listing or manifest may hold ``../`` or absolute paths. `safe_path`
lets through only names that stay inside the folder the user chose; everything else is refused.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import DeepictError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checksum", "FetchError", "RemoteFile", "safe_path"]

_ALGORITHM_OF_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
_LONGEST_NAME_BYTES = 255
_READ_BYTES = 1 << 20


class FetchError(DeepictError, OSError):
    """A file or listing cannot be had from a server, or not written here.

    Examples
    --------
    >>> str(FetchError("a.rec: the server says 404"))
    'a.rec: the server says 404'
    """


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest of a file's bytes.

    Parameters
    ----------
    algorithm
        md5, sha1, sha256 or sha512.
    digest
        Hexadecimal, lower case.

    Examples
    --------
    >>> Checksum.parse("MD5:900150983CD24FB0D6963F7D28E17F72")
    Checksum(algorithm='md5', digest='900150983cd24fb0d6963f7d28e17f72')
    """

    algorithm: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Return the checksum of "sha256:…", "md5:…" or bare digits, whose number tells which.

        Raises
        ------
        FetchError
            If the text is no such thing.
        """
        named, _, digits = text.strip().lower().rpartition(":")
        algorithm = _ALGORITHM_OF_LENGTH.get(len(digits))
        if (
            algorithm is None
            or not re.fullmatch("[0-9a-f]+", digits)
            or named.replace("-", "") not in ("", algorithm)
        ):
            raise FetchError(
                f"checksum: expected md5, sha1, sha256 or sha512 in hexadecimal, found {text!r}"
            )
        return cls(algorithm, digits)

    def of_file(self, path: Path) -> str:
        """Return this algorithm's digest of a file, read in pieces."""
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def matches(self, path: Path) -> bool:
        """Say whether a file has this digest."""
        return self.of_file(path) == self.digest


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file that a server offers.

    Parameters
    ----------
    path
        Where it goes, relative to the destination, with "/" between folders.
    url
        Where it comes from.
    size_bytes
        Exact size where a manifest or listing gives one.
    least_bytes, most_bytes
        What a rounded size in a listing (1.2G) allows; None if the listing shows none.
    checksum
        Digest, where one is given.

    Examples
    --------
    >>> RemoteFile("DEF/a.rec", "https://x.org/DEF/a.rec", size_bytes=7).allows(8)
    False
    """

    path: str
    url: str
    size_bytes: int | None = None
    least_bytes: int | None = None
    most_bytes: int | None = None
    checksum: Checksum | None = None

    def allows(self, size_bytes: int) -> bool:
        """Say whether a size fits what was announced."""
        exact = self.size_bytes is None or size_bytes == self.size_bytes
        least = self.least_bytes is None or size_bytes >= self.least_bytes
        most = self.most_bytes is None or size_bytes <= self.most_bytes
        return exact and least and most

    def announced(self) -> str:
        """Return the announced size in words."""
        if self.size_bytes is not None:
            return f"{self.size_bytes} bytes"
        return f"{self.least_bytes} to {self.most_bytes} bytes"


def safe_path(name: str, source: str) -> str:
    """Return a relative path from a listing or manifest, or refuse it.

    Parameters
    ----------
    name
        The path as it stands there, already decoded; a leading "./" is dropped.
    source
        Where it stands, for the message.

    Raises
    ------
    FetchError
        If the name is absolute, climbs out of its folder, or holds what no file name should.

    Examples
    --------
    >>> safe_path("./DEF/tomograms/TS_026.rec", "manifest.csv")
    'DEF/tomograms/TS_026.rec'
    >>> safe_path("../../.ssh/config", "manifest.csv")
    Traceback (most recent call last):
    ...
    deepict_dask.fetch.remote.FetchError: manifest.csv: expected a path inside the folder, found \
'../../.ssh/config'; nothing was fetched
    """
    path = name.removeprefix("./")
    parts = path.split("/")
    if any(not _is_safe(part) for part in parts) or re.match("[A-Za-z]:", path):
        raise FetchError(
            f"{source}: expected a path inside the folder, found {name!r}; nothing was fetched"
        )
    return path


def _is_safe(part: str) -> bool:
    """Say whether one folder or file name is harmless."""
    return (
        part not in ("", ".", "..")
        and "\\" not in part
        and part.isprintable()
        and len(part.encode()) <= _LONGEST_NAME_BYTES
    )

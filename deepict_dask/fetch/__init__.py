"""Files of public deposits over HTTP(S): found, resumed, verified."""

from .empiar import EMPIAR_URL, NothingMatchesError, Selection, find_files
from .remote import Checksum, FetchError, RemoteFile
from .session import FetchReport, FetchSettings, Offer, Survey, fetch, survey
from .web import Patience, Web

__all__ = [
    "EMPIAR_URL",
    "Checksum",
    "FetchError",
    "FetchReport",
    "FetchSettings",
    "NothingMatchesError",
    "Offer",
    "Patience",
    "RemoteFile",
    "Selection",
    "Survey",
    "Web",
    "fetch",
    "find_files",
    "survey",
]

"""Serve a run's report on this machine's loopback address, and its volumes to neuroglancer.

Only programs of this machine can connect (and whoever tunnels in by ssh). Files outside of the
run's folder are not served. A page of another server may not read the answers, but for
neuroglancer's own, which gets its state at ``/neuroglancer/NAME.json``.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..io.ome_labels import label_colours
from ..io.ome_metadata import attributes_of
from ..io.ome_zarr import open_ome_zarr

__all__ = ["ReportServer", "neuroglancer_state", "open_server", "server_lines"]

Json = dict[str, Any]
NEUROGLANCER = "https://neuroglancer-demo.appspot.com"
_STATES = "/neuroglancer/"


@dataclass(frozen=True)
class ReportServer:
    """A server that waits to be run."""

    server: ThreadingHTTPServer
    folder: Path
    stores: dict[str, Path]
    """Exported scenes in the folder, by name."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server.server_port

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://127.0.0.1:{self.port}"

    def run(self) -> None:
        """Answer until Ctrl-C."""
        try:
            self.server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self.server.server_close()


def open_server(folder: Path, *, port: int = 0) -> ReportServer:
    """Return a server of a folder on the loopback address; port 0 takes a free one.

    Raises
    ------
    OSError
        The port is taken.
    """
    folder = folder.absolute()
    stores = {
        path.name.removesuffix(".zarr"): path
        for path in sorted(folder.glob("viewer/*.zarr"))
        if (path / "zarr.json").is_file()
    }
    handler = partial(_Handler, directory=str(folder), stores=stores)
    return ReportServer(ThreadingHTTPServer(("127.0.0.1", port), handler), folder, stores)


def server_lines(served: ReportServer) -> list[str]:
    """Return what to tell the user: addresses, and how to reach them from another machine."""
    port = served.port
    lines = [
        f"report at {served.address}/report.html",
        f"from another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}",
        *(
            f"{name} in neuroglancer: {NEUROGLANCER}/#!{served.address}{_STATES}{quote(name)}.json"
            for name in served.stores
        ),
    ]
    return [*lines, "Ctrl-C ends it"]


def neuroglancer_state(store: Path, address: str) -> Json:
    """Return the state of neuroglancer that shows a store with its labels.

    Parameters
    ----------
    store
        What `export_scene` has made.
    address
        Where its folder is served.
    """
    header = open_ome_zarr(store)[1].header
    step = header.voxel_spacing_angstrom
    unit = [1.0, ""] if step is None else [step * 1e-10, "m"]
    base = f"zarr://{address}/{quote(store.name)}"
    ome = attributes_of(store)["ome"]
    window = ome["omero"]["channels"][0]["window"]
    image = {
        "type": "image", "name": store.name.removesuffix(".zarr"), "source": f"{base}/",
        "shaderControls": {"normalized": {"range": [window["start"], window["end"]]}},
    }  # fmt: skip
    names = attributes_of(store / "labels").get("ome", {}).get("labels", [])
    labels = [
        _label_layer(store / "labels" / name, f"{base}/labels/{quote(name)}/") for name in names
    ]
    middle = [
        (n - 1) / 2 + start / (step or 1.0)
        for n, start in zip(header.shape, header.origin_angstrom, strict=True)
    ]
    return {
        "dimensions": dict.fromkeys("xyz", unit),
        "position": middle[::-1],
        "layers": [image, *labels],
        "layout": "4panel",
    }


def _label_layer(store: Path, source: str) -> Json:
    colours = label_colours(store)
    layer: Json = {"type": "segmentation", "name": store.name, "source": source}
    if colours:
        layer["segments"] = [str(value) for value in colours]
        layer["segmentColors"] = {
            str(value): "#" + "".join(f"{part:02x}" for part in rgb)
            for value, (_, rgb) in colours.items()
        }
    return layer


class _Handler(SimpleHTTPRequestHandler):
    """Serves files, and states for neuroglancer; says nothing of each request."""

    def __init__(self, *args: Any, stores: dict[str, Path], **kwargs: Any) -> None:
        self._stores = stores
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """Answer with a state, or a file."""
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN, "Ask for 127.0.0.1")  # a name that leads here
            return
        path = unquote(self.path.partition("?")[0])
        store = self._stores.get(path.removeprefix(_STATES).removesuffix(".json"))
        if not path.startswith(_STATES) or store is None:
            super().do_GET()
            return
        port = self.connection.getsockname()[1]
        state = neuroglancer_state(store, f"http://127.0.0.1:{port}/{store.parent.name}")
        content = json.dumps(state).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_head(self) -> Any:
        """Answer with a file, unless it is a link that leads out of the folder."""
        asked = Path(self.translate_path(self.path)).resolve()
        if not asked.is_relative_to(Path(self.directory).resolve()):
            self.send_error(HTTPStatus.NOT_FOUND, "No such file")
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:  # noqa: ARG002 - the base class' signature
        """Show no folders: what is there is in the report."""
        self.send_error(HTTPStatus.NOT_FOUND, "No such file")

    def end_headers(self) -> None:
        """Let neuroglancer read the answers, and no other page."""
        self.send_header("Access-Control-Allow-Origin", NEUROGLANCER)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

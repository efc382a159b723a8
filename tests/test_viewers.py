"""What `view` hands to viewers: napari, the report in a browser, Neuroglancer."""

from __future__ import annotations

import json
import sys
import threading
import types
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from report_scenes import CENTRES, SHAPE, SPACING, balls, volume, write_dataset, write_volume
from viewing_scenes import coarse, made, results, run_view

from deepict_dask.core.errors import ConfigError
from deepict_dask.viewing import napari_window
from deepict_dask.viewing.serving import NEUROGLANCER, open_server, server_lines

__all__ = ["coarse", "made", "results"]


class Viewer:
    """Stands in for napari's viewer: keeps what it is given."""

    def __init__(self, title=""):
        self.title, self.layers = title, []

    def add_image(self, data, *, name, **options):
        self.layers.append(("image", name, data, options))

    def add_labels(self, data, *, name, **options):
        self.layers.append(("labels", name, data, options))

    def add_points(self, data, *, name, **options):
        self.layers.append(("points", name, data, options))
        return types.SimpleNamespace()


@pytest.fixture
def napari(monkeypatch):
    """A module in napari's place."""
    module = types.ModuleType("napari")
    module.viewers, module.n_runs = [], 0
    module.utils = types.SimpleNamespace(DirectLabelColormap=lambda color_dict: color_dict)

    def new_viewer(title):
        module.viewers.append(Viewer(title))
        return module.viewers[-1]

    def run():
        module.n_runs += 1

    module.Viewer, module.run = new_viewer, run
    monkeypatch.setitem(sys.modules, "napari", module)
    monkeypatch.setattr(napari_window, "has_napari", lambda: True)
    return module


def test_napari_is_given_levels_labels_and_picks(results, napari):
    result = run_view(results, "--workers", 1, "--chunks", 16, "--no-progress")
    assert result.exit_code == 0, result.output
    (viewer,) = napari.viewers
    assert (viewer.title, napari.n_runs) == ("TS_1", 1)
    image, region, picks, points = viewer.layers
    assert [layer[:2] for layer in viewer.layers] == [
        ("image", "TS_1"), ("labels", "region_cytosol"), ("labels", "picks_ribosome"),
        ("points", "picks_ribosome: picks"),
    ]  # fmt: skip
    assert [level.shape for level in image[2]] == [SHAPE, (12, 20, 24), (6, 10, 12)]
    np.testing.assert_array_equal(image[2][0].compute(), volume())
    np.testing.assert_array_equal(picks[2][0].compute(), balls())
    assert picks[3]["colormap"][1] == pytest.approx((230 / 255, 159 / 255, 0.0, 1.0))
    np.testing.assert_allclose(points[2], np.array(CENTRES) * SPACING)  # a saved file is so too
    assert "scale" not in points[3]
    assert {layer[3]["scale"] for layer in viewer.layers[:3]} == {(SPACING,) * 3}
    assert region[3]["colormap"][1] != picks[3]["colormap"][1]


def test_one_of_several_tomograms_is_to_be_named(tmp_path, napari):
    first, second = write_dataset(tmp_path, ["TS_1", "TS_2"]), tmp_path / "results/TS_2"
    write_volume(second / "equalized.zarr", volume())
    result = run_view(first)
    assert isinstance(result.exception, ConfigError)
    assert "--only" in str(result.exception)
    result = run_view(first, "--only", "TS_2", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert napari.viewers[0].title == "TS_2"


@pytest.fixture
def served(made, results):
    assert made.store.is_relative_to(results)
    (results / "report.html").write_text("<p>the report")
    server = open_server(results, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()


def test_the_server_answers_with_the_report_and_the_volumes(served, made):
    with urlopen(f"{served.address}/report.html") as answer:
        assert answer.read() == b"<p>the report"
        assert answer.headers["Access-Control-Allow-Origin"] == NEUROGLANCER
    with urlopen(f"{served.address}/viewer/TS_1.zarr/zarr.json") as answer:
        assert json.load(answer) == json.loads((made.store / "zarr.json").read_text())
    assert served.server.server_address[0] == "127.0.0.1"


def test_a_link_out_of_the_folder_is_not_followed(served, results, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (results / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{served.address}/link")
    refused.value.close()
    assert refused.value.code == 404


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/report.html", "127.0.0.1", 200), ("/report.html", "localhost:8000", 200),
        ("/report.html", "evil.example", 403), ("/", "127.0.0.1", 404),
        ("/../tomogram.zarr/zarr.json", "127.0.0.1", 404),
        ("/neuroglancer/none.json", "127.0.0.1", 404),
    ],
)  # fmt: skip
def test_the_server_answers_for_the_run_only(served, path, host, status):
    connection = HTTPConnection(*served.server.server_address)
    connection.request("GET", path, headers={"Host": host})
    assert connection.getresponse().status == status
    connection.close()


def test_neuroglancer_is_told_where_volumes_and_colours_are(served):
    with urlopen(f"{served.address}/neuroglancer/TS_1.json") as answer:
        state = json.load(answer)
    assert state["dimensions"]["z"] == [SPACING * 1e-10, "m"]
    assert state["position"] == [(n - 1) / 2 for n in SHAPE[::-1]]
    image, _, picks = state["layers"]
    assert image["source"] == f"zarr://{served.address}/viewer/TS_1.zarr/"
    assert picks["segmentColors"] == {"1": "#e69f00"}
    for layer in state["layers"]:
        with urlopen(layer["source"].removeprefix("zarr://") + "zarr.json") as answer:
            assert json.load(answer)["node_type"] == "group"
    (line,) = [line for line in server_lines(served) if NEUROGLANCER in line]
    assert line.endswith(f"#!{served.address}/neuroglancer/TS_1.json")


def test_without_napari_the_report_is_served_until_ctrl_c(results, monkeypatch):
    monkeypatch.setattr(napari_window, "has_napari", lambda: False)
    from http.server import ThreadingHTTPServer

    closed = []

    def interrupted(self, *_args):
        closed.append(self.server_address[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    result = run_view(results)
    assert result.exit_code == 0, result.output
    assert f"report at http://127.0.0.1:{closed[0]}/report.html" in result.output
    assert f"ssh -L {closed[0]}:127.0.0.1:{closed[0]}" in result.output
    assert (results / "report.html").is_file()
    assert not (results / "viewer").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--export", "elsewhere"], "--export-only"),
        (["--overwrite"], "--export-only"),
        (["--only", "TYPO"], "TYPO"),
    ],
)
def test_what_the_report_cannot_do_is_refused_without_napari(results, monkeypatch, options, says):
    monkeypatch.setattr(napari_window, "has_napari", lambda: False)
    result = run_view(results, *options)
    assert isinstance(result.exception, ConfigError)
    assert says in str(result.exception)


def test_a_port_that_is_taken_is_said(results, served, monkeypatch):
    monkeypatch.setattr(napari_window, "has_napari", lambda: False)
    result = run_view(results, "--port", served.server.server_address[1])
    assert isinstance(result.exception, ConfigError)
    assert "--port" in str(result.exception)

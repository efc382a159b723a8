"""A report read as a browser would: its elements, texts and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from report_scenes import write_run


class Page(HTMLParser):
    """Elements of a page, the text outside of scripts, and the data of the viewer."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.words, self.data = [], [], [], None
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside == "script" and self.elements[-1][1].get("class") == "viewer-data":
            self.data = json.loads(data)
        elif inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def pixels(uri):
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.+)", uri).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))

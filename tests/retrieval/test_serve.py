"""The page and the JSON behind it: in a real browser where there is one, and as a stranger would ask."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
from browser import Browser
from PIL import Image
from training import ENVIRONMENT, fashionbert

from fashionbert_fast.retrieval import serve as serve_module
from fashionbert_fast.retrieval.search import Searcher

testclient = pytest.importorskip("starlette.testclient")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOST = {"host": "127.0.0.1:8000"}


@pytest.fixture(scope="module")
def searcher(index):
    return Searcher.open(index, device="cpu")


@pytest.fixture(scope="module")
def client(searcher):
    return testclient.TestClient(serve_module.make_app(searcher), headers=HOST)


def test_words_a_photo_or_both(client, searcher, shop):
    found = client.get("/search", params={"text": "red boots", "top": 3}).json()["hits"]
    assert [hit["row"] for hit in found] == [hit.row for hit in searcher.search("red boots", top=3)]
    assert found[0]["image"] == f"/photo/{found[0]['row']}" and "photos/" not in json.dumps(found)
    photo = (shop / "photos/1005.jpg").read_bytes()
    found = client.post("/search", content=photo).json()["hits"]
    assert [hit["row"] for hit in found] == [hit.row for hit in searcher.search(image=shop / "photos/1005.jpg")]
    both = client.post("/search?rerank=1&text=red&category=boots", content=photo).json()["hits"]
    expected = searcher.search("red", shop / "photos/1005.jpg", rerank=True, category="boots")
    assert [(hit["row"], hit["probability"]) for hit in both] == [
        (hit.row, pytest.approx(hit.probability, abs=1e-6)) for hit in expected
    ]


def test_about_and_photos(client, searcher, shop):
    assert client.get("/about").json() == {"products": 12, "categories": ["boots", "long summer dress", "shirt"]}
    answer = client.get("/photo/0")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as small, Image.open(searcher.index.products.images[0]) as photo:
        assert small.format == "JPEG" and small.size == photo.size  # smaller than the page shows: as it is


@pytest.mark.parametrize(
    ("path", "status", "complaint"),
    [
        ("/search", 400, "nothing to search for: type some words, or choose a photo"),
        ("/search?text=%20%09", 400, "no words to search for"),
        ("/search?text=red&top=0", 400, "top 0: must be a number from 1 to 100"),
        ("/search?text=red&top=1e3", 400, "top 1e3: must be"),
        ("/search?text=red&top=99999999999999999999", 400, "top 99999999999999999999: must be"),
        ("/search?text=red&category=hats", 400, "category hats: no product has it"),
        ("/photo/12", 404, "row 12: the index has 12"),
        ("/photo/99999999999999999999999", 404, "the index has 12"),
    ],
)
def test_bad_questions_get_a_line(client, path, status, complaint):
    answer = client.get(path)
    assert answer.status_code == status and complaint in answer.json()["error"]


@pytest.mark.parametrize("path", ["/photo/-1", "/photo/../index.json", "/photo/%2e%2e%2fvectors.npy", "/page/page.html",
                                  "/index.json", "//etc/passwd"])  # fmt: skip
def test_nothing_but_the_pages_own_paths_is_there(client, path):
    assert client.get(path).status_code == 404


def test_uploads_are_bounded(client, monkeypatch):
    answer = client.post("/search", content=b"no photo at all")
    assert answer.status_code == 400 and "the photo: cannot be read as a photo" in answer.json()["error"]
    monkeypatch.setattr(serve_module, "MOST_BYTES", 1000)
    answer = client.post("/search", content=b"x" * 1001)
    assert answer.status_code == 413 and "more than 1,000 bytes" in answer.json()["error"]
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    monkeypatch.undo()
    answer = client.post("/search", content=bomb.getvalue())
    assert answer.status_code == 400 and "9000 x 9000 pixels are more than" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/icon.svg", "/about", "/search", "/photo/0",
                                  "/photo/99", "/nowhere"])  # fmt: skip
def test_every_answer_has_the_strict_headers(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and "default-src 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin" and "'unsafe" not in str(headers)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("192.168.1.5:8000", 200), ("evil.example", 421),
     ("127.0.0.1.evil.example:8000", 421), ("localhost.evil.example", 421), ("", 421), ("[", 421), ("a b", 421)],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(client, host, status):
    assert client.get("/about", headers={"host": host}).status_code == status


def test_a_photo_that_is_gone_or_none_is_said(searcher, shop):
    images = ["/nowhere.jpg", str(shop / "shop.csv"), *searcher.index.products.images[2:]]
    photos = serve_module._Photos(searcher)
    photos.images = images
    for row, complaint in ((0, "photo not here"), (1, "photo unreadable")):
        with pytest.raises(serve_module._Refused, match=complaint):
            photos(row)


# The command ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served(index):
    """The URL of `fashionbert serve` in a process of its own, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fashionbert_fast", "serve", str(index), "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    killer = threading.Timer(120, process.kill)
    killer.start()
    line = process.stdout.readline()
    assert "12 products; Ctrl-C ends it" in line, line + process.stderr.read()
    yield line.split(": ")[0], process
    killer.cancel()
    process.kill()
    process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="test_the_page_in_a_browser needs chromium")
def test_the_page_in_a_browser(served, searcher, shop, tmp_path):
    url, _ = served
    with Browser(CHROMIUM, tmp_path / "profile") as page:
        page.go(url)
        page.wait("document.querySelectorAll('#category option').length === 4")
        assert page.value("document.activeElement.id") == "text"
        page.write("red boots <b>")
        page.press("Enter", 13)
        page.wait("document.querySelectorAll('#hits li').length === 12")
        titles = page.value("[...document.querySelectorAll('#hits .title')].map((title) => title.textContent)")
        assert titles == [hit.title for hit in searcher.search("red boots <b>", top=20)]
        page.wait("[...document.images].every((image) => image.complete)")
        assert page.value("[...document.querySelectorAll('#hits img')].every((image) => image.naturalWidth > 0)")
        assert page.value("location.search") == "?text=red+boots+%3Cb%3E"
        assert "12 products" in page.value("document.getElementById('status').textContent")

        page.choose("#photo", shop / "photos/1001.jpg")
        page.wait("document.getElementById('status').textContent === '12 products for the words and the photo'")
        page.value("document.getElementById('text').value = ''")
        page.drop(shop / "photos/1006.jpg")
        page.wait("document.getElementById('status').textContent === '12 products for the photo'")
        assert page.value("document.getElementById('name').textContent") == "1006.jpg"

        page.value("document.getElementById('rerank').focus()")
        page.press(" ", 32)
        page.wait("document.querySelector('#hits .fit').textContent.startsWith('match')")

        page.drop(shop / "shop.csv")
        page.wait("document.getElementById('status').className === 'error'")
        assert "cannot be read as a photo" in page.value("document.getElementById('status').textContent")
        page.go(f"{url}/?text=green+shirt&category=shirt")
        page.wait("document.querySelectorAll('#hits li').length === 4")
        allowed = [text for text in page.complaints if "400 (Bad Request)" not in text]  # of shop.csv
        assert not allowed and len(page.complaints) == 1, page.complaints


@pytest.mark.skipif(CHROMIUM is None, reason="test_the_whole_page_is_reached_by_keys needs chromium")
def test_the_whole_page_is_reached_by_keys(served, tmp_path):
    with Browser(CHROMIUM, tmp_path / "profile") as page:
        page.go(served[0])
        reached = []
        for _ in range(4):
            page.press("Tab", 9)
            reached.append(page.value("document.activeElement.id || document.activeElement.type"))
        assert reached == ["submit", "photo", "category", "rerank"]
        assert page.value("[...document.querySelectorAll('input, select')].every((field) => field.labels.length === 1)")


def test_ctrl_c_ends_it(served):
    _, process = served
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out == "ended\n" and err == "", err


def test_a_busy_port_and_no_host_are_one_line(index):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for words, complaint in (
            (("--port", port), f"--port {port}: cannot be listened at (Address already in use)"),
            (("--port", "70000"), "--port 70000: must lie in [0, 65535]"),
            (("--host", "nowhere.invalid"), "--host nowhere.invalid --port 8000: cannot be listened at"),
            (("--host", "198.51.100.7"), "--host 198.51.100.7 --port 8000: cannot be listened at"),
        ):
            done = fashionbert("serve", str(index), *words)
            assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_serving_what_is_no_index_is_one_line(shop):
    done = fashionbert("serve", str(shop), "--port", "0")
    assert done.returncode == 2 and "no index.json in it" in done.stderr and done.stderr.count("\n") == 1


def test_other_machines_are_warned_of(index, monkeypatch):
    monkeypatch.setattr(serve_module, "serve", lambda *_: None)
    done = fashionbert("serve", str(index), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 0 and "WARNING: 0.0.0.0 is reached from other machines" in done.stdout
    assert "WARNING" not in fashionbert("serve", str(index), "--port", "0").stdout

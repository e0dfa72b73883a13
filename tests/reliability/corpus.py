"""The hostile corpus: how each artefact is made (nothing of it is kept), and the trap around it.

Long: an artefact is a line or three, and there are a hundred.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fashionbert_fast.files import SEAL, seal
from fashionbert_fast.run_directory import MANIFEST, list_checkpoints
from tests.reliability import workload

SECRET_NAME, SECRET = "HOSTILE_SECRET", "the-password-of-the-trial"
PREPARE = ["--encoder", "random:0:16", "--grid", "2", "--patch-pixels", "8", "--device", "cpu", "--holdout", "0"]


@dataclass(frozen=True)
class Artefact:
    """``make(bench)`` writes it and returns the command that opens it; ``status``: how that should end."""

    name: str
    make: Callable[[Bench], list[str]]
    status: int


@dataclass(frozen=True)
class Home:
    """Good inputs, which artefacts are made from: photos/ with shop.csv, a store, a run of two checkpoints."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Home:
        (folder / "shop" / "images").mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (8, 40, 30, 3), dtype=np.uint8)
        for number, pixels in enumerate(noise):
            Image.fromarray(pixels).save(folder / "shop" / "images" / f"{number}.jpg")
        (folder / "shop" / "shop.csv").write_text("id,title\n" + "".join(f"{i},Hat {i}\n" for i in range(len(noise))))
        workload.write_store(folder / "store", products=24)
        steps = ("train.steps=2", "train.checkpoint_every=1", "train.zero_stage=1")
        workload.finish(1, folder, workload.overrides(folder / "store", folder / "run", *steps))
        return cls(folder)

    def good_words(self) -> dict[str, list[str]]:
        """The cost of each command is that of this one."""
        store, run, out = self.folder / "store", self.folder / "run", self.folder / "out"
        model = list_checkpoints(run)[-1] / "model"
        settings = workload.overrides(store, out / "run", "train.steps=2", "train.checkpoint_every=1")
        out.mkdir()
        return {
            "prepare": ["prepare", str(self.folder / "shop" / "shop.csv"), "--out", str(out / "store"), *PREPARE],
            "inspect": ["inspect", str(store), "--verify", "--tokenizer", str(model), "--json", str(out / "a.json")],
            "evaluate": ["evaluate", "--checkpoint", str(run), "--data", str(store), "--split", "train",
                         "--protocol", "full"],
            "export": ["export", "--checkpoint", str(model), "--out", str(out / "exported")],
            "pretrain": workload.pretrain_words(out, settings),
        }  # fmt: skip


@dataclass(frozen=True)
class Trap:
    """What nothing may touch or give away: a file that code would leave, and secrets beside the artefact."""

    folder: Path

    @classmethod
    def set(cls, folder: Path) -> Trap:
        folder.mkdir()
        (folder / "secret.txt").write_text(SECRET)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", SECRET]
        (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words))
        Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(folder / "secret.jpg")
        return cls(folder)

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    def check(self, said: str, place: Path) -> None:
        """AssertionError where code ran, or a secret came out: in words, in a file, or as a product's photo."""
        from fashionbert_fast.features.store import FeatureStore

        assert not self.canary.exists(), "code ran"
        there = {path.name for path in self.folder.iterdir()}
        assert there == {"secret.txt", "vocabulary.txt", "secret.jpg"}, f"outside there is {there}"
        assert SECRET not in said, "a secret was told"
        for path in (place / "out").rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), f"a secret came into {path.name}"
        if (place / "out" / "store").exists():
            images = FeatureStore.open(place / "out" / "store").images
            assert not any("secret" in Path(image).resolve().name for image in images), "a photo outside was taken"


class Runs:
    """Leaves the canary where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@dataclass(frozen=True)
class Bench:
    """Where one artefact is made."""

    home: Home
    trap: Trap
    place: Path

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(Runs(self.trap.canary))

    def shop(self) -> Path:
        return Path(shutil.copytree(self.home.folder / "shop", self.place / "shop"))

    def store(self) -> Path:
        return Path(shutil.copytree(self.home.folder / "store", self.place / "store"))

    def run(self) -> Path:
        return Path(shutil.copytree(self.home.folder / "run", self.place / "run"))

    def model(self) -> Path:
        return Path(shutil.copytree(list_checkpoints(self.home.folder / "run")[-1] / "model", self.place / "model"))

    def prepare(self, source: Path, *more: str) -> list[str]:
        (self.place / "out").mkdir()
        return ["prepare", str(source), "--out", str(self.place / "out" / "store"), *PREPARE, *more]

    def inspect(self, store: Path, *more: str) -> list[str]:
        (self.place / "out").mkdir()
        return ["inspect", str(store), "--verify", "--json", str(self.place / "out" / "a.json"), *more]

    def evaluate(self, checkpoint: Path) -> list[str]:
        (self.place / "out").mkdir()
        return ["evaluate", "--checkpoint", str(checkpoint), "--data", str(self.home.folder / "store"),
                "--split", "train", "--json", str(self.place / "out" / "a.json")]  # fmt: skip

    def export(self, model: Path) -> list[str]:
        return ["export", "--checkpoint", str(model), "--out", str(self.place / "out")]

    def pretrain(self, config: Path, *more: str) -> list[str]:
        (self.place / "out").mkdir()
        settings = workload.overrides(self.home.folder / "store", self.place / "out" / "run", "train.steps=2", *more)
        return ["pretrain", "--config", str(config), *settings]

    def resume(self, run: Path) -> list[str]:
        settings = workload.overrides(self.home.folder / "store", run, "train.steps=4", "train.checkpoint_every=1")
        return workload.pretrain_words(self.place, settings, resume=True)


# What is done to a file -----------------------------------------------------------------------------------------------
def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def sparse(path: Path) -> None:
    """4 GB of no blocks."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, 2**32)


def text(content: str | bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return write


def fields(**changed: object) -> Callable[[Path], None]:
    """Fields of a JSON object; a manifest is sealed again."""

    def write(path: Path) -> None:
        value = json.loads(path.read_text()) | changed
        value = seal({name: part for name, part in value.items() if name != SEAL}) if SEAL in value else value
        path.write_text(json.dumps(value))

    return write


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halved(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def resealed(manifest: Path, *, whole: bool) -> None:
    """A manifest over the files as they are, which whoever changes them can write."""
    value, files = json.loads(manifest.read_text()), {}
    for path in sorted(manifest.parent.rglob("*")):
        if path.is_file() and path != manifest and (whole or path.name != "features.bin"):
            content = path.read_bytes()
            files[str(path.relative_to(manifest.parent))] = {
                "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
            }  # fmt: skip
    value |= {"files": files if whole else value["files"] | files}
    manifest.write_text(json.dumps(seal({name: part for name, part in value.items() if name != SEAL})))


# Photos: a row of the shop has it, and loses it -----------------------------------------------------------------------
def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *more: bytes, data: bytes = b"\0" * 64) -> bytes:
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + b"".join(more) + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def _saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def _scans(count: int) -> bytes:
    """A progressive JPEG whose scans come over and over."""
    whole = _saved("JPEG", progressive=True)
    first = whole.index(b"\xff\xda")
    return whole[:first] + whole[first:-2] * count + whole[-2:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(CANARY) (w) file closefile\n"
BLANK = zlib.compress(b"\0" * 200_000_000, 9)
PHOTOS: dict[str, Callable[[Path], None] | bytes] = {
    "png of 3.6 gigapixels": _png(60_000, 60_000), "png of 2^31 pixels a side": _png(2**31 - 1, 2**31 - 1),
    "png of 0 pixels": _png(0, 0), "png that expands": _png(7_000, 7_000, data=b"\0" * (7_000 * 21_001)),
    "png with a text that expands": _png(64, 64, _chunk(b"zTXt", b"a\0\0" + BLANK)),
    "png with a profile that expands": _png(64, 64, _chunk(b"iCCP", b"a\0\0" + BLANK)),
    "png cut": _saved("PNG")[:80], "png of wrong sums": _saved("PNG").replace(b"IDAT", b"IDAX"),
    "jpeg of 300 scans": _scans(300), "jpeg of 65,500 pixels a side":
    _saved("JPEG").replace(b"\x00\x40\x00\x40", b"\xff\xdc\xff\xdc"), "jpeg cut": _saved("JPEG")[:100],
    "webp whose header lies": b"RIFF\xff\xff\xff\xffWEBPVP8X\n\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
    "eps named jpg": EPS, "gif named jpg": _saved("GIF"), "tiff named jpg": _saved("TIFF"), "bmp named jpg":
    _saved("BMP"), "svg named jpg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='../outside/secret.jpg'/>",
    "nothing named jpg": b"", "noise named jpg": bytes(range(256)) * 64, "sparse photo": sparse, "pipe named jpg": pipe,
    "device named jpg": device, "folder named jpg": folder,
}  # fmt: skip


def _photo(content: Callable[[Path], None] | bytes) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        shop = bench.shop()
        path = shop / "images" / "0.jpg"
        if isinstance(content, bytes):
            path.write_bytes(content.replace(b"CANARY", str(bench.trap.canary).encode()))
        else:
            content(path)
        return bench.prepare(shop / "shop.csv")

    return make


# Catalogues -----------------------------------------------------------------------------------------------------------
def _table(suffix: str, content: Callable[[Path], None]) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        path = bench.shop() / f"other.{suffix}"
        content(path)
        return bench.prepare(path)

    return make


def _rows(suffix: str, bad: str, times: int = 1) -> Callable[[Bench], list[str]]:
    """A good row, then as many bad ones; {outside} is the trap's folder."""

    def make(bench: Bench) -> list[str]:
        path = bench.shop() / f"other.{suffix}"
        head = "id,title,image\n0,Hat,images/0.jpg\n" if suffix == "csv" else '{"id": 0, "title": "Hat"}\n'
        line = bad.replace("{outside}", str(bench.trap.folder))
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(head)
            for _ in range(times):
                file.write(line)
        return bench.prepare(path)

    return make


def _parquet(titles: pa.Array, ids: pa.Array | None = None, **options) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        names = pa.array(map(str, range(len(titles)))) if ids is None else ids
        pq.write_table(pa.table({"id": names, "title": titles}), path, store_schema=False, **options)

    return write


def _linked_images(bench: Bench) -> list[str]:
    """The image folder itself is a link out of what came from the stranger."""
    shop = bench.shop()
    shutil.rmtree(shop / "images")
    (shop / "images").symlink_to(bench.trap.folder)
    (shop / "shop.csv").write_text("id,title\nsecret,Hat\n")
    return bench.prepare(shop / "shop.csv")


def _linked_photo(bench: Bench) -> list[str]:
    shop = bench.shop()
    (shop / "images" / "0.jpg").unlink()
    (shop / "images" / "0.jpg").symlink_to(bench.trap.folder / "secret.jpg")
    return bench.prepare(shop / "shop.csv")


BIG = "x" * 2**20
LAUGHS = "a: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)}, ' * 9}x]\n" for i in range(9))
CATALOGUES: dict[str, tuple[Callable[[Bench], list[str]], int]] = {
    "csv: paths out of the folder": (_rows("csv", "1,Cap,../outside/secret.jpg\n"), 0),
    "csv: absolute paths": (_rows("csv", "1,Cap,{outside}/secret.jpg\n"), 0),
    "csv: ids that are paths": (_rows("csv", "../../outside/secret,Cap,\n"), 0),
    "csv: a photo that is a link outside": (_linked_photo, 0),
    "csv: an image folder that is a link outside": (_linked_images, 2),
    "csv: a field of 300 MB": (_rows("csv", BIG, 300), 0),
    "csv: a quote that never ends": (_rows("csv", '"' + "a\n" * 1000, 500), 0),
    "csv: nothing but commas": (_rows("csv", "," * 2**20, 50), 0),
    "csv: 200,000 bad rows": (_rows("csv", "1\n", 200_000), 0),
    "csv: 5,000 rows of one id": (_rows("csv", "0,Cap,images/0.jpg\n", 5_000), 0),
    "csv: NULs": (_rows("csv", "1,Ca\0p,images/\0.jpg\n"), 0),
    "csv: mixed encodings": (_rows("csv", "1,\udcff\udcfe,images/1.jpg\n"), 0),
    "csv: a terminal's codes": (_rows("csv", "1,\x1b[2J\x1b]0;x\x07Cap,images/1.jpg\n"), 0),
    "csv: paths too long": (_rows("csv", f"1,Cap,{'a/' * 5000}b.jpg\n"), 0),
    "csv: zero rows": (_table("csv", text("id,title\n")), 2),
    "csv: nothing": (_table("csv", text("")), 2),
    "csv: binary": (_table("csv", text(bytes(range(256)) * 1000)), 2),
    "csv: UTF-16 without a mark": (_table("csv", text("id,title\n0,Hat\n".encode("utf-16-le"))), 2),
    "csv: a header of a million columns": (_table("csv", text("a," * 1_000_000)), 2),
    "csv: sparse": (_table("csv", sparse), 2),
    "csv: a pipe": (_table("csv", pipe), 2),
    "csv: a device": (_table("csv", device), 2),
    "csv: a folder": (_table("csv", folder), 2),
    "jsonl: a line of 300 MB": (_rows("jsonl", BIG, 300), 0),
    "jsonl: nested": (_rows("jsonl", "[" * 2**20 + "\n"), 0),
    "jsonl: objects that expand": (_rows("jsonl", '{"id": 1, "title": [' + "[]," * 300_000 + "[]]}\n", 20), 0),
    "jsonl: half characters": (_rows("jsonl", '{"id": 1, "title": "\\ud800"}\n'), 0),
    "jsonl: a number of 5,000 digits": (_rows("jsonl", '{"id": ' + "1" * 5000 + "}\n"), 0),
    "jsonl: keys without end": (_rows("jsonl", "{" + ", ".join(f'"k{i}": 1' for i in range(20_000)) + "}\n"), 2),
    "jsonl: pickled": (_table("jsonl", text(b"\x80\x04\x95")), 2),
    "parquet: a page that expands": (_table("parquet", lambda path: _parquet(
        pa.array([" " * 2**20]).take(pa.array([0] * 450)), compression="zstd", use_dictionary=False,
        data_page_size=2**30)(path)), 2),
    "parquet: a text that all rows share": (_table("parquet", lambda path: _parquet(
        pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["x" * 2**20]))(path)), 2),
    "parquet: rows without end": (_table("parquet", lambda path: _parquet(
        pa.array(["a"] * 2_000_000), pa.array(["1"] * 2_000_000))(path)), 2),
    "parquet: photos in the table": (_table("parquet", lambda path: _parquet(pa.array([b"\xff\xd8"] * 3))(path)), 2),
    "parquet: cut": (_table("parquet", lambda path: (_parquet(pa.array(["a"] * 99))(path), halved(path))), 2),
    "parquet: garbage": (_table("parquet", text(b"PAR1" + bytes(range(256)) * 99 + b"PAR1")), 2),
    "tar": (_table("tar", text(b"../../outside/canary" + b"\0" * 1004)), 2),
    "hdf5": (_table("h5", text(b"\x89HDF\r\n\x1a\n" + b"\0" * 1000)), 2),
}  # fmt: skip


# Stores ---------------------------------------------------------------------------------------------------------------
def _store(name: str, change: Callable[[Path], object], sealed: bool = False) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        store = bench.store()
        change(store / name)
        if sealed:
            resealed(store / "manifest.json", whole=False)
        return bench.inspect(store)

    return make


M, P, F = "manifest.json", "products.parquet", "features.bin"
STORES: dict[str, Callable[[Bench], list[str]]] = {
    "manifest missing": _store(M, Path.unlink), "manifest nested": _store(M, text("[" * 2**20)),
    "manifest sparse": _store(M, sparse), "manifest a pipe": _store(M, pipe), "manifest flipped": _store(M, flipped),
    "manifest of 10^12 products": _store(M, fields(products=10**12)), "manifest of -1 patches":
    _store(M, fields(grid=-1)), "manifest of names for sizes": _store(M, fields(grid="8")), "manifest of no encoder":
    _store(M, fields(encoder=[])), "manifest of odd splits": _store(M, fields(splits="train")),
    "products flipped": _store(P, flipped), "products cut": _store(P, halved), "products a device": _store(P, device),
    "products garbage, sealed": _store(P, text(b"PAR1" * 99), True), "products pickled, sealed":
    _store(P, text(b"\x80\x04."), True), "products that expand, sealed": _store(P, lambda path: _parquet(
        pa.array([" " * 2**20]).take(pa.array([0] * 300)), compression="zstd", use_dictionary=False)(path), True),
    "problems missing": _store("problems.jsonl", Path.unlink), "features cut": _store(F, halved), "features flipped":
    _store(F, flipped), "features a pipe": _store(F, pipe), "features a device": _store(F, device),
}  # fmt: skip


# Checkpoints, models and tokenizers -----------------------------------------------------------------------------------
def _checkpoint(how: Callable[[Bench, Path], object], sealed: bool = False, resume: bool = False):
    """Every checkpoint of a run is changed: there is none to fall back to."""

    def make(bench: Bench) -> list[str]:
        run = bench.run()
        for checkpoint in list_checkpoints(run):
            how(bench, checkpoint)
            if sealed:
                resealed(checkpoint / MANIFEST, whole=True)
        return bench.resume(run) if resume else bench.evaluate(run)

    return make


def _state(content: Callable[[Bench], bytes], kind: str) -> Callable[[Bench, Path], object]:
    def write(bench: Bench, checkpoint: Path) -> None:
        for path in (checkpoint / "state").glob(kind):
            path.write_bytes(content(bench))

    return write


def _linked(bench: Bench, checkpoint: Path) -> None:
    (checkpoint / "config.yaml").unlink()
    (checkpoint / "config.yaml").symlink_to(bench.trap.folder / "secret.txt")


LIE = struct.pack("<Q", 2**62) + b"{}"
OVERLAP = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
CHECKPOINTS = {
    "manifest missing": _checkpoint(lambda _, c: (c / MANIFEST).unlink()), "manifest edited":
    _checkpoint(lambda _, c: (c / MANIFEST).write_text((c / MANIFEST).read_text().replace('"step"', '"stop"'))),
    "manifest nested": _checkpoint(lambda _, c: (c / MANIFEST).write_text("[" * 2**20), resume=True),
    "manifest of a file outside": _checkpoint(
        lambda _, c: fields(files={"../../../outside/secret.txt": {}})(c / MANIFEST)),
    "a link": _checkpoint(_linked), "a link, sealed": _checkpoint(_linked, sealed=True),
    "a file more": _checkpoint(lambda b, c: (c / "state" / "more.pt").write_bytes(b.pickled)),
    "weights pickled, sealed": _checkpoint(
        lambda b, c: (c / "model" / "model.safetensors").write_bytes(b.pickled), sealed=True),
    "weights whose header lies, sealed": _checkpoint(
        lambda _, c: (c / "model" / "model.safetensors").write_bytes(LIE), sealed=True),
    "state pickled, sealed": _checkpoint(_state(lambda b: b.pickled, "*"), sealed=True, resume=True),
    "tensors pickled, sealed": _checkpoint(_state(lambda b: b.pickled, "*.safetensors"), sealed=True, resume=True),
    "state whose header lies, sealed": _checkpoint(_state(lambda _: LIE, "*.safetensors"), sealed=True, resume=True),
    "state of sizes that lie, sealed": _checkpoint(
        _state(lambda _: struct.pack("<Q", len(OVERLAP)) + OVERLAP, "*.safetensors"), sealed=True, resume=True),
    "state nested, sealed": _checkpoint(_state(lambda _: b"[" * 2**20, "*.json"), sealed=True, resume=True),
    "state of another kind, sealed": _checkpoint(_state(lambda _: b"[1, 2]", "*.json"), sealed=True, resume=True),
    "config that laughs, sealed": _checkpoint(
        lambda _, c: (c / "config.yaml").write_text(LAUGHS), sealed=True, resume=True),
}  # fmt: skip


def _model(name: str, change: Callable[[Path], object]) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        model = bench.model()
        change(model / name)
        return bench.export(model)

    return make


def _index(name: object) -> Callable[[Path], None]:
    return text(json.dumps({"weight_map": {"a": name}}))


def _pickle_alone(bench: Bench) -> list[str]:
    model = bench.model()
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(bench.pickled)
    return bench.export(model)


def _foreign_vocabulary(bench: Bench) -> list[str]:
    model = bench.model()
    (model / "tokenizer.json").unlink()
    fields(vocab=str(bench.trap.folder / "vocabulary.txt"))(model / "tokenizer_config.json")
    return bench.export(model)


W, C, T = "model.safetensors", "config.json", "tokenizer.json"
I = "model.safetensors.index.json"  # noqa: E741
MODELS: dict[str, Callable[[Bench], list[str]]] = {
    "10^5 layers": _model(C, fields(num_hidden_layers=10**5)), "900 layers": _model(C, fields(num_hidden_layers=900)),
    "a vocabulary of 2e9": _model(C, fields(vocab_size=2 * 10**9)), "a vocabulary of 10^7":
    _model(C, fields(vocab_size=10**7)), "hidden size NaN": _model(C, fields(hidden_size=float("nan"))),
    "hidden size -1": _model(C, fields(hidden_size=-1)), "positions of 10^7":
    _model(C, fields(max_position_embeddings=10**7)), "config nested": _model(C, text("{" * 2**20)),
    "config of digits": _model(C, text('{"model_type": ' + "1" * 10**6 + "}")), "config a pipe": _model(C, pipe),
    "config sparse": _model(C, sparse), "index of /etc/passwd": _model(I, _index("/etc/passwd")),
    "index of a path out": _model(I, _index("../outside/secret.txt")), "index of numbers": _model(I, _index(3)),
    "header of 2^62": _model(W, text(LIE)), "header of sizes that lie":
    _model(W, text(struct.pack("<Q", len(OVERLAP)) + OVERLAP)), "weights a device": _model(W, device),
    "weights sparse": _model(W, sparse), "a pickle alone": _pickle_alone,
    "tokenizer garbage": _model(T, text(bytes(range(256)) * 4096)), "tokenizer nested": _model(T, text("[" * 2**22)),
    "tokenizer sparse": _model(T, sparse), "tokenizer a pipe": _model(T, pipe), "tokenizer that expands":
    _model(T, text('{"a": [' + "[]," * 4_000_000 + "[]]}")), "tokenizer of another's vocabulary": _foreign_vocabulary,
}  # fmt: skip


# YAML -----------------------------------------------------------------------------------------------------------------
def _yaml(content: Callable[[Path], object] | str, *more: str) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        path = bench.place / "c.yaml"
        if callable(content):
            content(path)
        else:
            path.write_text(content.replace("{canary}", str(bench.trap.canary)))
        return bench.pretrain(path, *more)

    return make


YAML: dict[str, Callable[[Bench], list[str]]] = {
    "laughs": _yaml(LAUGHS), "nested": _yaml("[" * 60_000), "an object": _yaml(
        "train: !!python/object/apply:os.system ['touch {canary}']"),
    "the environment": _yaml(f"validation: {{keep_best: '${{oc.env:{SECRET_NAME}}}'}}"),
    "steps of 10^30": _yaml("", f"train.steps={10**30}"), "a seed of 10^30": _yaml(f"train: {{seed: {10**30}}}"),
    "10^5 layers": _yaml("", "model.layers=100000"), "weights of terabytes":
    _yaml("", "model.layers=1000", "model.hidden_size=1048576"), "a million workers": _yaml("data: {workers: 1000000}"),
    "binary": _yaml(text(bytes(range(256)))), "a pipe": _yaml(pipe), "a device": _yaml(device),
    "a folder": _yaml(folder), "an override of the environment": _yaml("{}", f"data.split=${{oc.env:{SECRET_NAME}}}"),
}  # fmt: skip


def _all() -> Sequence[Artefact]:
    """A photo costs its row; of a catalogue each says what it costs; of the rest nothing can be used."""
    found = [Artefact(f"photo: {name}", _photo(content), 0) for name, content in PHOTOS.items()]
    found += [Artefact(name, make, status) for name, (make, status) in CATALOGUES.items()]
    for kind, artefacts in (("store", STORES), ("checkpoint", CHECKPOINTS), ("model", MODELS), ("yaml", YAML)):
        found += [Artefact(f"{kind}: {name}", make, 2) for name, make in artefacts.items()]
    return found


ARTEFACTS = _all()

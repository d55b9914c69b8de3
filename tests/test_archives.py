"""Fetching archives from a server on the loopback: transfer, resume, verification, safe extraction."""

import hashlib
import io
import re
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from sodlib import archives
from sodlib.archives import SOURCES, Archive, Source, extract, fetch, member_path
from sodlib.data import BENCHMARKS
from sodlib.errors import SodlibError


def picture(mode, kind, value=120):
    data = io.BytesIO()
    Image.new(mode, (6, 4), value).save(data, kind)
    return data.getvalue()


def pack(entries):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for name, content in entries:
            packed.writestr(name, content)
    return data.getvalue()


def pack_set(stems="abc", images="DUTS-TE/DUTS-TE-Image", masks="DUTS-TE/DUTS-TE-Mask"):
    jpeg, png = picture("RGB", "jpeg", (90, 20, 200)), picture("L", "png")
    return pack([*((f"{images}/{s}.jpg", jpeg) for s in stems), *((f"{masks}/{s}.png", png) for s in stems)])


class Server(ThreadingHTTPServer):
    """Answers with `files`, notes `requests` (path, Range), breaks off one answer at `stop_after` bytes."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.stop_after, self.status, self.ranges = None, None, True
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        content = self.server.files.get(self.path.lstrip("/"))
        if self.server.status or content is None:
            self.send_error(self.server.status or 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.stop_after])
        self.server.stop_after = None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=partial(running.serve_forever, 0.01), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def serve(server, monkeypatch):
    """Offers one archive as the published DUTS-TE."""

    def offer(content, pairs=3, **known):
        server.files["DUTS-TE.zip"] = content
        archive = Archive(server.url("DUTS-TE.zip"), **known)
        monkeypatch.setitem(SOURCES, "DUTS-TE", Source(pairs, (archive,)))

    return offer


def sha256(content):
    return "sha256", hashlib.sha256(content).hexdigest()


def left_over(root):
    """What lies in the root beyond the folder of downloads."""
    return sorted(path.name for path in root.iterdir() if path.name != "downloads")


def assert_fails(root, match, name="DUTS-TE"):
    with pytest.raises(SodlibError, match=match):
        fetch(name, root)
    assert left_over(root) == []


def test_fetch_puts_images_and_masks_in_place(tmp_path, server, serve):
    content = pack_set()
    serve(content, size=len(content), checksum=sha256(content))
    found = fetch("duts_te", tmp_path)
    assert found.stems == ("a", "b", "c")
    assert found.images[0] == tmp_path / "DUTS-TE" / "images" / "a.jpg"
    assert found.masks[0] == tmp_path / "DUTS-TE" / "masks" / "a.png"
    assert left_over(tmp_path) == ["DUTS-TE"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["DUTS-TE.zip"]

    assert fetch("DUTS-TE", tmp_path) == found
    assert len(server.requests) == 1


def test_what_has_no_partner_stays_out(tmp_path, serve):
    """Or the set would be refused ever after."""
    alone = ("DUTS-TE/DUTS-TE-Image/d.jpg", picture("RGB", "jpeg", (90, 20, 200)))
    pairs = [*zipfile.ZipFile(io.BytesIO(pack_set())).namelist()]
    content = zipfile.ZipFile(io.BytesIO(pack_set()))
    serve(pack([*((name, content.read(name)) for name in pairs), alone]))
    assert fetch("DUTS-TE", tmp_path).stems == ("a", "b", "c")


def test_an_archive_without_images(tmp_path, serve):
    serve(pack([("readme.txt", b"nothing")]))
    assert_fails(tmp_path, "images")


def test_a_set_in_two_archives(tmp_path, server, monkeypatch):
    jpeg, png = picture("RGB", "jpeg", (90, 20, 200)), picture("L", "png")
    server.files["images.zip"] = pack([("images/0001.jpg", jpeg)])
    server.files["ground_truth_mask.zip"] = pack([("ground_truth_mask/0001.png", png)])
    both = tuple(Archive(server.url(name)) for name in server.files)
    monkeypatch.setitem(SOURCES, "ECSSD", Source(1, both))
    assert fetch("ECSSD", tmp_path).stems == ("0001",)


def test_only_the_set_is_unpacked_from_an_archive_of_several(tmp_path, server, monkeypatch):
    jpeg, png = picture("RGB", "jpeg", (90, 20, 200)), picture("L", "png")
    content = [(f"datasets/imgs/{other}/1.jpg", jpeg) for other in ("bruce", "pascal")]
    content += [(f"datasets/masks/{other}/1.png", png) for other in ("bruce", "pascal")]
    server.files["salObj.zip"] = pack([*content, ("algmaps/pascal/x/1.png", png)])
    source = Source(1, (Archive(server.url("salObj.zip")),), only=SOURCES["PASCAL-S"].only)
    monkeypatch.setitem(SOURCES, "PASCAL-S", source)
    assert fetch("PASCAL-S", tmp_path).stems == ("1",)


def test_interrupted_transfer_goes_on_where_it_stopped(tmp_path, server, serve):
    content = pack_set()
    serve(content, checksum=sha256(content))
    server.stop_after = 100
    assert_fails(tmp_path, rf"stopped after 100 of {len(content)} bytes\): run it again")
    assert (tmp_path / "downloads" / "DUTS-TE.zip.part").stat().st_size == 100
    assert len(fetch("DUTS-TE", tmp_path)) == 3
    assert server.requests[-1] == ("/DUTS-TE.zip", "bytes=100-")


def test_server_without_ranges_starts_over(tmp_path, server, serve):
    serve(pack_set())
    server.stop_after, server.ranges = 100, False
    assert_fails(tmp_path, "stopped after 100")
    assert len(fetch("DUTS-TE", tmp_path)) == 3


@pytest.mark.parametrize("surplus", [b"", b"of another archive"])
def test_partial_file_that_is_whole_or_too_long(tmp_path, server, serve, surplus):
    content = pack_set()
    serve(content, checksum=sha256(content))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "DUTS-TE.zip.part").write_bytes(content + surplus)
    assert len(fetch("DUTS-TE", tmp_path)) == 3


def test_wrong_checksum_puts_the_file_aside(tmp_path, server, serve):
    content = pack_set()
    serve(content, checksum=("md5", "0" * 32))
    found = hashlib.md5(content).hexdigest()
    assert_fails(tmp_path, rf"DUTS-TE\.zip\.bad has the md5 checksum {found}, but the published archive has 0000")
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["DUTS-TE.zip.bad"]


def test_wrong_length_is_told(tmp_path, serve):
    serve(pack_set(), size=17)
    assert_fails(tmp_path, "but the published archive has 17")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><title>Moved</title>", "is a web page"),
        (b"neither a page nor an archive", "is no complete zip file"),
        (b"", "is no complete zip file"),
        (pack_set()[:200], "is no complete zip file"),
    ],
)
def test_something_else_than_an_archive(tmp_path, serve, content, reason):
    serve(content)
    assert_fails(tmp_path, reason)


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_server_errors_name_the_address(tmp_path, server, serve, status):
    serve(pack_set())
    server.status = status
    assert_fails(tmp_path, rf"{re.escape(server.url('DUTS-TE.zip'))} was answered with {status}.*by hand")


def test_server_that_is_not_there(tmp_path, monkeypatch):
    with Server() as closed:
        url = closed.url("DUTS-TE.zip")
    monkeypatch.setitem(SOURCES, "DUTS-TE", Source(3, (Archive(url),)))
    assert_fails(tmp_path, "did not come")


# Archives placed by hand


@pytest.mark.parametrize("folder", [".", "downloads"])
def test_archive_placed_by_hand_is_verified_and_used(tmp_path, server, serve, folder):
    content = pack_set()
    serve(content, checksum=sha256(content))
    (tmp_path / "downloads").mkdir()
    placed = tmp_path / folder / "DUTS-TE.zip"
    placed.write_bytes(pack_set("abcd"))
    with pytest.raises(SodlibError, match=r"sha256 checksum .* remove it"):
        fetch("DUTS-TE", tmp_path)
    assert placed.exists()
    assert not (tmp_path / "DUTS-TE").exists()
    placed.write_bytes(content)
    assert len(fetch("DUTS-TE", tmp_path)) == 3
    assert server.requests == []


@pytest.mark.parametrize("name", ["HKU-IS", "SOD"])
def test_sets_to_be_had_by_hand(tmp_path, monkeypatch, name):
    page = SOURCES[name].page
    assert_fails(tmp_path, rf"by hand.*{re.escape(page)}.*{name}\.zip", name)
    monkeypatch.setitem(SOURCES, name, Source(3, page=page))
    (tmp_path / "downloads" / f"{name}.zip").write_bytes(pack_set(images="imgs", masks="gt"))
    assert len(fetch(name, tmp_path)) == 3


def test_one_archive_made_by_hand_stands_for_all(tmp_path, monkeypatch, server):
    source = Source(3, (Archive(server.url("gone.zip")),), only=("imgs/pascal/",))
    monkeypatch.setitem(SOURCES, "PASCAL-S", source)
    (tmp_path / "PASCAL-S.zip").write_bytes(pack_set(images="images", masks="masks"))
    assert len(fetch("PASCAL-S", tmp_path)) == 3
    assert server.requests == []


def test_folder_that_holds_only_a_part_is_not_touched(tmp_path, server, serve):
    serve(pack_set())
    fetch("DUTS-TE", tmp_path)
    serve(pack_set("abcd"), pairs=4)
    with pytest.raises(SodlibError, match=r"3 of the 4 pairs of DUTS-TE: move the folder away"):
        fetch("DUTS-TE", tmp_path)
    assert len(list((tmp_path / "DUTS-TE" / "images").iterdir())) == 3


def test_archive_with_another_number_of_pairs(tmp_path, serve):
    serve(pack_set(), pairs=5)
    assert_fails(tmp_path, "3 pairs instead of 5")


def test_unknown_set_and_missing_root(tmp_path, monkeypatch):
    monkeypatch.delenv("SODLIB_DATA", raising=False)
    assert_fails(tmp_path, r"no public archive for 'MNIST'.*DUTS-TR", "MNIST")
    with pytest.raises(SodlibError, match="--data or SODLIB_DATA"):
        fetch("ECSSD")
    with pytest.raises(SodlibError, match="no folder"):
        fetch("ECSSD", tmp_path / "missing")


def test_root_that_cannot_be_written(tmp_path):
    (tmp_path / "downloads").write_text("a file where the folder should be")
    with pytest.raises(SodlibError, match="downloads cannot be made"):
        fetch("ECSSD", tmp_path)


def test_set_that_cannot_be_written(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sodlib.archives._archives", lambda *_: [])
    monkeypatch.setattr("sodlib.archives.tempfile.TemporaryDirectory", refused)
    with pytest.raises(SodlibError, match=r"ECSSD cannot be written .Permission denied.: name another root"):
        fetch("ECSSD", tmp_path)


def test_every_benchmark_has_a_source():
    assert SOURCES.keys() == BENCHMARKS.keys()
    assert all(bool(source.archives) != bool(source.page) for source in SOURCES.values())


# Safe extraction


def link(name, target):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry, target


UNSAFE = [
    "../x.png",
    "images/../../x.png",
    "/x.png",
    "C:/x.png",
    "images\\..\\..\\x.png",
    "..",
    "//host/x.png",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_path_that_leaves_the_target_stops_all(tmp_path, serve, name):
    serve(pack([("images/good.png", picture("L", "png")), (name, picture("L", "png"))]))
    assert_fails(tmp_path, "a name that leaves its folder")
    assert not list(tmp_path.parent.glob("x.png"))


def test_links_are_refused(tmp_path, serve):
    serve(pack([link("images", "/tmp"), ("images/x.png", picture("L", "png"))]))
    assert_fails(tmp_path, "holds a link")


def test_size_bound(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_BYTES", 5_000)
    with io.BytesIO() as data:
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("images/a.bmp", bytes(5_001))
        serve(data.getvalue())
    assert_fails(tmp_path, "unpack to more than")


def test_damaged_entry(tmp_path, serve):
    png = picture("L", "png")
    content = pack([("images/a.png", png)])
    serve(content.replace(png, png[::-1]))
    assert_fails(tmp_path, r"cannot be unpacked \(Bad CRC-32")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entry_that_is_there_twice(tmp_path, serve):
    serve(pack([("images/a.png", b"1"), ("images/a.png", b"2")]))
    assert_fails(tmp_path, "cannot be unpacked")


def test_only_images_are_written(tmp_path):
    (tmp_path / "x.zip").write_bytes(
        pack([("run.sh", "x"), ("images/a.PNG", "x"), ("__MACOSX/images/a.png", "x"), ("images/._a.png", "x")])
    )
    extract(tmp_path / "x.zip", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["a.PNG"]


parts = st.one_of(st.sampled_from(["..", ".", "", "images", "C:", "\\", "a.png"]), st.text(max_size=4))


@given(st.lists(parts, min_size=1, max_size=5).map("/".join).filter(bool))
@example("images/./a.png")
@example("/etc/passwd")
def test_no_name_leaves_the_target(name):
    try:
        path = member_path(zipfile.ZipInfo(name), Path("x.zip"))
    except SodlibError:
        return
    target = Path("/target")
    assert isinstance(path, PurePosixPath)
    written = Path(str((target / path).absolute()))
    assert ".." not in written.parts
    assert written.is_relative_to(target)
    assert written != target

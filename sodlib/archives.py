"""The public archives of the benchmark sets: download with resume, verification, and extraction that stays in
its folder.

`fetch` leaves `<root>/<SET>/images` and `<root>/<SET>/masks`, or nothing.
"""

import hashlib
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from sodlib.data import SaliencySet, benchmark_name, by_stem, data_root, find_set
from sodlib.errors import SodlibError
from sodlib.layouts import IMAGE_SUFFIXES, find_files

# No archive of these sets comes near it; one that unpacks to more is damaged or hostile.
LARGEST_BYTES = 8 * 2**30
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Archive:
    """One zip file: its address, and where they are known its length in bytes and its checksum."""

    url: str
    size: int | None = None
    checksum: tuple[str, str] | None = None
    """Name of the hash function ("sha256", "md5") and the hexadecimal digest."""

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """Where a set comes from: its archives, or the page where a person gets it; and how many pairs it has."""

    pairs: int
    archives: tuple[Archive, ...] = ()
    page: str = ""
    only: tuple[str, ...] = ()
    """Where an archive holds several sets, the folders to unpack."""


_DUTS = "http://saliencydetection.net/duts/download"
_ECSSD = "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/data/ECSSD"
_OMRON = "http://saliencydetection.net/dut-omron/download"
_ECSSD_IMAGES = "7d5dce1a21c6d82e2f9617c00ad7eae2de5ded9320e8c59a01b4c731d210ea47"
_ECSSD_MASKS = "dc0a9f11f2adee2737d95b28f9567a0a5de33f78743447c097ceb4d42f281a31"

SOURCES: dict[str, Source] = {
    "DUTS-TR": Source(10_553, (Archive(f"{_DUTS}/DUTS-TR.zip"),)),
    "DUTS-TE": Source(5_019, (Archive(f"{_DUTS}/DUTS-TE.zip"),)),
    "ECSSD": Source(
        1_000,
        (
            Archive(f"{_ECSSD}/images.zip", 67_766_979, ("sha256", _ECSSD_IMAGES)),
            Archive(f"{_ECSSD}/ground_truth_mask.zip", 1_571_109, ("sha256", _ECSSD_MASKS)),
        ),
    ),
    "PASCAL-S": Source(
        850,
        (
            Archive(
                "http://cbs.ic.gatech.edu/salobj/download/salObj.zip",
                checksum=("md5", "e48b4e5deac08bddcaec55ce56e4d420"),
            ),
        ),
        only=("imgs/pascal/", "masks/pascal/"),
    ),
    "DUT-OMRON": Source(
        5_168,
        (
            Archive(f"{_OMRON}/DUT-OMRON-image.zip", checksum=("md5", "a8951db9297afacf78bc0e5079103cf1")),
            Archive(f"{_OMRON}/DUT-OMRON-gt-pixelwise.zip.zip"),
        ),
    ),
    "HKU-IS": Source(4_447, page="https://i.cs.hku.hk/~gbli/deep_saliency.html"),
    "SOD": Source(300, page="http://elderlab.yorku.ca/SOD/"),
}


def fetch(name: str, root: str | Path | None = None) -> SaliencySet:
    """Put the benchmark set `name` into `<root>/<name>/{images,masks}` and return its pairs.

    `root` is the data root, else SODLIB_DATA. Archives that lie in `<root>/downloads` or in `<root>` are
    used; the others are downloaded to `<root>/downloads`, going on where an earlier download stopped.
    `<name>.zip`, put there by hand with images and masks in it, stands for all archives of the set. A set
    that is in place already is left as it is.

    Raises SodlibError where the set is unknown, can only be had by hand or is there incompletely; where a
    download fails; where an archive is no zip file, has another checksum, or would write outside its folder;
    and where the pairs are not as many as were published. No part of a set is left in place then.
    """
    known = benchmark_name(name)
    if known is None:
        raise SodlibError(f"There is no public archive for {name!r}: known are {', '.join(SOURCES)}.")
    base = data_root(root)
    if base is None:
        raise SodlibError(f"No data root is given: name the folder to put {known} in with --data or SODLIB_DATA.")
    source, target = SOURCES[known], base / known
    if not target.exists():
        downloads = base / "downloads"
        try:
            downloads.mkdir(exist_ok=True)
        except OSError as error:
            raise SodlibError(f"{downloads} cannot be made ({error.strerror}): name another root.") from error
        archives = _archives(known, source, downloads)
        try:
            with tempfile.TemporaryDirectory(prefix=f".{known}-", dir=base) as scratch:
                unpacked = Path(scratch) / "unpacked"
                unpacked.mkdir()
                for path in archives:
                    extract(path, unpacked, () if path.name == f"{known}.zip" else source.only)
                _arrange(unpacked, Path(scratch) / known, source.pairs).rename(target)
        except OSError as error:
            raise SodlibError(f"{target} cannot be written ({error.strerror or error}): name another root.") from error
    pairs = find_set(known, base)
    if len(pairs) != source.pairs:
        raise SodlibError(
            f"{target} holds {len(pairs)} of the {source.pairs} pairs of {known}: "
            f"move the folder away and run `sodlib data fetch {known}` again to get the whole set."
        )
    return pairs


def extract(archive: Path, target: Path, only: tuple[str, ...] = ()) -> None:
    """Unpack the image files of a zip file below `target`.

    `only` names folders: where it is given, files outside of them are left out. Every name is checked before
    the first file is written.
    Raises SodlibError for a damaged or encrypted archive, and where an entry is a link, leaves `target`, is
    there twice, or all together exceed `LARGEST_BYTES`.
    """
    with _readable(archive), zipfile.ZipFile(archive) as opened:
        members = [(member_path(entry, archive), entry) for entry in opened.infolist() if not entry.is_dir()]
        wanted = [(path, entry) for path, entry in members if _is_wanted(path, only)]
        if sum(entry.file_size for _, entry in wanted) > LARGEST_BYTES:
            raise SodlibError(f"{archive} would unpack to more than {LARGEST_BYTES >> 30} GiB: get the file anew.")
        for path, entry in tqdm(wanted, f"unpack {archive.name}", unit="file", disable=None):
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as packed, file.open("xb") as unpacked:
                shutil.copyfileobj(packed, unpacked)


def member_path(entry: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """The relative path at which an archive's entry may be written.

    Raises SodlibError where the entry is a link or its name could leave the folder on any operating system.
    """
    name = entry.filename
    path = PurePosixPath(name)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise SodlibError(f"{archive} holds a link ({name!r}), which no data set needs: get the file anew.")
    if not path.parts or path.is_absolute() or ".." in path.parts or any(mark in name for mark in "\\:\0"):
        raise SodlibError(f"{archive} holds {name!r}, a name that leaves its folder: get the file anew.")
    return path


def download(archive: Archive, folder: Path) -> Path:
    """Download to `folder`, going on where `<file>.part` ends, and return the verified file.

    Raises SodlibError where the transfer fails (`<file>.part` stays, for the next attempt) and where the file
    is not the published archive (it is kept as `<file>.bad`, never used).
    """
    path = folder / archive.file_name
    part = path.with_name(path.name + ".part")
    by_hand = f"or download it by hand and put it in {folder}"
    try:
        _transfer(archive, part)
    except urllib.error.HTTPError as error:
        answer = f"{error.code} {error.reason}"
        raise SodlibError(f"{archive.url} was answered with {answer}: try again later, {by_hand}.") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise SodlibError(f"{archive.url} did not come ({reason}): run it again to go on, {by_hand}.") from error
    try:
        verify(part, archive)
    except SodlibError:
        bad = part.replace(path.with_name(path.name + ".bad"))
        raise SodlibError(f"{_difference(bad, archive)}, so it was put aside: run it again, {by_hand}.") from None
    return part.replace(path)


def verify(path: Path, archive: Archive) -> None:
    """Raise SodlibError where the file at `path` is no zip file or not the published one."""
    if difference := _difference(path, archive):
        raise SodlibError(f"{difference}: remove it to download it anew, or replace it.")


def _difference(path: Path, archive: Archive) -> str | None:
    """What tells the file at `path` from the published archive, as the beginning of a sentence."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page, not the archive {archive.file_name}"
    if archive.size is not None and path.stat().st_size != archive.size:
        return f"{path} has {path.stat().st_size} bytes, but the published archive has {archive.size}"
    if archive.checksum is not None:
        function, expected = archive.checksum
        with path.open("rb") as file:
            found = hashlib.file_digest(file, function).hexdigest()
        if found != expected:
            return f"{path} has the {function} checksum {found}, but the published archive has {expected}"
    if not zipfile.is_zipfile(path):
        return f"{path} is no complete zip file"
    return None


def _archives(name: str, source: Source, downloads: Path) -> list[Path]:
    """The set's archives as verified files: placed by hand, or else downloaded."""
    names = [archive.file_name for archive in source.archives]
    if f"{name}.zip" not in names and (whole := _placed(f"{name}.zip", downloads)):
        return [whole]
    if not source.archives:
        raise SodlibError(
            f"{name} can only be had by hand: get it from {source.page} and put its images and masks in the "
            f"folders images and masks of {downloads.parent / name}, or both as a zip file at "
            f"{downloads / name}.zip."
        )
    paths = []
    for archive in source.archives:
        if placed := _placed(archive.file_name, downloads):
            verify(placed, archive)
        paths.append(placed or download(archive, downloads))
    return paths


def _placed(file_name: str, downloads: Path) -> Path | None:
    places = (downloads / file_name, downloads.parent / file_name)
    return next((path for path in places if path.is_file()), None)


def _transfer(archive: Archive, part: Path) -> None:
    """Bring `part` to its full length."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "sodlib", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response: HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(archive.url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return
        part.unlink()
        _transfer(archive, part)
        return
    with response:
        if response.status != 206:
            done = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise OSError("the server sent another part of the file than it was asked for")
        length = response.headers["Content-Length"]
        total = done + int(length) if length else None
        bar = tqdm(desc=archive.file_name, total=total, initial=done, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if done else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > LARGEST_BYTES:
                    raise OSError(f"more than {LARGEST_BYTES >> 30} GiB came")
    if total is not None and (have := part.stat().st_size) < total:
        raise OSError(f"the transfer stopped after {have} of {total} bytes")


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise SodlibError(f"{archive} cannot be unpacked ({error}): get the file anew.") from error
    except OSError as error:
        raise SodlibError(f"{archive} cannot be unpacked ({error}): check the disk and the file.") from error


def _is_wanted(path: PurePosixPath, only: tuple[str, ...]) -> bool:
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or path.parts[0] == "__MACOSX":
        return False
    return not only or any(folder in path.as_posix() for folder in only)


def _arrange(unpacked: Path, target: Path, expected: int) -> Path:
    """Move the set's pairs to `target/{images,masks}`, where they are as many as expected."""
    images, masks = find_files(unpacked)
    paired = {path.stem for path in images} & {path.stem for path in masks}
    if len(paired) != expected:
        raise SodlibError(
            f"The archives of {target.name} hold {len(paired)} pairs instead of {expected}: "
            "remove them from the folder downloads and get them anew."
        )
    for name, paths in (("images", images), ("masks", masks)):
        (target / name).mkdir(parents=True)
        for path in by_stem(path for path in paths if path.stem in paired).values():
            path.rename(target / name / path.name)
    return target

"""Archives given as sources are read as the folders they hold, with limits against bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from document_files import archive, docx, pdf
from reading import found

from adamas_cli.documents import archives
from adamas_cli.documents.formats import unpack
from adamas_cli.errors import NothingReadableError

FILES = {"app/main.py": "print()\n", "app/README.md": "# App\n", "notes.txt": "notes\n"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


def tar(files: Mapping[str, str | bytes], mode: str = "w") -> bytes:
    """A tar archive of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as packed:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return out.getvalue()


def texts(collection) -> dict[str, str]:
    return {document.path: "".join(document.pieces()) for document in collection.documents}


PACKED = {
    "a.zip": archive(FILES),
    "a.tar": tar(FILES),
    "a.tar.gz": tar(FILES, "w:gz"),
    "a.tgz": tar(FILES, "w:gz"),
    "a.tar.bz2": tar(FILES, "w:bz2"),
    "a.tar.xz": tar(FILES, "w:xz"),
    "a.whl": archive(FILES),
    "no suffix": tar(FILES, "w:gz"),
}


@pytest.mark.parametrize("name", PACKED)
def test_an_archive_is_a_folder(name: str) -> None:
    Path(name).write_bytes(PACKED[name])
    collection = found(name)
    assert texts(collection) == {f"{name}/{path}": text for path, text in FILES.items()}
    assert not collection.skipped
    tree = found(name, tree=True).documents[0]
    assert "".join(tree.pieces()) == f"{name}/\n  app/\n    README.md\n    main.py\n  notes.txt\n"


def test_an_archive_on_stdin() -> None:
    for content in (PACKED["a.zip"], PACKED["a.tar.xz"]):
        assert texts(found("-", stdin=content)) == {f"stdin/{path}": text for path, text in FILES.items()}


def test_documents_inside_are_converted_and_patterns_apply() -> None:
    Path("a.zip").write_bytes(
        archive({"a.docx": docx([("", "letter")]), "b/c.pdf": pdf(["report"]), "d.txt": "d"})
    )
    assert set(texts(found("a.zip"))) == {"a.zip/a.docx", "a.zip/b/c.pdf", "a.zip/d.txt"}
    assert texts(found("a.zip", include=("*.pdf",))) == {"a.zip/b/c.pdf": "[page 1]\nreport\n\n"}
    assert set(texts(found("a.zip", exclude=("b",)))) == {"a.zip/a.docx", "a.zip/d.txt"}


def test_an_archive_inside_of_an_archive() -> None:
    inner = tar({"deep.txt": "deep"}, "w:gz")
    for _ in range(2):
        inner = archive({"inner.zip": inner, "beside.txt": "beside"})
    Path("a.zip").write_bytes(inner)
    collection = found("a.zip")
    assert texts(collection) == {
        "a.zip/beside.txt": "beside",
        "a.zip/inner.zip/beside.txt": "beside",
        "a.zip/inner.zip/inner.zip/deep.txt": "deep",
    }
    Path("b.zip").write_bytes(archive({"a.zip": inner, "b.txt": "b"}))
    assert found("b.zip").skipped == {"archives (name them to read them)": 1}


def test_archives_in_a_folder_are_counted() -> None:
    Path("docs").mkdir()
    for name in ("a.zip", "a.tar.gz"):
        Path("docs", name).write_bytes(PACKED[name])
    Path("docs/b.txt").write_text("b")
    assert found("docs").skipped_line() == "skipped 2: 2 archives (name them to read them)"


def test_what_is_unpacked_is_removed_with_the_documents(folder: Path) -> None:
    Path("a.zip").write_bytes(PACKED["a.zip"])
    documents = found("a.zip").documents
    assert list(folder.iterdir())
    document = documents.pop()
    del documents
    assert "".join(document.pieces()) == "notes\n"
    del document
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"]
)
@pytest.mark.parametrize("pack", [archive, tar])
def test_names_that_lead_out(name: str, pack, tmp_path: Path) -> None:
    Path("a").write_bytes(pack({name: "out", "in.txt": "in"}))
    collection = found("a")
    assert texts(collection) == {"a/in.txt": "in"}
    assert collection.skipped == {unpack.OUTSIDE: 1}
    assert not list(tmp_path.rglob("out.txt"))


def test_links_devices_and_encrypted_members_are_counted() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("a.txt"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"m{kind!r}")
            member.type, member.linkname = kind, "/etc/passwd"
            packed.addfile(member)
    Path("a.tar").write_bytes(out.getvalue())
    Path("b.txt").write_text("b")
    counted = {
        "empty": 1,
        "symlinked": 1,
        "read under another name": 1,
        "special (device, pipe or socket)": 2,
    }
    assert found("a.tar", "b.txt").skipped == counted
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile("c.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
        zipped.writestr("locked.txt", "locked")
    content = bytearray(Path("c.zip").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    Path("c.zip").write_bytes(content)
    assert found("c.zip", "b.txt").skipped == {"symlinked": 1, "encrypted": 1}


@pytest.mark.parametrize("pack", [archive, lambda files: tar(files, "w:gz")])
class TestBombs:
    """An archive that grows too large is skipped before it does."""

    def test_by_its_ratio(self, pack, folder: Path) -> None:
        Path("a").write_bytes(pack({f"{n}.txt": " " * 9 * 2**20 for n in range(9)}))
        with pytest.raises(NothingReadableError, match="1 too large when unpacked"):
            found("a")
        assert not list(folder.iterdir())

    def test_by_a_file(self, pack) -> None:
        Path("a").write_bytes(pack({"large.txt": " " * 11 * 2**20, "small.txt": "small"}))
        collection = found("a")
        assert texts(collection) == {"a/small.txt": "small"}
        assert collection.skipped == {"over `max_file_size`": 1}

    def test_by_the_number_of_files(self, pack, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
        Path("a").write_bytes(pack({f"{n}": "" for n in range(21)}))
        with pytest.raises(NothingReadableError, match="1 too large when unpacked"):
            found("a")


def test_a_zip_that_understates_its_sizes() -> None:
    content = archive({"a.txt": "word " * 1000})
    size = (5000).to_bytes(4, "little")
    assert content.count(size) == 2
    Path("a.zip").write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(NothingReadableError, match="1 damaged"):
        found("a.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_damage_is_a_reason(name: str, folder: Path) -> None:
    mode = "w:" + name.removeprefix("a.tar.")
    content = tar({"a.txt": os.urandom(40_000).hex()}, mode) if "tar" in name else PACKED[name]
    Path(name).write_bytes(content[: len(content) // 2])
    with pytest.raises(NothingReadableError, match="1 damaged"):
        found(name)
    assert not list(folder.iterdir())


def test_names_of_other_machines() -> None:
    content = archive({"gr____e.txt": "a"})
    Path("a.zip").write_bytes(content.replace(b"gr____e.txt", "größe.txt".encode()))
    assert list(texts(found("a.zip"))) == ["a.zip/größe.txt"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_text_and_documents(compress) -> None:
    text = "".join(f"line {n:06}\n" for n in range(150_000))
    suffix = {gzip.compress: "gz", bz2.compress: "bz2"}.get(compress, "xz")
    Path(f"a.txt.{suffix}").write_bytes(compress(text[:450_000].encode()) + compress(text[450_000:].encode()))
    Path(f"b.pdf.{suffix}").write_bytes(compress(pdf(["inside"])))
    assert list(texts(found(".")).values()) == [text, "[page 1]\ninside\n\n"]
    assert texts(found("-", stdin=compress(b"piped"))) == {"stdin": "piped"}
    Path("bomb").write_bytes(compress(b" " * 64 * 2**20))
    assert found("bomb", f"b.pdf.{suffix}").skipped == {"too large when unpacked": 1}


def test_a_word_that_bzip2_begins_with_is_text() -> None:
    Path("docs").mkdir()
    Path("docs/a.zip").write_bytes(b"PK is no archive")
    Path("docs/b.txt").write_text("PK\n")
    assert len(found("docs").documents) == 2

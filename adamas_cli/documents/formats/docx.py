"""Word documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.markup import headed, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part


def read(path: str) -> Iterator[Part]:
    """Markdown, with a section for each heading. Raises UnreadableError, and whatever zipfile, XML parsers
    and mammoth raise for damaged files.
    """
    import defusedxml
    import mammoth

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        defusedxml.defuse_stdlib()  # mammoth's XML parser; this process does nothing else
    with open(path, "rb") as file:
        if not file.read(4).startswith(b"PK"):
            raise UnreadableError(Trouble.ENCRYPTED)
        open_archive(path).close()
        file.seek(0)
        page = mammoth.convert_to_html(file, convert_image=mammoth.images.img_element(lambda _: {}))
    yield from headed(markdown(page.value))

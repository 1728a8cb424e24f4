"""Remote sources: web addresses, and git repositories by address or by GitHub name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from adamas_cli.errors import UsageError

_WEB = ("http", "https")
_GIT = ("git+https", "git+http", "git+ssh", "git+file")
_ON_GITHUB = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,38})/([A-Za-z0-9._-]{1,100}?)(?:@([^\s@:]{1,250}))?")


@dataclass(frozen=True)
class Repository:
    """A git repository to fetch. `ref`: a branch, tag or commit, None for the default branch. `below`: the
    folder in it to read.
    """

    name: str
    address: str
    ref: str | None = None
    below: str = ""

    @property
    def shown(self) -> str:
        """The prefix of its documents' paths."""
        return f"{self.name}/{self.below}" if self.below else self.name


def is_web(source: str) -> bool:
    """Whether it is the address of a web page or file."""
    return scheme_of(source) in _WEB


def scheme_of(source: str) -> str | None:
    """The scheme of an address; None if it is not an address."""
    try:
        return urlsplit(source).scheme.lower() if "://" in source else None
    except ValueError:
        return None


def repository(source: str) -> Repository | None:
    """The repository that `source` names. `owner/name` means a GitHub repository if there is neither a path
    of that name nor a folder `owner`. Raises UsageError for an invalid address.
    """
    scheme = scheme_of(source)
    if scheme in _GIT:
        return _by_address(source)
    found = _ON_GITHUB.fullmatch(source)
    if found is None or os.path.lexists(source) or os.path.lexists(found[1]) or found[2] in (".", ".."):
        return None
    name = found[2].removesuffix(".git")
    return Repository(
        f"{found[1]}/{name}", f"https://github.com/{found[1]}/{name}.git", _checked(found[3], source)
    )


def is_remote(source: str) -> bool:
    """Whether a source must be fetched, judging by its name."""
    scheme = scheme_of(source)
    return scheme in _WEB or scheme in _GIT or repository(source) is not None


def refuse(source: str) -> UsageError:
    """The error for a source that must not be fetched."""
    return UsageError(f"{shown_address(source)} is not on this machine, and `offline` forbids fetching it.")


def shown_address(address: str) -> str:
    """An address without user name, password and fragment, safe to print."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    shown = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    return "".join(character if character.isprintable() else "�" for character in shown)


def _by_address(source: str) -> Repository:
    parts = urlsplit(source)
    path, _, ref = parts.path.rpartition("@") if "@" in parts.path else (parts.path, "", "")
    names = [name for name in unquote(path).removesuffix("/").removesuffix(".git").split("/") if name]
    if not names or (not parts.netloc and parts.scheme != "git+file"):
        raise UsageError(f"{shown_address(source)} names no repository, as git+https://host/path@ref does.")
    address = urlunsplit((parts.scheme.removeprefix("git+"), parts.netloc, path, "", ""))
    below = parse_qs(parts.fragment).get("subdirectory", [""])[0].strip("/")
    if ".." in below.split("/"):
        raise UsageError(f"{shown_address(source)} leads out of its repository.")
    return Repository("/".join(names[-2:]), address, _checked(ref or None, source), below)


def _checked(ref: str | None, source: str) -> str | None:
    """Check a ref: git would take a leading dash for an option and a colon for two names."""
    if ref is not None and (ref.startswith("-") or not ref.isprintable() or set(ref) & set(" :^~?*[\\")):
        raise UsageError(f"{shown_address(source)} names no branch, tag or commit.")
    return ref

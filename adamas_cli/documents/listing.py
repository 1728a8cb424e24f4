"""The files below a folder: as git lists them in a work tree, else by a walk that reads ignore files."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adamas_cli.documents.collection import Reason
from adamas_cli.documents.filtering import Choice, Filter, IgnoreRules

# Git's listing already applies its own rules; `.ignore` is for search tools and covers tracked files too.
_BESIDE_GIT = (".ignore",)
_WITHOUT_GIT = (".gitignore", ".ignore")
# If a hook or an alias sets these, git would look at another repository than the folder's own.
_GIT_REDIRECTIONS = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something below a folder that is not a folder; `status` is its own, not that of a link's target."""

    path: str
    status: os.stat_result


@dataclass(frozen=True)
class Lister:
    """Lists the files of a folder that remain after the choice and the ignore files.

    `on_left_out` is called with the path of each folder or file that is hidden or cannot be listed.
    """

    choice: Choice
    use_ignore_files: bool
    on_left_out: Callable[[str, Reason], None]

    def entries(self, folder: str, below_named: str = "") -> Iterator[Entry]:
        """The entries below `folder`, in no particular order, with paths that begin with it.

        Links are listed, not followed. A repository inside (a submodule, a clone) is listed by its own rules.
        `below_named` is the path to `folder` from the folder that the user's patterns are relative to.
        """
        top = work_tree(folder) if self.use_ignore_files else None
        tracked = None if top is None else _git_files(folder)
        if tracked is not None:
            rules = IgnoreRules(folder, _BESIDE_GIT)
            yield from self._tracked(folder, tracked, below_named, Filter(self.choice, rules, below_named))
            return
        names = _WITHOUT_GIT if self.use_ignore_files else ()
        rules, below_top = IgnoreRules(top or folder, names), path_below(top, folder)
        if rules.ignores_folder(below_top):  # the user named it anyway: the rules above it do not count
            rules, below_top = IgnoreRules(folder, names), ""
        yield from self._walked(folder, below_named, Filter(self.choice, rules, below_named, below_top))

    def _tracked(
        self, folder: str, paths: dict[str, bool], below_named: str, keep: Filter
    ) -> Iterator[Entry]:
        for path, tracked in paths.items():
            location = os.path.join(folder, path)
            try:
                status = os.lstat(location)
            except FileNotFoundError:
                continue  # in the index, but deleted from the work tree
            except OSError:
                self.on_left_out(location, Reason.UNREADABLE)
                continue
            if not stat.S_ISDIR(status.st_mode):
                if not keep.keeps_file(path):
                    continue
                if not tracked and self.choice.hides(path, is_folder=False):
                    self.on_left_out(location, Reason.HIDDEN)
                else:
                    yield Entry(location, status)
            elif not keep.keeps_folder(path.rstrip("/")):
                continue
            elif not tracked and self.choice.hides(path.rstrip("/"), is_folder=True):
                self.on_left_out(location, Reason.HIDDEN_FOLDER)
            else:
                yield from self.entries(location.rstrip("/"), os.path.join(below_named, path))

    def _walked(self, folder: str, below_named: str, keep: Filter) -> Iterator[Entry]:
        pending = [""]
        while pending:
            below = pending.pop()
            try:
                with os.scandir(os.path.join(folder, below)) as scan:
                    children = list(scan)
            except OSError:
                self.on_left_out(os.path.join(folder, below), Reason.UNREADABLE)
                continue
            for child in children:
                path = os.path.join(below, child.name)
                if not child.is_dir(follow_symlinks=False):
                    if not keep.keeps_file(path):
                        continue
                    if child.name.startswith(".") and self.choice.hides(child.name, is_folder=False):
                        self.on_left_out(child.path, Reason.HIDDEN)
                    else:
                        yield Entry(child.path, child.stat(follow_symlinks=False))
                elif keep.keeps_folder(path):
                    if child.name.startswith(".") and self.choice.hides(child.name, is_folder=True):
                        self.on_left_out(child.path, Reason.HIDDEN_FOLDER)
                    elif self.use_ignore_files and os.path.lexists(os.path.join(child.path, ".git")):
                        yield from self.entries(child.path, os.path.join(below_named, path))
                    else:
                        pending.append(path)


def work_tree(folder: str) -> str | None:
    """The top of the git work tree that holds `folder`, or None."""
    candidate = os.path.realpath(folder)
    while not os.path.lexists(os.path.join(candidate, ".git")):
        parent = os.path.dirname(candidate)
        if parent == candidate:
            return None
        candidate = parent
    return candidate


def path_below(top: str | None, folder: str) -> str:
    """The path from `top` down to `folder`; empty if they are the same or there is no top."""
    path = os.curdir if top is None else os.path.relpath(os.path.realpath(folder), top)
    return "" if path == os.curdir else path


def _git_files(folder: str) -> dict[str, bool] | None:
    """The files of the work tree below `folder`, by relative path: tracked (True) or merely not ignored.

    A submodule or another repository inside is one path, perhaps with a slash after it. None if git cannot
    list them: it is not installed, refuses a folder of another owner, or `folder` itself is ignored.
    """
    if _git(folder, "check-ignore", "--quiet", ".") is not None:
        return None
    listing = _git(folder, "ls-files", "-t", "-z", "--cached", "--others", "--exclude-standard")
    if listing is None:
        return None
    # A letter and a space before each path: `?` if untracked. A path in conflict appears several times.
    return {os.fsdecode(line[2:]): line[:1] != b"?" for line in listing.split(b"\0") if line}


def _git(folder: str, *arguments: str) -> bytes | None:
    """Git's output, or None if git is missing or fails.

    This only queries the repository, so its settings must not run anything, such as an fsmonitor hook.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_REDIRECTIONS}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", folder, "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None

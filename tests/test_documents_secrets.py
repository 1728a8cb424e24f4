"""Hidden files and secrets: what is read, what is left out and counted, and what only looks like it.

The keys here are made up as the tests run, so that this file holds none.
"""

from __future__ import annotations

import base64
import os
import random
import string
import subprocess
from pathlib import Path

import pytest
from test_documents import found, git, paths, write

from adamas_cli.documents.collection import Reason
from adamas_cli.documents.secrets import by_content, by_name
from adamas_cli.errors import NothingReadableError

WORDS = string.ascii_letters + string.digits
CHANCE = random.Random(25)


def some(count: int, alphabet: str = WORDS) -> str:
    return "".join(CHANCE.choices(alphabet, k=count))


def pem(kind: str = "RSA ", size: int = 600) -> str:
    body = base64.encodebytes(CHANCE.randbytes(size)).decode()
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}-----END {kind}PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return work


class TestHidden:
    """Hidden files that git tracks are read, those of a project anywhere, and the others are counted."""

    def test_tracked_ones_are_read_and_others_counted(self) -> None:
        git("init", "-q")
        tracked = [".editorconfig", ".github/workflows/ci.yml", ".hidden/deep/note.txt", "src/.eslintrc.json"]
        for path in (*tracked, ".gitignore"):
            write(path, ".cache/\n" if path == ".gitignore" else "text\n")
        write("app.py")
        git("add", "-A")
        for path in (".cache/ignored.txt", ".idea/a.xml", ".idea/b.xml", ".notes", ".github/new.yml"):
            write(path)
        collection = found(".")
        read = [document.path for document in collection.documents]
        assert read == sorted([".gitignore", "app.py", ".github/new.yml", *tracked])
        assert collection.skipped_line() == "skipped 3: 3 hidden; `hidden` reads hidden ones"
        assert sorted(collection.examples["hidden"]) == [".idea/a.xml", ".idea/b.xml", ".notes"]
        everything = found(".", hidden=True)
        assert len(everything.documents) == len(read) + 3
        assert everything.skipped_line() is None

    def test_without_git_what_a_project_is_built_by_is_read(self) -> None:
        for path in (
            ".github/workflows/ci.yml",
            ".env.example",
            ".gitlab-ci.yml",
            ".circleci/config.yml",
            "a.py",
        ):
            write(path)
        for path in (".venv/lib/a.py", ".venv/lib/b.py", ".profile", "sub/.cache/x", ".git/config"):
            write(path)
        collection = found(".")
        read = [document.path for document in collection.documents]
        assert read == [
            ".circleci/config.yml",
            ".env.example",
            ".github/workflows/ci.yml",
            ".gitlab-ci.yml",
            "a.py",
        ]
        line = "skipped 3: 2 hidden folders, 1 hidden; `hidden` reads hidden ones"
        assert collection.skipped_line() == line
        assert ".git/config" not in paths(".", hidden=True)

    def test_what_patterns_leave_out_is_not_called_hidden(self) -> None:
        for path in ("a.py", ".profile", ".notes"):
            write(path)
        assert found(".", include=("*.py",)).skipped_line() is None
        assert found(".", exclude=(".notes",)).skipped["hidden"] == 1

    def test_only_hidden_files_are_told_of(self) -> None:
        write("folder/.notes")
        with pytest.raises(NothingReadableError, match="skipped 1: 1 hidden; `hidden` reads"):
            found("folder")
        assert paths("folder/.notes") == ["folder/.notes"]

    def test_a_clone_in_a_hidden_folder_stays_hidden(self) -> None:
        git("init", "-q")
        write("a.py")
        write(".deps/clone/b.py")
        subprocess.run(["git", "-C", ".deps/clone", "init", "-q"], check=True)
        collection = found(".")
        assert [document.path for document in collection.documents] == ["a.py"]
        assert collection.skipped == {"hidden folders": 1}

    def test_a_file_in_a_conflict_is_read_once(self) -> None:
        git("init", "-q")
        write("a.txt", "one\n")
        git("add", "-A")
        git("commit", "-qm", "one")
        git("checkout", "-qb", "side")
        write("a.txt", "two\n")
        git("commit", "-qam", "two")
        git("checkout", "-q", "-")
        write("a.txt", "three\n")
        git("commit", "-qam", "three")
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "merge", "side"], capture_output=True
        )
        assert paths(".") == ["a.txt"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".env", Reason.ENVIRONMENT),
        ("deploy/.env.production", Reason.ENVIRONMENT),
        (".env.local", Reason.ENVIRONMENT),
        ("prod.env", Reason.ENVIRONMENT),
        (".ENV", Reason.ENVIRONMENT),
        (".env~", Reason.ENVIRONMENT),
        (".env.bak", Reason.ENVIRONMENT),
        ("id_rsa", Reason.PRIVATE_KEY),
        (".ssh/id_ed25519", Reason.PRIVATE_KEY),
        ("store.p12", Reason.PRIVATE_KEY),
        ("config/master.key", Reason.PRIVATE_KEY),
        (".netrc", Reason.CREDENTIALS),
        (".git-credentials", Reason.CREDENTIALS),
        (".aws/credentials", Reason.CREDENTIALS),
        ("home/.docker/config.json", Reason.CREDENTIALS),
        (".pgpass", Reason.CREDENTIALS),
        (".env.example", None),
        (".env.sample", None),
        (".env.template", None),
        (".env.production.example", None),
        ("example.env", None),
        ("env.dist", None),
        ("env.py", None),
        ("src/env.ts", None),
        ("src/vite-env.d.ts", None),
        ("docs/environment.md", None),
        ("env", None),
        ("environment.yml", None),
        ("id_rsa.pub", None),
        ("secrets.py", None),
        ("credentials.go", None),
        ("config.json", None),
        ("tests/test_secrets.py", None),
        (".envrc", None),
        ("keyboard.key", None),
    ],
)
def test_names_tell(path: str, reason: Reason | None) -> None:
    assert by_name(path) == reason


REAL = {
    "AWS access key": lambda: "AKIA" + some(16, string.ascii_uppercase + "0123456789"),
    "AWS secret key": lambda: f'aws_secret_access_key = "{some(40)}"',
    "private key": pem,
    "GitHub token": lambda: "ghp_" + some(36),
    "GitLab token": lambda: "glpat-" + some(20),
    "Slack token": lambda: f"xoxb-{some(12, string.digits)}-{some(24)}",
    "Stripe key": lambda: "sk_live_" + some(24),
    "API key": lambda: "sk-proj-" + some(60),
    "Hugging Face token": lambda: "hf_" + some(34, string.ascii_letters),
    "npm token": lambda: "npm_" + some(36),
    "PyPI token": lambda: "pypi-AgEIcHlwaS5vcmc" + some(90),
    "Google key": lambda: "AIza" + some(35),
    "SendGrid key": lambda: f"SG.{some(22)}.{some(43)}",
    "Slack webhook": lambda: f"hooks.slack.com/services/T{some(10)}/B{some(10)}/{some(24)}",
    "DigitalOcean token": lambda: "dop_v1_" + some(64, "0123456789abcdef"),
    "Azure key": lambda: f"AccountKey={some(86)}==",
}


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("around", ['key = "{}"\n', "{}\n", "# use {} here\n", "https://a:{}@b.c/\n"])
def test_keys_and_tokens_in_a_text_are_found(kind: str, around: str) -> None:
    text = "import os\n" * 10 + around.format(REAL[kind]()) + "print()\n" * 10
    left_out = by_content("settings.py", [text.encode()])
    assert left_out is not None
    assert left_out.why == kind


@pytest.mark.parametrize(
    "text",
    [
        pem("", 48),
        pem("EC ", 32),
        pem("EC ", 121),
        pem("OPENSSH ", 400),
        pem("ENCRYPTED ", 600),
        pem().replace("\n", "\r\n"),
        '{"type": "service_account", "private_key": "' + pem("").replace("\n", "\\n") + '"}',
        "key: |\n" + "".join(f"    {line}\n" for line in pem().splitlines()),
        "KEY = (\n" + "".join(f'    "{line}\\n"\n' for line in pem().splitlines()) + ")\n",
        pem().replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n", 1),
        pem("PGP ").replace("PRIVATE KEY", "PRIVATE KEY BLOCK").replace("BLOCK-----\n", "BLOCK-----\n\n", 1),
        "".join(f"# {line}\n" for line in pem().splitlines()),
        "".join(f"  '{line}\\n' +\n" for line in pem().splitlines()),
        pem("OPENSSH ", 3000),
        f"PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nPublic-Lines: 1\n{some(64)}\nPrivate-Lines: 1\n",
    ],
    ids=range(15),
)
def test_private_keys_in_any_wrapping_are_found(text: str) -> None:
    left_out = by_content("some/file.txt", [f"before\n{text}after\n".encode()])
    assert left_out is not None
    assert (left_out.reason, left_out.why) == (Reason.PRIVATE_KEY, "private key")


@pytest.mark.parametrize("cut", range(0, 800, 37))
def test_a_key_over_two_blocks_is_found(cut: int) -> None:
    text = f"{'x' * 100}\n{pem()}\n".encode()
    assert by_content("a.txt", [text[:cut], text[cut:]]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "AKIA0123456789ABCDEF and AKIA1234567890123456 and ASIAIOSFODNN7EXAMPLE\n",
        "AKIAIOSFODNN7EXAMPLE and wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
        "aws_secret_access_key = <your secret key, forty characters of it>\n",
        "AWS_ACCESS_KEY_ID=AKIAXXXXXXXXXXXXXXXX\n",
        "GITHUB_TOKEN=ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n",
        "token: ghp_abcdefghijklmnopqrstuvwxyz0123456789\n",
        "OPENAI_API_KEY=sk-proj-your-key-here-your-key-here-your-key-here-your-key\n",
        "OPENAI_API_KEY=sk-...\n",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA...\n-----END RSA PRIVATE KEY-----\n",
        f"{pem()[:150]}\n...\n-----END RSA PRIVATE KEY-----\n",
        "curl https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX\n",
        "-----BEGIN PRIVATE KEY-----\n<your key>\n-----END PRIVATE KEY-----\n",
        "if b'-----BEGIN PRIVATE KEY-----' in text:\n    raise ValueError('that is a PRIVATE KEY----')\n",
        "-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(bytes(range(200))).decode(),
        "-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(range(200))).decode(),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1qT7mXbG2yW3sV5pLk9 me@host\n",
        "PASSWORD = os.environ['PASSWORD']\nTOKEN = get_token()\npassword: str = Field(min_length=12)\n",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
        "def graph_of_hf_models_that_have_a_very_long_name_in_snake_case(): ...\n",
        "class=task-sk-proj-header-with-many-words-in-a-css-class-name-that-goes-on-and-on\n",
    ],
)
@pytest.mark.parametrize("path", ["docs/config.md", ".env.example", "settings.py"])
def test_placeholders_and_talk_about_keys_are_none(path: str, text: str) -> None:
    assert by_content(path, [text.encode()]) is None


def test_a_file_that_begins_with_a_key_is_one_however_short() -> None:
    short = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\nBCIEIJ1q\n-----END PRIVATE KEY-----\n"
    left_out = by_content("deploy/server.key", [short.encode()])
    assert left_out == (Reason.PRIVATE_KEY, "private key")
    assert by_content("docs/keys.md", [f"A key looks like this:\n\n{short}".encode()]) is None
    assert by_content("docs/keys.pem", [short.replace("MC4CAQAw", "<yourkey>").encode()]) is None


def test_files_called_secrets_are_judged_by_their_values() -> None:
    password = some(12)
    for path, text in (
        ("config/secrets.yml", f"production:\n  secret_key_base: {some(64, 'abcdef0123456789')}\n"),
        ("credentials.json", f'{{"client_secret": "{some(24)}"}}'),
        (".npmrc", f"//registry.npmjs.org/:_authToken={some(36)}\n"),
        ("prod.tfvars", f'db_password = "{password}"\n'),
        (".envrc", f"export DB_PASSWORD='{password}'\n"),
        ("credentials.json", '{"user": "anna", "password": "hunter2"}'),
        ("secrets.toml", 'api_key = "k-93ab"\n'),
    ):
        assert by_content(path, [text.encode()]) == (Reason.CREDENTIALS, "a password, token or key"), path
    for path, text in (
        ("templates/secrets.yaml", "password: {{ .Values.password | b64enc }}\n"),
        ("secrets.yml", "production:\n  secret_key_base: <%= ENV['SECRET_KEY_BASE'] %>\n"),
        ("secrets.json", '{"password": "", "token": "your-token", "api_key": "changeme"}'),
        (".npmrc", "save-exact=true\n//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n"),
        (".envrc", "use flake\n"),
        (
            "secrets.json",
            '{"password": {"type": "string"}, "token": null, "secret": true, "api_key": "string"}',
        ),
        ("secrets.yml", "password: ********\ntoken: <token>\nsecret: xxxx\n"),
        ("settings.py", f"password = '{password}'\n"),
    ):
        assert by_content(path, [text.encode()]) is None, path


def test_secrets_are_skipped_counted_and_read_on_demand() -> None:
    git("init", "-q")
    write(".env", "TOKEN=abc\n")
    write(".env.example", "TOKEN=your-token\n")
    write("deploy/server.pem", pem())
    write("src/app.py", f"KEY = '{REAL['GitHub token']()}'\n")
    write("src/late.py", "x = 1\n" * 60_000 + f"KEY = '{REAL['AWS access key']()}'\n")
    write("src/clean.py")
    git("add", "-A")
    write(".netrc", "machine a login b password c\n")
    collection = found(".")
    assert [document.path for document in collection.documents] == [".env.example", "src/clean.py"]
    assert collection.skipped_line() == (
        "skipped 5: 2 secret (with access tokens), 1 secret (credentials), 1 secret (environment files), "
        "1 secret (private keys); `secrets` reads secret ones"
    )
    assert collection.examples[Reason.TOKEN] == ["src/app.py (GitHub token)", "src/late.py (AWS access key)"]
    assert len(paths(".", secrets=True)) == 7


def test_a_secret_that_the_user_names_is_read_and_said() -> None:
    write(".env", "TOKEN=abc\n")
    collection = found(".env")
    assert [document.path for document in collection.documents] == [".env"]
    assert collection.notes == [".env is secret (environment files); it is read because it was named"]
    assert found(".env", secrets=True).notes == []
    write("server.pem", pem())
    write("public.pem", pem().replace("PRIVATE", "PUBLIC"))
    assert found("server.pem", "public.pem").notes == [
        "server.pem is secret (private keys); it is read because it was named"
    ]

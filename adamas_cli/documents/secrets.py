"""Files that hold secrets: by their names, and by keys and tokens in them.

The token patterns are those that their issuers document. A token that looks like a placeholder does not
count: it is too regular, or contains a word such as "example".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from adamas_cli.documents.collection import LeftOut, Reason

OVERLAP_BYTES = 2048  # between two blocks, so that nothing is missed at their border

_ENVIRONMENT = re.compile(r"\.env(?:[-_.~].*)?|.+\.env", re.IGNORECASE)
_TEMPLATE_WORDS = frozenset(
    ["default", "defaults", "dist", "example", "sample", "schema", "template", "tmpl", "tpl"]
)
_NOT_SETTINGS = re.compile(
    r".*\.(?:c|cfg|cs|d|go|html?|java|jsx?|mjs|cjs|lock|md|php|py|rb|rs|rst|sh|tsx?|txt|vue)", re.I
)
_PRIVATE_KEY = re.compile(
    r"id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?|.*\.(?:p12|pfx|jks|keystore|kdbx|ppk)|master\.key", re.IGNORECASE
)
_CREDENTIALS = frozenset(
    [
        ".boto",
        ".dockercfg",
        ".git-credentials",
        ".htpasswd",
        ".my.cnf",
        ".mylogin.cnf",
        ".netrc",
        ".pgpass",
        ".pypirc",
        ".s3cfg",
        ".vault-token",
        "_netrc",
        "kubeconfig",
    ]
)
_CREDENTIALS_BELOW = (".aws/credentials", ".docker/config.json", ".kube/config", ".streamlit/secrets.toml")
# Names of files with credentials, but also of templates and other settings: their values decide.
_SUSPECT = re.compile(
    r"(?:.*[-_.])?(?:credentials?|secrets?|client_secret.*|service[-_]?account.*)"
    r"(?:\.(?:json|ya?ml|toml|ini|cfg|conf|properties|txt))?|\.npmrc|\.yarnrc(?:\.yml)?|\.envrc|.*\.tfvars",
    re.IGNORECASE,
)
_VALUE = re.compile(
    rb"(?:passw(?:or)?d|secret|token|api[-_]?key|access[-_]?key|private[-_]?key)[\w-]*[\"']?[ \t]*[:=][ \t]*"
    rb"[\"']?([^\s\"',;#]{4,200})",
    re.IGNORECASE,
)
_FILLED_IN_LATER = re.compile(
    rb"[$%{}<>*()\[\]]|\.\.\.|^!|^ENC|^\w+\.\w+\.\w+$"
    rb"|^(?:true|false|null|none|nil|undefined|string|bytes|required|optional)$",
    re.IGNORECASE,
)

# Signs that tokens have in common, each after a character that can be searched for at memory speed. The
# full patterns are tried only around these.
_SIGNS = (
    re.compile(
        rb"_(?:(?:(?<=gh[porsu]_)|(?<=_pat_)|(?<=_live_)|(?<=hf_)|(?<=npm_)|(?<=do[opr]_v1_))[A-Za-z0-9]{20}"
        rb"|(?:secret_access_key|SECRET_ACCESS_KEY)\b)"
    ),
    re.compile(
        rb"-(?:(?<=glpat-)|(?<=xox[abeprs]-)|(?<=sk-)|(?<=pypi-)|(?<=GOCSPX-)|(?<=AGE-SECRET-)|(?<=PuTTY-)"
        rb"|(?<=PRIVATE KEY-)|(?<=PRIVATE KEY BLOCK-))[\w-]{3}"
    ),
    re.compile(rb"A(?:KIA|SIA|Iza)\w{16}|A(?:ccess|ccount)Key\b"),
    re.compile(rb"SG\.[\w-]{20}"),
    re.compile(rb"hooks\.slack\.com/services/T"),
)
_BEFORE, _AFTER = 32, 400  # bytes around a sign, enough for the longest token
_TOKEN = re.compile(
    rb"(?P<AWS_access_key>A(?:KIA|SIA)[A-Z0-9]{16})(?![A-Za-z0-9])"
    rb"|(?P<AWS_secret_key>(?:_(?:secret_access_key|SECRET_ACCESS_KEY)|AccessKey)[\"']?\s*[:=]\s*[\"']?"
    rb"[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
    rb"|(?P<Azure_key>AccountKey=[A-Za-z0-9/+]{86}==)"
    rb"|(?P<Google_key>AIza[\w-]{35})(?![\w-])"
    rb"|(?P<age_key>AGE-SECRET-KEY-1[0-9A-Z]{58})"
    rb"|(?P<private_key>PRIVATE KEY(?: BLOCK)?----|PuTTY-User-Key-File-)"
    rb"|(?P<GitHub_token>g(?:h[porsu]_[A-Za-z0-9]{36}|ithub_pat_\w{60,}))"
    rb"|(?P<GitLab_token>glpat-[\w-]{20})"
    rb"|(?P<Slack_token>xox[abeprs]-[\w-]{20,})"
    rb"|(?P<Slack_webhook>hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{20,})"
    rb"|(?P<Stripe_key>[sr]k_live_[A-Za-z0-9]{24,})"
    rb"|(?P<API_key>sk-(?:ant-|proj-|svcacct-|or-v1-)[\w-]{40,}|sk-[A-Za-z0-9]{48})(?![\w-])"
    rb"|(?P<Hugging_Face_token>hf_[A-Za-z]{34})(?!\w)"
    rb"|(?P<npm_token>npm_[A-Za-z0-9]{36})(?!\w)"
    rb"|(?P<PyPI_token>pypi-AgE[\w-]{60,})"
    rb"|(?P<SendGrid_key>SG\.[\w-]{22}\.[\w-]{43})"
    rb"|(?P<DigitalOcean_token>do[opr]_v1_[a-f0-9]{64})"
    rb"|(?P<Google_client_secret>GOCSPX-[\w-]{28})"
)
_GOES_ON = re.compile(rb"[\w-](?=[AGPSdghnprsx])")  # a token does not begin inside a word
_DIGIT = re.compile(rb"\d")
_BEGINS_KEY = re.compile(rb"---- ?BEGIN [A-Z0-9 ]{0,32}$")
_AROUND_KEY = re.compile(rb"\\[nr]|[\s\"'+,\\()]|^[ \t]*(?:#|//|\*)|^[\w-]+: .*$", re.MULTILINE)
_BASE64 = re.compile(rb"-*[A-Za-z0-9/+=]{16,}")
_SHORTEST_KEY = 40  # characters, in a text that has other content
_PLACEHOLDER = re.compile(
    rb"example|sample|placeholder|your|dummy|fake|redacted|change|replace|secret|insert|todo"
    rb"|x{4}|\*{3}|\.{3}|0{6}|1234567|abcdefg",
    re.IGNORECASE,
)
_LEAST_ENTROPY = 2.9  # bits per character; random keys have more than three
_KEY_ENTROPY = 4  # the same for private keys, which are longer
_VALUE_ENTROPY = 1.5  # the same for passwords chosen by people


def by_name(path: str) -> Reason | None:
    """The kind of secret that a file of this name holds; the path is relative, with `/`."""
    name = path.rpartition("/")[2]
    lower = name.lower()
    if lower in _CREDENTIALS or f"/{path}".endswith(tuple(f"/{end}" for end in _CREDENTIALS_BELOW)):
        return Reason.CREDENTIALS
    if _PRIVATE_KEY.fullmatch(name):
        return Reason.PRIVATE_KEY
    if _ENVIRONMENT.fullmatch(name) and not is_template(name) and not _NOT_SETTINGS.fullmatch(name):
        return Reason.ENVIRONMENT
    return None


def is_template(name: str) -> bool:
    """Whether the name is that of a template of an environment file, such as `.env.example`."""
    words = re.split(r"[-_.]", name.lower())
    return "env" in words and not _TEMPLATE_WORDS.isdisjoint(words)


def by_content(path: str, blocks: Iterable[bytes]) -> LeftOut | None:
    """The kind of secret in the bytes of a file, and what it is; None if there is none."""
    suspect = _SUSPECT.fullmatch(path.rpartition("/")[2]) is not None
    before = b""
    for block in blocks:
        window = before + block if before else block
        for match in _matches(window):
            if (kind := match.lastgroup) and _is_real(kind, window, match):
                reason = Reason.PRIVATE_KEY if kind in ("private_key", "age_key") else Reason.TOKEN
                return LeftOut(reason, kind.replace("_", " "))
        if suspect and any(_is_value(found[1]) for found in _VALUE.finditer(window)):
            return LeftOut(Reason.CREDENTIALS, "a password, token or key")
        before = window[-OVERLAP_BYTES:]
    return None


def _matches(text: bytes) -> Iterator[re.Match[bytes]]:
    """Everything with the shape of a token."""
    for sign in _SIGNS:
        for found in sign.finditer(text):
            yield from _TOKEN.finditer(text, max(0, found.start() - _BEFORE), found.start() + _AFTER)


def _is_real(kind: str, text: bytes, match: re.Match[bytes]) -> bool:
    """Whether a match is a key rather than a placeholder."""
    if kind == "private_key":
        return _is_private_key(text, match)
    if kind not in ("AWS_secret_key", "Azure_key", "Slack_webhook") and _GOES_ON.match(
        text, max(0, match.start() - 1)
    ):
        return False
    value = re.split(rb"[=:\s\"']", match[0].rstrip(b"="))[-1] if kind == "AWS_secret_key" else match[0]
    mixed = _DIGIT.search(value) or value != value.lower()  # words of a long name have neither
    return bool(mixed) and not _PLACEHOLDER.search(value) and _entropy(value[4:]) >= _LEAST_ENTROPY


def _is_private_key(text: bytes, match: re.Match[bytes]) -> bool:
    """Whether a whole key of pure base64 follows: a page about keys omits or truncates it."""
    if match[0].startswith(b"PuTTY"):
        return b"Private-Lines:" in text[match.end() : match.end() + OVERLAP_BYTES]
    start = max(0, match.start() - 64)
    begins = _BEGINS_KEY.search(text[start : match.start()])
    if begins is None:
        return False
    following = text[match.end() : match.end() + OVERLAP_BYTES].lstrip(b"-")
    end = following.find(b"---")
    body = _AROUND_KEY.sub(b"", following[: end if end >= 0 else None])
    key = _BASE64.fullmatch(body)
    if key is None or _PLACEHOLDER.search(key[0][:_SHORTEST_KEY]):
        return False
    # A file that begins with a key is one, however short: keys for tests may be short.
    alone = not text[: start + begins.start()].strip(b"- \n")
    return alone or (len(key[0]) >= _SHORTEST_KEY and _entropy(key[0]) > _KEY_ENTROPY)


def _is_value(value: bytes) -> bool:
    return (
        not _FILLED_IN_LATER.search(value)
        and not _PLACEHOLDER.search(value)
        and _entropy(value) > _VALUE_ENTROPY
    )


def _entropy(value: bytes) -> float:
    """Bits per character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts) if value else 0.0

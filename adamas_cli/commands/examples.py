"""The examples at the end of each command's help. A test parses every one of them."""

from __future__ import annotations

from collections.abc import Iterator

import typer

# What each command line does, by command.
EXAMPLES: dict[str, dict[str, str]] = {
    "": {
        'adamas ask book.txt "Who is Mr. Darcy?"': "ask a question about a book",
        "adamas summarize src/": "what a repository does, and how to run it",
        "adamas chat report.pdf": "talk about a report",
    },
    "chat": {
        "adamas chat book.txt": "talk about a book; /help lists what else can be typed",
        "adamas chat src/ README.md -o talk.md": "keep the conversation as Markdown",
    },
    "ask": {
        'adamas ask book.txt "Who is Mr. Darcy?"': "one document, one question",
        'adamas ask src/ README.md "How is a request routed?" -e "test_*"': "a repository without its tests",
        'adamas ask book.txt -q "Who is Mr. Darcy?" -q "Where does he live?"': "read once, answer twice",
        'git diff | adamas ask - "What could break?" --json': "a document from a pipe, the answer as JSON",
        'adamas ask report.pdf "What was decided?" --sources --cite': "show where the answer came from",
    },
    "summarize": {
        "adamas summarize book.txt --style bullets --max-words 200": "a book of any length, in bullet points",
        "adamas summarize src/": "what a repository does, and how to run it",
    },
    "map": {
        'adamas map contracts/ -q "Who signs?" -q "When does it end?" -o answers.csv': "a row an answer",
        "adamas map 'contracts/**/*.pdf' -q \"What are the terms?\" --schema terms.json -o terms.parquet": (
            "a column for each property of the schema"
        ),
        'adamas map s3://bucket/contracts -q "Who signs?" -o answers.jsonl --on ray://head:10001': (
            "on a cluster"
        ),
    },
    "serve": {
        "adamas serve book.txt": "a page for questions, and OpenAI's interface, at http://127.0.0.1:8000",
        "ADAMAS_API_KEY=secret adamas serve src/ --host 0.0.0.0 --port 80": "for others, who need the key",
    },
    "mcp": {
        "adamas mcp report.pdf": "the tools ask, find_passages and summarize, for a program that starts this",
        "adamas mcp src/ README.md -m qwen2.5-coder-1.5b": "a repository, with a larger model",
    },
    "bench": {
        "adamas bench --len 4k,16k --text book.txt": "how fast this machine reads and answers",
        "adamas bench --kernels": "one sparse step of a layer beside full attention",
        "adamas bench --kernels -m qwen2.5-coder-1.5b --text book.txt": "the same on a model's own data",
        "adamas bench --len 4k --vs llama.cpp --format jsonl > rows.jsonl": "beside llama.cpp, into a file",
    },
    "eval ppl": {
        "adamas eval ppl --text book.txt --len 4k --budgets 64,256": "how far sparse is from full attention",
    },
    "eval retrieval": {
        "adamas eval retrieval --text book.txt --tasks multikey --len 2k,4k": "numbers hidden in a text",
    },
    "eval answers": {
        'adamas eval answers --document book.txt -q "Who is Mr. Darcy?"': "your question, full and sparse",
    },
    "completion": {
        "adamas completion bash > ~/.local/share/bash-completion/completions/adamas": "for bash",
        "adamas completion zsh > ~/.zfunc/_adamas": "for zsh, where fpath holds that folder",
        "adamas completion fish > ~/.config/fish/completions/adamas.fish": "for fish",
    },
    "config show": {
        "adamas config show": "every setting, and where it comes from",
        "adamas config show --json": "the same as JSON",
    },
    "config path": {"$EDITOR $(adamas config path)": "change the settings"},
    "config init": {
        "adamas config init": "a file with every setting, all commented out",
        "adamas config init --force": "the same, overwriting an existing file",
    },
    "doctor": {
        "adamas doctor": "what this machine can do, and what prevents adamas from working",
        "adamas doctor --json": "the same as JSON",
    },
    "env": {"adamas env": "the facts that a bug report needs"},
    "plan": {
        'adamas plan book.txt "Who is Mr. Darcy?"': "whether it fits, and its memory and time",
        "adamas plan src/ --tree": "tokens by folder",
        "adamas plan . --token-budget 30k --json": "exit with code 4 if it is more",
    },
    "read": {
        "adamas read report.pdf": "the text of a report that a model would be given",
        "adamas read src/ --json --tokens": "each file's format, encoding, sections and tokens",
        "adamas read book.epub -o book.txt": "the text in a file",
    },
    "cache ls": {"adamas cache ls": "the kept documents"},
    "cache info": {
        "adamas cache info book.txt": "details of one kept document",
        "adamas cache info 3f311f36 --json": "the same by its ID, as JSON",
    },
    "cache rm": {
        "adamas cache rm 3f311f36": "remove one document, after asking",
        "adamas cache rm --all -y": "remove all without asking",
    },
    "cache prune": {"adamas cache prune --max-size 5g": "remove the least recently used above 5 GiB"},
    "cache verify": {"adamas cache verify": "check all kept documents"},
    "cache path": {"du -sh $(adamas cache path)": "the folder's size"},
    "models ls": {"adamas models ls": "the short names and what is on this machine"},
    "models pull": {"adamas models pull qwen2.5-coder-1.5b": "fetch a model before it is needed"},
    "models recommended": {"adamas models recommended": "good models for long documents, and what fits here"},
    "models rm": {"adamas models rm smollm2-135m -y": "remove a model without asking"},
    "models show": {"adamas models show smollm2-135m --json": "sizes, hash, licence and shape as JSON"},
    "models default": {
        "adamas models default": "the model used when -m is not given",
        "adamas models default qwen2.5-coder-1.5b": "choose another one",
    },
}


def attach(app: typer.Typer) -> None:
    """Append its examples to the help of every command of `app` that has some."""
    if app.registered_callback is not None and "" in EXAMPLES:
        app.registered_callback.epilog = epilog("")
    for path, command in _commands(app):
        if path in EXAMPLES:
            command.epilog = epilog(path)


def epilog(path: str) -> str:
    """The examples of a command, such as `cache ls`, in rich's markup."""
    lines = ["[bold]Examples[/bold]"]
    for line, purpose in EXAMPLES[path].items():
        lines += [f"  [dim]# {purpose}[/dim]", "  $ " + line.replace("[", r"\[")]
    return "\n".join(lines)


def _commands(app: typer.Typer, above: str = "") -> Iterator[tuple[str, typer.models.CommandInfo]]:
    """Every command below `app` with its path."""
    for command in app.registered_commands:
        assert command.name is not None
        yield f"{above} {command.name}".strip(), command
    for group in app.registered_groups:
        if group.typer_instance is not None and group.name:
            yield from _commands(group.typer_instance, f"{above} {group.name}".strip())

"""Documents of any length: in one pass if they fit, otherwise in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adamas_cli.commands.replies import Reply, ask_all, listen_to_all

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.engine.sampling import Sampling
    from adamas_cli.longdoc.job import Job
    from adamas_cli.session.runtime import Runtime
    from adamas_cli.terminal.display import Display

_NAMED_SOURCES = 12  # lines after an answer


def answer_in_parts(
    runtime: Runtime,
    documents: Sequence[Document],
    job: Job,
    sampling: Sampling,
    display: Display,
    *,
    max_tokens: int | None = None,
) -> list[Reply]:
    """Answer the job's questions, whatever the documents' length. Raises OverContextError if the context has
    no room for the questions and their answers.

    max_tokens: of an answer, if it differs from the user's options.
    """
    from adamas_cli.longdoc.work import Work
    from adamas_cli.session.documents import OpenDocuments, count, longest_question

    answer = max_tokens or runtime.prompt.max_tokens
    whole = runtime.frame(runtime.prompt.template or job.whole)
    longest = longest_question(runtime, whole, job.finals)
    layout = count(runtime, whole, documents, longest)
    if layout.total + longest + answer <= runtime.context:
        with OpenDocuments(runtime, whole, layout, job.finals, max_tokens=answer) as opened:
            replies = ask_all(opened, job.finals, sampling, display)
        return [Reply(reply.answer, reply.record | {"parts": [], "levels": 0}) for reply in replies]
    display.note(
        f"{layout.total:,} tokens are more than the context of {runtime.context:,} holds: reading in parts"
    )
    if runtime.prompt.template:
        display.note("--template is for documents that fit; parts are asked with templates of their own")
    if runtime.origins.wanted:
        display.note("--sources and --cite are for documents that fit; here the parts are named instead")
    work = Work(runtime, documents, job, sampling, answer)
    for step in work.read():
        display.show(step)
    streams = (work.answer(number) for number in range(len(job.finals)))
    answers = listen_to_all(job.finals, streams, display)
    about = {
        "documents": [{"path": document.path, "tokens": document.tokens} for document in layout.documents],
        "truncated": False,
        "tokens_dropped": 0,
    }
    replies = []
    for number, reply in enumerate(answers):
        _name_sources(work.sources(number), display)
        record = reply.as_json(runtime.load_seconds) | about | work.as_json(number)
        replies.append(Reply(reply, record))
    return replies


def _name_sources(sources: Sequence[str], display: Display) -> None:
    if not sources:
        return
    display.note("from:")
    for source in sources[:_NAMED_SOURCES]:
        display.note(f"  {source}")
    if len(sources) > _NAMED_SOURCES:
        display.note(f"  and {len(sources) - _NAMED_SOURCES:,} more parts")

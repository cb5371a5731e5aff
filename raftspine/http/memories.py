"""Handlers of the memory routes: take the call apart, ask the service once, render its answer.

Which path keeps a memory, who coordinates and how often to retry is decided below; a handler that knew
would have to be changed with every new path.
"""

from typing import Protocol
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from raftspine.core.limits import (
    Limits,
    check_content,
    check_draft_fields,
    check_id,
    check_importance,
    check_metadata,
    check_namespace,
    check_tags,
    check_ttl,
)
from raftspine.errors import InvalidRequest, SpineError, TooLarge
from raftspine.http import parse, render
from raftspine.http.bodies import (
    BatchBody,
    BatchLine,
    BatchResult,
    BatchResults,
    DeleteLine,
    DeleteQuery,
    GetLine,
    ListParams,
    LostWrites,
    PatchBody,
    RecordList,
    RecordPage,
    StoreBody,
)
from raftspine.http.call import Call
from raftspine.http.reply import Reply
from raftspine.model import Model
from raftspine.services.values import (
    Answer,
    Ask,
    BatchOp,
    Draft,
    Expect,
    ListQuery,
    Loser,
    Page,
    Patch,
    Stored,
)

_line_json = msgspec.json.Decoder(BatchLine)
_line_msgpack = msgspec.msgpack.Decoder(BatchLine)


# Aliases, because within the Protocol below `list` is a method.
Ops = list[BatchOp]
Outcomes = list[Answer | SpineError]
Losers = list[Loser]
History = list[Stored]


class Memories(Protocol):
    """What these handlers need of the memory services (services/memories.py)."""

    async def put(self, ask: Ask, id: str, draft: Draft, expect: Expect) -> Answer: ...
    async def patch(self, ask: Ask, id: str, patch: Patch, expect: Expect) -> Answer: ...

    async def get(self, ask: Ask, id: str) -> Answer:
        """NotFound, with details.confirmed, when there is no such memory."""
        ...

    async def delete(self, ask: Ask, id: str, expect: Expect) -> Answer: ...
    async def list(self, ask: Ask, query: ListQuery) -> Page: ...

    async def batch(self, ask: Ask, ops: Ops) -> Outcomes:
        """One outcome per operation, in order. The last Answer with a token carries the session's newest."""
        ...

    async def conflicts(self, ask: Ask, id: str) -> Losers: ...
    async def versions(self, ask: Ask, id: str) -> History: ...

    def new_id(self, ask: Ask, place: int = 0) -> str:
        """A UUID; for a request with an Idempotency-Key always the same, for each place in it another."""
        ...


_MODEL_LINES = {model: f"X-Spine-Consistency: {model.value}\r\n" for model in Model}


def answer_lines(answer: Answer) -> str:
    """The header lines that say how an operation was served."""
    lines = _MODEL_LINES[answer.model]
    if answer.token is not None:
        lines = f"{lines}X-Spine-Session: {answer.token}\r\n"
    if answer.index is not None:
        lines = f"{lines}X-Spine-Index: {answer.index}\r\n"
    if answer.staleness_ms is not None:
        lines = f"{lines}X-Spine-Staleness-Ms: {answer.staleness_ms}\r\n"
    return lines


class MemoryHandlers:
    """The memory routes over one service."""

    def __init__(self, memories: Memories, limits: Limits) -> None:
        self._memories = memories
        self._limits = limits

    async def put(self, call: Call) -> Reply:
        """201 for a new memory, 200 for a changed or equal one."""
        id = call.params[0]
        check_id(id, self._limits)
        body: StoreBody = call.body
        if body.id is not UNSET and body.id != id:
            raise InvalidRequest("$.id: differs from the path", field="$.id")
        ask, draft, expect = self._intent(call, body)
        return self._stored(call, await self._memories.put(ask, id, draft, expect))

    async def post(self, call: Call) -> Reply:
        """As PUT; the node chooses the id unless the body brings one."""
        body: StoreBody = call.body
        ask, draft, expect = self._intent(call, body)
        if body.id is UNSET:
            id = self._memories.new_id(ask)
        else:
            id = body.id
            check_id(id, self._limits, "$.id")
        answer = await self._memories.put(ask, id, draft, expect)
        return self._stored(call, answer, f"Location: /v1/memories/{quote(id, safe='')}\r\n")

    def _intent(self, call: Call, body: StoreBody) -> tuple[Ask, Draft, Expect]:
        """What a store is to do. The agent of header and body stand in for each other."""
        ask = self._ask(call)
        draft = self._draft(body, ask.agent_id)
        if not ask.agent_id:
            ask.agent_id = body.agent_id
        ask.guards = parse.guards(call.headers, body.guard)
        return ask, draft, parse.expectation(call.headers, body.expected_version)

    def _ask(self, call: Call) -> Ask:
        return parse.ask(call.headers, call.query.consistency, self._limits)

    def _draft(self, body: StoreBody, agent_id: str) -> Draft:
        """The body's fields, all within limits."""
        tags = body.tags
        agent = body.agent_id or agent_id
        checked = check_draft_fields(
            body.content,
            agent,
            body.namespace,
            () if tags is UNSET else tags,
            body.importance,
            body.metadata,
            body.ttl_seconds,
            self._limits,
        )
        return Draft(
            body.content,
            agent,
            body.namespace,
            UNSET if tags is UNSET else checked,
            body.importance,
            body.metadata,
            body.ttl_seconds,
            body.pinned,
        )

    def _change(self, body: PatchBody) -> Patch:
        """The fields given, all within limits."""
        limits = self._limits
        tags = body.tags
        if body.content is not UNSET:
            check_content(body.content, limits)
        if body.namespace is not UNSET:
            check_namespace(body.namespace, limits)
        if tags is not UNSET:
            tags = check_tags(tags, limits)
        if body.importance is not UNSET:
            check_importance(body.importance)
        if body.metadata is not UNSET:
            check_metadata(body.metadata, limits)
        if body.ttl_seconds is not UNSET and body.ttl_seconds is not None:
            check_ttl(body.ttl_seconds, limits)
        return Patch(
            body.content, body.namespace, tags, body.importance, body.metadata, body.ttl_seconds, body.pinned
        )

    def _stored(self, call: Call, answer: Answer, extra: str = "") -> Reply:
        stored = answer.stored
        assert stored is not None, "a write or read that succeeded has a record"
        value = render.record(stored, advisory=answer.advisory)
        lines = f'ETag: "{stored.version}"\r\n{answer_lines(answer)}{extra}'
        return call.reply(201 if answer.created else 200, value, lines)

    async def patch(self, call: Call) -> Reply:
        """Change some fields; 404 when there is no such memory."""
        id = call.params[0]
        check_id(id, self._limits)
        body: PatchBody = call.body
        change = self._change(body)
        ask = self._ask(call)
        ask.guards = parse.guards(call.headers, body.guard)
        expect = parse.expectation(call.headers, body.expected_version)
        return self._stored(call, await self._memories.patch(ask, id, change, expect))

    async def get(self, call: Call) -> Reply:
        """200 with the record, or 304 when the client has this version already."""
        id = call.params[0]
        check_id(id, self._limits)
        answer = await self._memories.get(self._ask(call), id)
        known = call.headers.get(parse.IF_NONE_MATCH)
        if known is not None and answer.stored is not None and parse.etag_matches(known, answer.stored.version):
            return call.empty(304, f'ETag: "{answer.stored.version}"\r\n{answer_lines(answer)}')
        answer.created = False
        return self._stored(call, answer)

    async def delete(self, call: Call) -> Reply:
        """204, also when there was nothing to delete."""
        id = call.params[0]
        check_id(id, self._limits)
        query: DeleteQuery = call.query
        ask = self._ask(call)
        ask.guards = parse.guards(call.headers)
        expect = parse.expectation(call.headers, query.expected_version)
        return call.empty(204, answer_lines(await self._memories.delete(ask, id, expect)))

    async def list(self, call: Call) -> Reply:
        """One page, and the cursor of the next."""
        query: ListParams = call.query
        since = query.updated_since
        if query.limit > self._limits.list_limit:
            raise InvalidRequest(f"at most {self._limits.list_limit}", field="limit", limit=self._limits.list_limit)
        page = await self._memories.list(
            self._ask(call),
            ListQuery(
                query.tag,
                query.namespace,
                query.agent_id,
                query.prefix,
                None if since is None else parse.moment_ms(since, "updated_since"),
                query.limit,
                query.cursor,
            ),
        )
        items = [render.record(stored) for stored in page.items]
        lines = "" if page.token is None else f"X-Spine-Session: {page.token}\r\n"
        return call.reply(200, RecordPage(items, page.next), lines)

    async def versions(self, call: Call) -> Reply:
        """What is kept of an id's history."""
        check_id(call.params[0], self._limits)
        ask = self._ask(call)
        found = await self._memories.versions(ask, call.params[0])
        return call.reply(200, RecordList([render.record(stored) for stored in found]))

    async def conflicts(self, call: Call) -> Reply:
        """Writes that lost against concurrent ones."""
        check_id(call.params[0], self._limits)
        ask = self._ask(call)
        losers = await self._memories.conflicts(ask, call.params[0])
        return call.reply(200, LostWrites([render.lost(loser) for loser in losers]))

    async def batch(self, call: Call) -> Reply:
        """Many operations, each with its own outcome: a faulty one does not stop the others."""
        body: BatchBody = call.body
        if len(body.ops) > self._limits.batch_ops:
            raise TooLarge(
                f"$.ops: {len(body.ops)} operations; at most {self._limits.batch_ops} fit in one batch",
                details={"field": "$.ops", "limit": self._limits.batch_ops},
            )
        ask = self._ask(call)
        ask.guards = parse.guards(call.headers)
        parsed = [self._line(call, raw, at, ask) for at, raw in enumerate(body.ops)]
        good = [line for line in parsed if isinstance(line, BatchOp)]
        outcomes = iter(await self._memories.batch(ask, good) if good else ())
        results: list[BatchResult] = []
        token: str | None = None
        for line in parsed:
            outcome = next(outcomes) if isinstance(line, BatchOp) else line
            if isinstance(outcome, Answer) and outcome.token is not None:
                token = outcome.token
            results.append(self._result(call, outcome))
        return call.reply(200, BatchResults(results), "" if token is None else f"X-Spine-Session: {token}\r\n")

    def _line(self, call: Call, raw: msgspec.Raw, at: int, ask: Ask) -> BatchOp | SpineError:
        try:
            line: BatchLine = parse.decode(raw, _line_msgpack if call.body_msgpack else _line_json)
            return self._op(line, ask, at)
        except SpineError as error:
            return parse.within(error, f"$.ops[{at}]")

    def _op(self, line: BatchLine, ask: Ask, at: int) -> BatchOp:
        id = self._memories.new_id(ask, at) if line.id is UNSET else line.id
        check_id(id, self._limits, "$.id")
        if isinstance(line, GetLine):
            return BatchOp("get", id)
        expect = parse.expectation({}, line.expected_version)
        if isinstance(line, DeleteLine):
            return BatchOp("delete", id, None, expect)
        return BatchOp("put", id, self._draft(line, ask.agent_id), expect, parse.guards({}, line.guard))

    def _result(self, call: Call, outcome: Answer | SpineError) -> BatchResult:
        if isinstance(outcome, SpineError):
            status, body = call.error_body(outcome)
            return BatchResult(status, error=body)
        if outcome.stored is None:
            return BatchResult(204)
        return BatchResult(201 if outcome.created else 200, render.record(outcome.stored, advisory=outcome.advisory))

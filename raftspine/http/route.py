"""One route: everything that dispatch, decoding, access and /openapi.json need to know of it."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from raftspine.http.auth import Access
from raftspine.http.bodies import NoQuery
from raftspine.http.call import Call
from raftspine.http.reply import Reply

Handler = Callable[[Call], Awaitable[Reply]]

COMMON = (400, 422, 500)
PROTECTED = (401, 403)


class Route(Struct, frozen=True, kw_only=True):
    """One line of the table. `replies` maps each success status to the Struct of its body, to None for no
    body, or to a media type's name for text. `large`: the body may have the size of a batch. `raw_bytes`: the body
    is handed over as it came, empty ones too, up to this size. `headers`: those of a request that mean something
    here, besides the ones that follow from the rest."""

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    replies: dict[int, type[Struct] | type[dict] | str | None]  # type: ignore[type-arg]
    query: type[Struct] = NoQuery
    body: type[Struct] | None = None
    raw_bytes: int = 0
    large: bool = False
    errors: tuple[int, ...] = ()
    conditional: bool = False
    headers: tuple[str, ...] = ()

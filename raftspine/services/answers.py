"""What a caller is told: the memory, the model it was served under, and the token that stands for all of it.

The rule: a token names whatever its holder now depends on. A write adds its own dot, and after a demotion the log's
too, since a replica that has not applied it still believes the id to be the log's; a causal read adds what it read
and all that depended on. Leave one out, and the session's next request, at another node, misses what this answer
showed.
"""

from raftspine.core.routing import Router
from raftspine.core.session import Token
from raftspine.core.version_text import strong_version_text
from raftspine.model import GroupId, Model, StrongRecord, Version
from raftspine.services.lineage import origin_of_log
from raftspine.services.sessions import Sessions
from raftspine.services.values import Answer, Stored
from raftspine.storage import memories as rows


class Answers:
    """Composes the answers of one node."""

    def __init__(self, router: Router, sessions: Sessions) -> None:
        self._router = router
        self._sessions = sessions

    def kept(self, version: Version) -> Model:
        """The model under which the ring keeps a version."""
        return self._router.on_ring(() if version.memory is None else version.memory.tags)

    def deps(self, token: Token | None, model: Model) -> tuple[tuple[int, str, int], ...]:
        """What a causal write depends on: all its session has seen and not every replica has. An index of a group's
        log goes as an origin without a name; number 0 of it means that the whole group is meant."""
        if token is None or model is not Model.CAUSAL:
            return ()
        seen = self._sessions.extend(token)
        return (
            *((group, origin, seq) for group, dots in seen.dots.items() for origin, seq in dots.items()),
            *((group, "", index) for group, index in seen.index.items()),
            *((group, "", 0) for group in sorted(seen.wide)),
        )

    def written(
        self,
        token: Token | None,
        group: GroupId,
        version: Version,
        model: Model,
        *,
        created: bool = False,
        advisory: bool = False,
    ) -> Answer:
        """To a write that the ring keeps."""
        fresh = self._sessions.extend(token)
        fresh.wrote(group, version.origin, version.seq)
        demoted = version.context.get(origin_of_log(group))
        if demoted is not None:
            fresh.wrote(group, origin_of_log(group), demoted)
        stored = None
        if version.memory is not None:
            stored = Stored(version.id, version.memory, rows.ring_version(version), model)
        return Answer(
            model=model, stored=stored, created=created, token=self._sessions.seal(fresh), advisory=advisory
        )

    def found(self, token: Token | None, group: GroupId, version: Version, wish: Model | None) -> Answer:
        """To a read that the ring served."""
        memory = version.memory
        assert memory is not None, "only live versions are found"
        kept = self.kept(version)
        served = wish if wish in (Model.EVENTUAL, Model.CAUSAL) else kept
        answer = Answer(model=served, stored=Stored(version.id, memory, rows.ring_version(version), kept))
        if served is Model.CAUSAL or version.deps:
            fresh = self._sessions.extend(token)
            fresh.wrote(group, version.origin, version.seq)
            for dep_group, origin, seq in version.deps:
                if origin:
                    fresh.wrote(dep_group, origin, seq)
                elif seq:
                    fresh.logged(dep_group, seq)
                else:
                    fresh.wide.add(dep_group)
            answer.token = self._sessions.seal(fresh)
        return answer

    def strong(
        self, group: GroupId, record: StrongRecord, served: Model, *, staleness_ms: int | None = None
    ) -> Answer:
        """To a read that the log's state served."""
        assert record.memory is not None, "only live records are answered with"
        text = strong_version_text(group, record.index, record.sub)
        return Answer(
            model=served, stored=Stored(record.id, record.memory, text, Model.STRONG), staleness_ms=staleness_ms
        )

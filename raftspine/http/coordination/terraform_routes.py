"""The routes of Terraform's HTTP backend."""

from raftspine.core.ledger.terraform import STATE_BYTES
from raftspine.core.limits import Limits
from raftspine.http.auth import Access, Auth
from raftspine.http.coordination import terraform_bodies as bodies
from raftspine.http.coordination.making import CHANGE, LOOK, get
from raftspine.http.coordination.terraform import TerraformHandlers, naming_the_holder
from raftspine.http.reply import JSON
from raftspine.http.route import Route
from raftspine.services.coordination.service import Coordination

ONE = "/v1/terraform/{name}"
INFO_BYTES = 16 * 1024


def terraform_routes(on: Coordination, limits: Limits, auth: Auth) -> tuple[Route, ...]:
    handlers = TerraformHandlers(on.terraform, limits, auth)
    return (
        *_backend(handlers),
        *_locking(handlers, ONE, "LOCK", "UNLOCK"),
        *_locking(handlers, f"{ONE}/lock", "POST", "DELETE"),  # for proxies that know no others
        *_history(handlers),
    )


def _backend(on: TerraformHandlers) -> tuple[Route, ...]:
    return (
        Route(
            method="GET",
            path=ONE,
            handler=on.read,
            access=Access.READ,
            summary="Read a Terraform state, byte for byte",
            replies={200: JSON},
            errors=(409, *LOOK),
        ),
        Route(
            method="POST",
            path=ONE,
            handler=naming_the_holder(on.write),
            access=Access.WRITE,
            summary="Write a Terraform state; refused unless ID is the current lock's, or nobody holds the lock",
            query=bodies.LockQuery,
            raw_bytes=STATE_BYTES,
            replies={200: bodies.Written, 201: bodies.Written},
            errors=CHANGE,
        ),
        Route(
            method="DELETE",
            path=ONE,
            handler=naming_the_holder(on.delete),
            access=Access.WRITE,
            summary="Delete a Terraform state; its history stays",
            query=bodies.LockQuery,
            replies={200: bodies.Deleted},
            errors=CHANGE,
        ),
    )


def _locking(on: TerraformHandlers, path: str, lock: str, unlock: str) -> tuple[Route, ...]:
    return (
        Route(
            method=lock,
            path=path,
            handler=naming_the_holder(on.lock),
            access=Access.WRITE,
            summary="Take a Terraform state's lock; held: 409 with the holder's info",
            body=bodies.LockInfo,
            replies={200: bodies.LockTaken},
            errors=CHANGE,
        ),
        Route(
            method=unlock,
            path=path,
            handler=naming_the_holder(on.unlock),
            access=Access.WRITE,
            summary="Give a Terraform state's lock back; without its info, take it from its holder (audited)",
            raw_bytes=INFO_BYTES,
            replies={200: bodies.Unlocked},
            errors=CHANGE,
        ),
    )


def _history(on: TerraformHandlers) -> tuple[Route, ...]:
    return (
        get(f"{ONE}/lock", on.holder, "Who holds a Terraform state's lock", dict),
        get(f"{ONE}/versions", on.versions, "The kept versions of a Terraform state", bodies.StateVersions),
        get(f"{ONE}/versions/{{version}}", on.version, "A kept version, byte for byte", JSON, errors=(409, *LOOK)),
        Route(
            method="POST",
            path=f"{ONE}/versions/{{version}}/restore",
            handler=naming_the_holder(on.restore),
            access=Access.WRITE,
            summary="Bring a kept version back, as a new one; audited",
            query=bodies.LockQuery,
            replies={200: bodies.Written},
            errors=CHANGE,
        ),
        get(
            f"{ONE}/audit",
            on.audit,
            "Who unlocked by force, deleted or restored",
            bodies.AuditChain,
            bodies.AfterQuery,
        ),
    )

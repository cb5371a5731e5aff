"""Work started at once: what it returns, raises and waits for reaches its caller as from any task."""

import asyncio
from typing import Any

import pytest

from raftspine.services import eager


def play(story: Any) -> None:
    asyncio.run(story())


def test_work_that_need_not_wait_is_done_at_once() -> None:
    async def story() -> None:
        async def work() -> int:
            return 7

        async def broken() -> int:
            raise KeyError("x")

        async def ended() -> int:
            raise asyncio.CancelledError

        loop = asyncio.get_running_loop()
        assert eager.start(work(), loop).result() == 7
        assert isinstance(eager.start(broken(), loop).exception(), KeyError)
        assert eager.start(ended(), loop).cancelled()

    play(story)


def test_work_that_waits_goes_on_as_a_task() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        seen: list[Any] = []

        async def work() -> str:
            seen.append(await first)
            await asyncio.sleep(0)
            try:
                await second
            except ValueError as error:
                seen.append(str(error))
            seen.append(asyncio.current_task() is not None)
            return "end"

        running = eager.start(work(), loop)
        assert not running.done()
        first.set_result(1)
        await asyncio.sleep(0.001)
        second.set_exception(ValueError("no"))
        assert await running == "end"
        assert seen == [1, "no", True]

    play(story)


def test_what_was_awaited_may_have_ended_before_the_task_begins() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        awaited = loop.create_future()

        async def work() -> Any:
            return await awaited

        running = eager.start(work(), loop)
        awaited.set_result("early")
        assert await running == "early"

    play(story)


def test_cancelling_reaches_the_work() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        ended: list[str] = []

        async def work() -> None:
            try:
                await loop.create_future()
            finally:
                ended.append("cleaned up")

        running = eager.start(work(), loop)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == ["cleaned up"]

    play(story)


def test_an_error_after_a_wait_is_the_tasks() -> None:
    async def story() -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            raise RuntimeError("late")

        with pytest.raises(RuntimeError, match="late"):
            await eager.start(work(), asyncio.get_running_loop())

    play(story)

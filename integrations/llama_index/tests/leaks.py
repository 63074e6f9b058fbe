"""Nineteen programs in which users run side by side, and what each of their calls could see.

Every user has an index of their own whose nodes, node ids and questions carry the user's tag.
"""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.async_utils import run_jobs
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step

from integrations.llama_index.tests.matrix import in_fresh_context
from integrations.llama_index.tests.probes import (
    ProbeFunctionLLM,
    ProbeLLM,
    adrain,
    drain,
    make_index,
)

TAGS = [f"T{i}x" for i in range(8)]
INDEXES = {tag: make_index(tag, size=6, length=12) for tag in TAGS}
PLAIN = "no retrieval"


class Count(NamedTuple):
    """Calls of one kind: how many, how many saw another user's node, how many missed their own."""

    calls: int
    leaks: int
    misses: int


def count(calls, *, retrieved=True):
    """Judge the calls that name exactly one user; without retrieval a call should see nothing."""
    judged = leaks = misses = 0
    for call in calls:
        tags = {tag for tag in TAGS if tag in call.prompt}
        if len(tags) != 1:
            continue
        tag = tags.pop()
        judged += 1
        own = {node for node in call.seen if node.startswith(tag)}
        leaks += bool(call.seen - own) if retrieved else bool(call.seen)
        misses += retrieved and not own
    return Count(judged, leaks, misses)


def user(i):
    return TAGS[i % len(TAGS)]


def question(tag):
    return f"{tag} alpha topic zero"


def plain(tag):
    return f"{tag} asks something with {PLAIN}"


def engine(llm, tag, **options):
    return INDEXES[tag].as_query_engine(llm=llm, similarity_top_k=3, **options)


def split(calls):
    """Separate calls after a retrieval from calls of users who retrieved nothing."""
    return [c for c in calls if PLAIN not in c.prompt], [c for c in calls if PLAIN in c.prompt]


def judge_both(llm):
    retrieved, bare = split(llm.calls)
    return [count(retrieved), count(bare, retrieved=False)]


def threads(llm):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: engine(llm, user(i)).query(question(user(i))), range(240)))
    return [count(llm.calls)]


def two_streams_per_thread(llm):
    def one(i):
        tags = user(i), user(i + 3)
        streams = [engine(llm, tag, streaming=True).query(question(tag)) for tag in tags]
        for _pair in zip(*(stream.response_gen for stream in streams), strict=True):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(80)))
    return [count(llm.calls)]


async def gathered_queries(llm):
    await asyncio.gather(*(engine(llm, user(i)).aquery(question(user(i))) for i in range(240)))
    return [count(llm.calls)]


async def gathered_streams(llm):
    chance = random.Random(0)

    async def one(i):
        response = await engine(llm, user(i), streaming=True).aquery(question(user(i)))
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        async for _ in response.async_response_gen():
            await asyncio.sleep(0)

    await asyncio.gather(*(one(i) for i in range(160)))
    return [count(llm.calls)]


async def two_streams_in_one_task(llm):
    for i in range(20):
        tags = user(i), user(i + 1)
        streams = [await engine(llm, tag, streaming=True).aquery(question(tag)) for tag in tags]
        for stream in streams:
            await adrain(stream)
    return [count(llm.calls)]


def agent(function_llm, llm, tag):
    tool = QueryEngineTool.from_defaults(engine(llm, tag), name="qe", description="d")
    return FunctionAgent(tools=[tool], llm=function_llm).run(
        question(tag), memory=ChatMemoryBuffer.from_defaults()
    )


def after_tool(function_llm):
    return [call for call in function_llm.calls if "copied text" in call.prompt]


async def agents_at_once(llm):
    function_llm = ProbeFunctionLLM()
    await asyncio.gather(*[agent(function_llm, llm, user(i)) for i in range(24)])
    return [count(after_tool(function_llm)), count(llm.calls)]


async def agents_in_turn(llm):
    function_llm = ProbeFunctionLLM()
    for tag in TAGS:
        await agent(function_llm, llm, tag)
    return [count(after_tool(function_llm))]


def pooled_threads(llm):
    def one(i):
        nodes = INDEXES[user(i)].as_retriever(similarity_top_k=2).retrieve(question(user(i)))
        llm.complete("\n".join(node.node.get_content() for node in nodes))
        llm.complete(plain(user(i + 1)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(40)))
    return judge_both(llm)


def call_after_query(llm):
    for i in range(4):
        engine(llm, user(i)).query(question(user(i)))
        llm.complete(plain(user(i + 1)))
    return [count(split(llm.calls)[1], retrieved=False)]


async def common_jobs(llm):
    jobs = [
        engine(llm, user(i)).aquery(question(user(i))) if i % 2 else llm.acomplete(plain(user(i)))
        for i in range(60)
    ]
    await run_jobs(jobs, workers=4)
    return judge_both(llm)


def common_span(llm):
    @get_dispatcher("an.application").span
    def serve():
        for tag in TAGS:
            engine(llm, tag).query(question(tag))
            llm.complete(plain(tag))

    serve()
    return judge_both(llm)


class Serving(Workflow):
    def __init__(self, llm, gathered, **options):
        super().__init__(**options)
        self.llm, self.gathered = llm, gathered

    @step
    async def serve(self, ev: StartEvent) -> StopEvent:
        queries = [engine(self.llm, tag).aquery(question(tag)) for tag in TAGS[:4]]
        if self.gathered:
            await asyncio.gather(*queries)
        else:
            for query in queries:
                await query
        return StopEvent(result=None)


async def step_gathers_users(llm):
    await Serving(llm, gathered=True).run()
    return [count(llm.calls)]


async def step_serves_users_in_turn(llm):
    await Serving(llm, gathered=False).run()
    return [count(llm.calls)]


async def every_step_in_another_thread(llm):
    """Read a synchronous stream as Starlette does."""

    async def one(i):
        asked = engine(llm, user(i), streaming=True)
        response = await asyncio.to_thread(asked.query, question(user(i)))
        reader = iter(response.response_gen)
        while await asyncio.to_thread(next, reader, None) is not None:
            await asyncio.sleep(0)

    await asyncio.gather(*(one(i) for i in range(40)))
    return [count(llm.calls)]


def two_chats_per_thread(llm):
    def one(i):
        chats = []
        for tag in (user(i), user(i + 2)):
            retriever = INDEXES[tag].as_retriever(similarity_top_k=2)
            chat = ContextChatEngine.from_defaults(
                retriever=retriever, llm=llm, memory=ChatMemoryBuffer.from_defaults()
            )
            chats.append(chat.stream_chat(question(tag)))
        for chat in chats:
            drain(chat)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(40)))
    return [count(llm.calls)]


PROGRAMS = (
    threads,
    two_streams_per_thread,
    gathered_queries,
    gathered_streams,
    two_streams_in_one_task,
    agents_at_once,
    agents_in_turn,
    pooled_threads,
    call_after_query,
    common_jobs,
    common_span,
    step_gathers_users,
    step_serves_users_in_turn,
    every_step_in_another_thread,
    two_chats_per_thread,
)
"""Fifteen programs; four of them are judged twice: nineteen counts."""


def run_program(program):
    return in_fresh_context(program, ProbeLLM())

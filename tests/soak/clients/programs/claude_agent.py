"""The Python library `claude-agent-sdk`, with the Claude Code that it brings."""

import asyncio

from claude_agent_sdk import ClaudeAgentOptions, query

from shared import MODEL, PROMPT, run


async def all_messages():
    options = ClaudeAgentOptions(model=MODEL, permission_mode="bypassPermissions", max_turns=4)
    return [message async for message in query(prompt=PROMPT, options=options)]


def turn():
    return "\n".join(str(message) for message in asyncio.run(all_messages())[1:])


run(turn)

"""The Python library `openai-agents`, which is told its address by the environment only."""

from agents import Agent, Runner, function_tool, set_tracing_disabled

from shared import MODEL, PROMPT, TOOL_RESULT, run

set_tracing_disabled(True)


@function_tool
def bash(command: str) -> str:
    """Runs a shell command."""
    return TOOL_RESULT


def turn():
    agent = Agent(name="agent", instructions="You look around.", model=MODEL, tools=[bash])
    return Runner.run_sync(agent, PROMPT, max_turns=4).final_output


run(turn)

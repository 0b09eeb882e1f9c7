"""The Python library `anthropic`: its own tool runner, with its defaults."""

from anthropic import Anthropic, beta_tool

from shared import MODEL, PROMPT, TOOL_RESULT, URL, run


@beta_tool
def bash(command: str) -> str:
    """Runs a shell command.

    Args:
        command: The command.
    """
    return TOOL_RESULT


def turn():
    client = Anthropic(base_url=f"{URL}/anthropic", api_key="dummy")
    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=1000, messages=[{"role": "user", "content": PROMPT}], tools=[bash], max_iterations=4
    )
    reply = runner.until_done()
    return "".join(block.text for block in reply.content if block.type == "text")


run(turn)

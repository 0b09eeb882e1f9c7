"""The Python library `anthropic`: a turn with a tool, written out by hand, streamed."""

from anthropic import Anthropic

from shared import ANTHROPIC_TOOL, MODEL, PROMPT, TOOL_RESULT, URL, run


def turn():
    client = Anthropic(base_url=f"{URL}/anthropic", api_key="dummy")
    messages = [{"role": "user", "content": PROMPT}]
    for _ in range(4):
        with client.messages.stream(model=MODEL, max_tokens=1000, messages=messages, tools=[ANTHROPIC_TOOL]) as stream:
            reply = stream.get_final_message()
        calls = [block for block in reply.content if block.type == "tool_use"]
        if not calls:
            return "".join(block.text for block in reply.content if block.type == "text")
        messages.append({"role": "assistant", "content": reply.content})
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": TOOL_RESULT} for call in calls]
        messages.append({"role": "user", "content": results})
    raise RuntimeError("the model did not stop calling the tool")


run(turn)

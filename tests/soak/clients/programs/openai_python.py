"""The Python library `openai`: a turn with a tool by `responses` or by `chat`, whichever is the argument."""

import sys

from openai import OpenAI

from shared import MODEL, PROMPT, SCHEMA, TOOL_RESULT, URL, run

client = OpenAI(base_url=f"{URL}/openai/v1", api_key="dummy")


def by_responses():
    tool = {"type": "function", "name": "bash", "description": "Runs a shell command.", "parameters": SCHEMA, "strict": False}
    items = [{"role": "user", "content": PROMPT}]
    for _ in range(4):
        with client.responses.stream(model=MODEL, input=items, tools=[tool]) as stream:
            reply = stream.get_final_response()
        calls = [item for item in reply.output if item.type == "function_call"]
        if not calls:
            return reply.output_text
        for call in calls:
            items.append({"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments})
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": TOOL_RESULT})
    raise RuntimeError("the model did not stop calling the tool")


def by_chat():
    tool = {"type": "function", "function": {"name": "bash", "description": "Runs a shell command.", "parameters": SCHEMA}}
    messages = [{"role": "user", "content": PROMPT}]
    for _ in range(4):
        reply = client.chat.completions.create(model=MODEL, messages=messages, tools=[tool]).choices[0].message
        if not reply.tool_calls:
            return reply.content
        messages.append(reply.model_dump(exclude_none=True))
        for call in reply.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": TOOL_RESULT})
    raise RuntimeError("the model did not stop calling the tool")


run({"responses": by_responses, "chat": by_chat}[sys.argv[1]])

"""LangChain: a turn with a tool, by the package that the argument names."""

import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool

from shared import MODEL, PROMPT, TOOL_RESULT, URL, run


@tool
def bash(command: str) -> str:
    """Runs a shell command."""
    return TOOL_RESULT


def model():
    match sys.argv[1]:
        case "anthropic":
            from langchain_anthropic import ChatAnthropic

            return ChatAnthropic(model=MODEL, base_url=f"{URL}/anthropic", api_key="dummy")
        case "openai":
            from langchain_openai import ChatOpenAI

            return ChatOpenAI(model=MODEL, base_url=f"{URL}/openai/v1", api_key="dummy", use_responses_api=sys.argv[2] == "responses")
        case "google":
            from langchain_google_genai import ChatGoogleGenerativeAI

            return ChatGoogleGenerativeAI(model=MODEL, base_url=f"{URL}/google", google_api_key="dummy")


def turn():
    bound = model().bind_tools([bash])
    messages = [HumanMessage(PROMPT)]
    for _ in range(4):
        reply = bound.invoke(messages)
        if not reply.tool_calls:
            return reply.text
        messages.append(reply)
        messages += [ToolMessage(content=bash.invoke(call["args"]), tool_call_id=call["id"]) for call in reply.tool_calls]
    raise RuntimeError("the model did not stop calling the tool")


run(turn)
